"""Input files of a command and the paths of their outputs."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import IMAGE_SUFFIXES, check_not_input, find_images

#: Suffixes that are kept in outputs; other inputs are written as PNG.
WRITABLE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp"}


def expand_inputs(
    inputs: Sequence[Path], output: Path | None = None, *, match: Sequence[str] = (), recursive: bool = True
) -> list[tuple[Path, Path]]:
    """Return the images in the inputs, each with its path relative to the input folder (for a file: its name).

    Args:
        inputs: files, which are included whatever their suffix, and folders.
        output: if it is inside an input folder, images in it are results and are excluded.
        match: patterns such as ``*.jpg`` or ``scans/*``; images in folders are included if any pattern matches. A
            pattern without a slash is matched against the name, one with a slash against the path relative to the
            folder, where ``*`` also matches slashes. Case is ignored.
        recursive: whether subfolders are searched.

    Raise UsageError for inputs that do not exist and patterns that match no image, and ChromaboxError for folders
    without images.
    """
    selected: list[tuple[Path, Path]] = []
    for path in inputs:
        images = find_images([path], recursive=recursive)
        if path.is_dir():
            images = [(file, relative_path) for file, relative_path in images if _matches(relative_path, match)]
            if output is not None and path.resolve() in output.resolve().parents:
                images = [entry for entry in images if output.resolve() not in entry[0].resolve().parents]
        selected += images
    if not selected:
        folders = ", ".join(str(path) for path in inputs)
        if match:
            raise UsageError(f"--match: no image in {folders} matches {' or '.join(match)}; use another pattern")
        raise ChromaboxError(f"{folders}: contains no images except those in {output}; use a folder with other images")
    return selected


def _matches(relative_path: Path, patterns: Sequence[str]) -> bool:
    path, name = relative_path.as_posix().lower(), relative_path.name.lower()
    return not patterns or any(fnmatchcase(path if "/" in pattern else name, pattern.lower()) for pattern in patterns)


def map_outputs(
    inputs: Sequence[Path], output: Path, *, match: Sequence[str] = (), recursive: bool = True
) -> list[tuple[Path, Path]]:
    """Return (input, output) for each image: a single image to a file, or any number to a folder with subfolders.

    ``match`` and ``recursive`` are as in :func:`expand_inputs`. Raise the same errors, and UsageError for an output
    that is an input, a suffix that cannot be written, and two inputs with the same output.
    """
    selected = expand_inputs(inputs, output, match=match, recursive=recursive)
    suffix = output.suffix.lower()
    if suffix in IMAGE_SUFFIXES - WRITABLE_SUFFIXES and not output.is_dir():
        raise UsageError(f"{output}: unsupported output format; expected {', '.join(sorted(WRITABLE_SUFFIXES))}")
    if len(selected) == 1 and inputs[0].is_file() and suffix in WRITABLE_SUFFIXES:
        pairs = [(selected[0][0], output)]
    elif output.is_file():
        raise UsageError(f"{output}: is a file, but there are {len(selected)} images; use -o FOLDER")
    else:
        names = (path if path.suffix.lower() in WRITABLE_SUFFIXES else path.with_suffix(".png") for _, path in selected)
        pairs = [(path, output / name) for (path, _), name in zip(selected, names, strict=True)]
    check_not_input([path for path, _ in pairs], output, *(target for _, target in pairs))
    sources: dict[Path, Path] = {}
    for source, target in pairs:
        if target in sources:
            raise UsageError(f"{source} and {sources[target]} have the same output {target}; use two output folders")
        sources[target] = source
    return pairs
