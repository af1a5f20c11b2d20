"""Atomic writes: complete files on success, unchanged files after any error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.atomic import _delete_abandoned_files, atomic_write, check_writable_folder


@pytest.mark.parametrize("old", [None, b"old"])
def test_file_appears_complete(tmp_path: Path, old: bytes | None) -> None:
    path = tmp_path / "a.png"
    if old is not None:
        path.write_bytes(old)
    with atomic_write(path) as temp_path:
        assert (temp_path.parent, temp_path.suffix) == (path.parent, ".png")
        assert temp_path.name.startswith(".")
        temp_path.write_bytes(b"new")
        assert (path.read_bytes() if path.exists() else None) == old
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_error_leaves_only_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")

    def write() -> None:
        with atomic_write(path) as temp_path:
            temp_path.write_bytes(b"partial")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_concurrent_writers_use_different_temporary_files(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with atomic_write(path) as first, atomic_write(path) as second:
        first.write_bytes(b"first")
        second.write_bytes(b"second")
        assert first != second
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_symbolic_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    input_file, link = tmp_path / "input", tmp_path / "link"
    input_file.write_bytes(b"input")
    link.symlink_to(input_file)
    with atomic_write(link) as temp_path:
        temp_path.write_bytes(b"output")
    assert input_file.read_bytes() == b"input"
    assert link.read_bytes() == b"output"
    assert not link.is_symlink()


@pytest.mark.parametrize("name", ["x" * 255, "x" * 251 + ".png", "\N{HORSE FACE}" * 62 + ".png"])
def test_long_names_are_supported(tmp_path: Path, name: str) -> None:
    with atomic_write(tmp_path / name) as temp_path:
        temp_path.write_bytes(b"")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_folder_at_the_target_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError), atomic_write(tmp_path / "a") as temp_path:
        temp_path.write_bytes(b"")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_temporary_files_of_killed_processes_are_deleted(tmp_path: Path) -> None:
    """The oracle is a process that is killed while it writes."""
    program = """
import sys, time
from pathlib import Path
from chromabox.io.atomic import atomic_write
with atomic_write(Path(sys.argv[1])) as temp_path:
    temp_path.write_bytes(b"partial")
    print("written", flush=True)
    time.sleep(60)
"""
    path = tmp_path / "a.b" / "c.png"
    path.parent.mkdir()
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        [left] = path.parent.iterdir()
        with atomic_write(path) as temp_path:
            temp_path.write_bytes(b"new")
        assert left.exists()  # The other process still runs.
        process.kill()
    assert left.exists()
    (path.parent / ".c.0123456789ab.png").touch()  # a hidden file of the user
    _delete_abandoned_files.cache_clear()
    with atomic_write(path) as temp_path:
        temp_path.write_bytes(b"newer")
    assert sorted(file.name for file in path.parent.iterdir()) == [".c.0123456789ab.png", "c.png"]


def test_folders_that_cannot_be_written_to_are_rejected(tmp_path: Path) -> None:
    check_writable_folder(tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ChromaboxError, match=r"cannot be created: .*file is a file"):
        check_writable_folder(tmp_path / "file" / "folder")
    with pytest.raises(UsageError, match="file is a file; expected a folder"):
        check_writable_folder(tmp_path / "file")
    with pytest.raises(ChromaboxError, match=r"cannot be created or written to \(File name too long\)"):
        check_writable_folder(tmp_path / ("n" * 300))
    (tmp_path / "protected").mkdir(mode=0o500)
    if os.access(tmp_path / "protected", os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(ChromaboxError, match=r"cannot be created or written to .Permission denied"):
        check_writable_folder(tmp_path / "protected" / "new")
