"""Atomic writes: complete files on success, unchanged files after any error."""

from pathlib import Path

import pytest

from chromabox.io.atomic import atomic_write


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
