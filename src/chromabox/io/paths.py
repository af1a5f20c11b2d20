"""Which input files a command processes, and where each output goes."""

import os
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from chromabox.errors import UsageError
from chromabox.io.images import IMAGE_SUFFIXES, find_images

#: Suffixes that are written as they came; anything else becomes PNG.
WRITABLE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp"}


def expand_inputs(
    inputs: Sequence[Path], output: Path | None = None, *, match: Sequence[str] = (), recursive: bool = True
) -> list[tuple[Path, Path]]:
    """The pictures among the inputs, each with its place in the folder it was found in (a file given: its name).

    Args:
        inputs: files, taken whatever they are called, and folders.
        output: if it lies inside one of the folders, pictures in it are results and are not found.
        match: patterns as ``*.jpg`` or ``scans/*``; of the pictures in folders only those that fit one are found.
            Without a slash it is the name that has to fit, with one the whole place in the folder, where ``*`` also
            goes over slashes. Capitals count as small letters.
        recursive: whether sub-folders are searched.

    Raises UsageError for inputs that do not exist, folders without pictures and patterns that leave nothing.
    """
    found: list[tuple[Path, Path]] = []
    for path in inputs:
        pictures = find_images([path], recursive=recursive)
        if path.is_dir():
            pictures = [(file, place) for file, place in pictures if _matches(place, match)]
            if output is not None and path.resolve() in output.resolve().parents:
                pictures = [(file, place) for file, place in pictures if output.resolve() not in file.resolve().parents]
        found += pictures
    if not found:
        folders = ", ".join(str(path) for path in inputs)
        if match:
            raise UsageError(f"match: no picture in {folders} fits {' or '.join(match)}; give a pattern of their names")
        raise UsageError(f"{folders}: holds no pictures besides those in {output}; give a folder of pictures to colour")
    return found


def _matches(relative_path: Path, patterns: Sequence[str]) -> bool:
    whole, name = relative_path.as_posix().lower(), relative_path.name.lower()
    return not patterns or any(fnmatchcase(whole if "/" in one else name, one.lower()) for one in patterns)


def map_outputs(
    inputs: Sequence[Path], output: Path, *, match: Sequence[str] = (), recursive: bool = True
) -> list[tuple[Path, Path]]:
    """Which file goes where: one picture to a file name, or any number into a folder, with their sub-folders.

    ``match`` and ``recursive`` are those of ``find``. Raises UsageError for what ``find`` refuses, for an output that
    is an input, and where two inputs would share a name.
    """
    found = expand_inputs(inputs, output, match=match, recursive=recursive)
    suffix = output.suffix.lower()
    if suffix in IMAGE_SUFFIXES - WRITABLE_SUFFIXES and not output.is_dir():
        raise UsageError(f"{output}: pictures are written as {', '.join(sorted(WRITABLE_SUFFIXES))}; give one of these")
    if len(found) == 1 and inputs[0].is_file() and suffix in WRITABLE_SUFFIXES:
        pairs = [(found[0][0], output)]
    elif output.is_file():
        raise UsageError(f"{output}: is a file, but {len(found)} pictures need a folder; give -o FOLDER")
    else:
        pairs = [(path, output / _output_name(place)) for path, place in found]
    _check_outputs_not_inputs([path for path, _ in pairs], (output, *(target for _, target in pairs)))
    sources: dict[Path, Path] = {}
    for source, target in pairs:
        if target in sources:
            raise UsageError(f"{source} and {sources[target]} would both become {target}; colour them into two folders")
        sources[target] = source
    return pairs


def _output_name(relative_path: Path) -> Path:
    return relative_path if relative_path.suffix.lower() in WRITABLE_SUFFIXES else relative_path.with_suffix(".png")


def _check_outputs_not_inputs(inputs: Sequence[Path], outputs: Iterable[Path]) -> None:
    """Refuse outputs that are an input by whatever name or link; every file is looked at once."""
    names = {path.resolve(): path for path in inputs}
    files = {_file_id(path): path for path in inputs if path.exists()}
    for output in outputs:
        same = names.get(output.resolve()) or (files.get(_file_id(output)) if output.exists() else None)
        if same is not None:
            raise UsageError(f"{output} is the input {same} itself: choose another output, inputs are never changed")


def _file_id(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
