"""Input images of a command and the paths of the corresponding outputs."""

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.atomic import check_writable_folder
from chromabox.io.images import IMAGE_SUFFIXES, check_not_input, find_images
from chromabox.io.manifest import Manifest

#: Suffixes of inputs that the outputs keep. For all other inputs, the outputs are PNG files.
WRITABLE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp"}


def expand_inputs(
    inputs: Sequence[Path], output: Path | None = None, *, match: Sequence[str] = (), recursive: bool = True
) -> list[tuple[Path, Path]]:
    """Return the path of every image in the inputs, together with its path relative to the input folder.

    For an input file, the relative path is its name.

    Args:
        inputs: folders and files. Files are included whatever their suffix.
        output: output folder. If this folder is inside an input folder, its images are results and are excluded.
        match: patterns such as ``*.jpg`` or ``scans/*``. Images in folders are included if any pattern matches. A
            pattern without a slash is matched against the file name. A pattern with a slash is matched against the path
            relative to the folder, and ``*`` also matches slashes. Case is ignored.
        recursive: whether subfolders are searched.

    Raise UsageError for inputs that do not exist and patterns that match no image, and ChromaboxError for folders
    without images.
    """
    selected: list[tuple[Path, Path]] = []
    for path in inputs:
        images = find_images([path], recursive=recursive)
        if path.is_dir():
            patterns = [pattern.lower() for pattern in match] or ["*"]
            images = [
                (file, relative)
                for file, relative in images
                if any(fnmatchcase((relative.as_posix() if "/" in p else relative.name).lower(), p) for p in patterns)
            ]
            if output is not None and path.resolve() in output.resolve().parents:
                images = [entry for entry in images if output.resolve() not in entry[0].resolve().parents]
        selected += images
    if not selected:
        folders = ", ".join(str(path) for path in inputs)
        if match:
            raise UsageError(f"--match: no image in {folders} matches {' or '.join(match)}; use another pattern")
        raise ChromaboxError(f"{folders}: no images except those in {output}; use a folder with other images")
    return selected


def map_outputs(
    inputs: Sequence[Path], output: Path, *, match: Sequence[str] = (), recursive: bool = True
) -> list[tuple[Path, Path]]:
    """Return the path of every input image and the path of its output.

    For a single image, ``output`` can be a file. Otherwise, it is a folder, in which subfolders of the inputs are kept.
    ``match`` and ``recursive`` are as in :func:`expand_inputs`. Raise the same errors, and UsageError for an output
    that is an input, a suffix that cannot be written, and two inputs that would have the same output. Raise
    ChromaboxError for a folder that cannot be written to.
    """
    selected = expand_inputs(inputs, output, match=match, recursive=recursive)
    suffix = output.suffix.lower()
    if suffix in IMAGE_SUFFIXES - WRITABLE_SUFFIXES and not output.is_dir():
        raise UsageError(f"{output}: unsupported output format; expected {', '.join(sorted(WRITABLE_SUFFIXES))}")
    if len(selected) == 1 and inputs[0].is_file() and suffix in WRITABLE_SUFFIXES:
        pairs = [(selected[0][0], output)]
    elif output.is_file():
        raise UsageError(
            f"{output}: is a file; expected a folder for the outputs (input images: {len(selected)}); use -o FOLDER"
        )
    else:
        names = (path if path.suffix.lower() in WRITABLE_SUFFIXES else path.with_suffix(".png") for _, path in selected)
        pairs = [(path, output / name) for (path, _), name in zip(selected, names, strict=True)]
    check_not_input([path for path, _ in pairs], output, *(target for _, target in pairs))
    check_writable_folder(output.parent if pairs[0][1] == output else output)
    sources: dict[Path, Path] = {}
    for source, target in pairs:
        if target in sources:
            raise UsageError(
                f"{source} and {sources[target]} would be written to the same file {target}; "
                "process them separately, with different output folders"
            )
        sources[target] = source
    return pairs


def check_outputs(
    outputs: Sequence[Path], inputs: Sequence[Path], *, overwrite: bool = False, manifest: Manifest | None = None
) -> None:
    """Check that no file is lost when the outputs of a command are written.

    Raise UsageError if an output is an input, if two outputs are the same file, or if an output exists. An existing
    file is allowed if ``overwrite`` is true or the manifest of the output folder names it.
    """
    check_not_input(inputs, *outputs)
    seen: set[Path] = set()
    for output in outputs:
        resolved = output.resolve()
        if resolved in seen:
            raise UsageError(f"{output}: two outputs would be written to this file; use different output paths")
        seen.add(resolved)
    ours = set() if manifest is None else manifest.files()
    taken = [path for path in outputs if os.path.lexists(path) and Path(os.path.abspath(path)) not in ours]
    if taken and not overwrite:
        more = f" (and {len(taken) - 1} other outputs)" if len(taken) > 1 else ""
        raise UsageError(
            f"{taken[0]}{more}: exists and was not written by this command; "
            "use --overwrite to replace it, or another output path"
        )


def check_writable(path: Path) -> None:
    """Raise ChromaboxError if a file is write-protected. A rename would replace it in spite of the protection."""
    if path.exists() and not path.stat().st_mode & 0o222:
        raise ChromaboxError(f"{path}: is write-protected; use --overwrite to replace it, or another output path")
