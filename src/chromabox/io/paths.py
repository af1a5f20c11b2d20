"""Input images and videos of a command and the paths of the corresponding outputs."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from glob import glob
from pathlib import Path

from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.atomic import check_writable_folder
from chromabox.io.images import IMAGE_SUFFIXES, check_not_input, check_not_url
from chromabox.io.kinds import VIDEO_SUFFIXES, WRITABLE_VIDEO_SUFFIXES, count_skipped, is_video, list_folder
from chromabox.io.manifest import MANIFEST_NAME, Manifest

#: Suffixes of images that the outputs keep. For all other images, the outputs are PNG files.
WRITABLE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".webp", ".bmp"}
#: Suffixes of files that are not folders but cannot be written.
_OTHER_SUFFIXES = {".jxl", ".pdf", ".psd", ".svg", ".eps", ".ico"}
#: Path of a file, and its path relative to the input folder.
FoundFile = tuple[Path, Path]


@dataclass
class Selection:
    """Files that a command processes, and what else lies in the input folders.

    ``skipped`` contains the files that are not processed, by reason. ``unreadable`` are errors of subfolders.
    ``is_single`` is true if the only input is one file.
    """

    images: list[FoundFile] = field(default_factory=list)
    videos: list[FoundFile] = field(default_factory=list)
    skipped: dict[str, list[Path]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    is_single: bool = False

    @property
    def files(self) -> list[FoundFile]:
        """Images and videos."""
        return self.images + self.videos


def expand_patterns(inputs: Sequence[Path]) -> list[Path]:
    """Replace patterns such as ``*.jpg`` by the files that match them. Not every shell does this.

    The path of an existing file is not a pattern. Raise UsageError for a pattern that matches nothing.
    """
    paths: list[Path] = []
    for path in inputs:
        if os.path.lexists(path) or not any(char in str(path) for char in "*?"):
            paths.append(path)
        elif matches := sorted(glob(str(path))):
            paths += map(Path, matches)
        else:
            raise UsageError(f"{path}: no file matches this pattern; expected images, folders or videos")
    return paths


def select_inputs(
    inputs: Sequence[Path], output: Path | None = None, *, match: Sequence[str] = (), recursive: bool = True
) -> Selection:
    """Return every image and video in the inputs, together with its path relative to the input folder.

    For an input file, the relative path is its name. A file that is given several times is included once.

    Args:
        inputs: folders, files and patterns (see :func:`expand_patterns`). Files that are not videos count as images.
        output: output folder. Files in it, and files that it or a manifest in a subfolder names, are earlier results
            and are not processed.
        match: patterns such as ``*.jpg`` or ``scans/*``. Files in folders are included if any pattern matches. A
            pattern without a slash is matched against the file name. A pattern with a slash is matched against the path
            relative to the folder, and ``*`` also matches slashes. Case is ignored.
        recursive: whether subfolders are searched.

    Raise UsageError for inputs that do not exist and patterns that match no image, and ChromaboxError for folders
    without images and videos.
    """
    selection, seen = Selection(), set[Path]()
    patterns = [pattern.lower() for pattern in match] or ["*"]
    expanded = expand_patterns(inputs)
    results = set() if output is None else Manifest(output / MANIFEST_NAME, {}).files()

    def add(kind: list[FoundFile], path: Path, relative: Path) -> None:
        # The file itself can be a link, whose name determines the name of the output.
        identity = path.parent.resolve() / path.name
        if identity not in seen:
            seen.add(identity)
            kind.append((path, relative))

    for path in expanded:
        if not path.is_dir():
            if not os.path.lexists(path):
                check_not_url(path)
                raise UsageError(f"{path} does not exist: expected an image, a video or a folder")
            add(selection.videos if is_video(path) else selection.images, path, Path(path.name))
            continue
        content = list_folder(path, IMAGE_SUFFIXES, recursive=recursive)
        selection.unreadable += content.unreadable
        for reason, paths in content.skipped.items():
            ours = [skipped for skipped in paths if skipped.name != MANIFEST_NAME]
            if ours:
                selection.skipped.setdefault(reason, []).extend(ours)
        results |= {
            file
            for manifest in content.skipped.get("hidden", ())
            if manifest.name == MANIFEST_NAME and manifest.parent != path
            for file in Manifest(manifest, {}).files()
        }
        inside = output is not None and path.resolve() in output.resolve().parents
        for files, kind in ((content.images, selection.images), (content.videos, selection.videos)):
            for file in files:
                relative = file.relative_to(path)
                names = (relative.as_posix().lower(), relative.name.lower())
                if Path(os.path.abspath(file)) in results or (
                    inside and output is not None and output.resolve() in file.resolve().parents
                ):
                    selection.skipped.setdefault("result of an earlier run", []).append(file)
                elif any(fnmatchcase(names["/" not in pattern], pattern) for pattern in patterns):
                    add(kind, file, relative)
                else:
                    selection.skipped.setdefault("does not match --match", []).append(file)
    selection.is_single = len(inputs) == len(selection.files) == 1 and not inputs[0].is_dir()
    if not selection.files:
        folders = ", ".join(str(path) for path in inputs)
        if "does not match --match" in selection.skipped:
            raise UsageError(f"--match: no image in {folders} matches {' or '.join(match)}; use another pattern")
        found = "; ".join([*count_skipped(selection.skipped), *selection.unreadable])
        raise ChromaboxError(f"{folders}: contains no images to process{'; ' if found else ''}{found}")
    return selection


def expand_inputs(
    inputs: Sequence[Path], output: Path | None = None, *, match: Sequence[str] = (), recursive: bool = True
) -> list[FoundFile]:
    """Return the images of :func:`select_inputs`."""
    return select_inputs(inputs, output, match=match, recursive=recursive).images


def map_outputs(
    inputs: Sequence[Path], output: Path, *, match: Sequence[str] = (), recursive: bool = True
) -> list[tuple[Path, Path]]:
    """Return the path of every input image and video and the path of its output.

    The arguments and errors are those of :func:`select_inputs` and :func:`name_outputs`.
    """
    return name_outputs(select_inputs(inputs, output, match=match, recursive=recursive), output)


def name_outputs(selection: Selection, output: Path) -> list[tuple[Path, Path]]:
    """Return the path of every selected file and the path of its output.

    For a single file, ``output`` can be a file. Otherwise, it is a folder, in which subfolders of the inputs are kept.
    Raise UsageError for an output that is an input, a suffix that cannot be written, several inputs with one output
    file, and two inputs that would have the same output. Raise ChromaboxError for a folder that cannot be written to.
    """
    if str(output) == "-" or output.name.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        raise UsageError(f"{output}: is not a file name; expected the path of a file or a folder")
    suffix = output.suffix.lower()
    writable = WRITABLE_SUFFIXES if selection.images else WRITABLE_VIDEO_SUFFIXES
    is_file_name = suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES | _OTHER_SUFFIXES and not output.is_dir()
    if selection.is_single and is_file_name and suffix not in writable:
        kind = "an image" if selection.images else "a video"
        expected = ", ".join(sorted(writable))
        raise UsageError(f"{output}: unsupported output format for {kind}; expected {expected}, or a folder")
    if output.is_file() and not selection.is_single:
        raise UsageError(
            f"{output}: is a file; expected a folder for the outputs (inputs: {len(selection.files)}); use -o FOLDER"
        )
    if is_file_name and not selection.is_single:
        raise UsageError(
            f"{output}: {len(selection.files)} inputs cannot be written to one file; use -o FOLDER (each output is "
            f"written in the format of its input or as PNG; a single image can be written as "
            f"{', '.join(sorted(WRITABLE_SUFFIXES))})"
        )
    if selection.is_single and is_file_name:
        pairs = [(selection.files[0][0], output)]
    elif output.is_file():
        raise UsageError(f"{output}: is a file; expected a folder, or a file name with {', '.join(sorted(writable))}")
    else:
        names = [(path, _output_name(relative)) for path, relative in selection.images]
        names += [(path, _video_output_name(relative)) for path, relative in selection.videos]
        pairs = [(path, output / name) for path, name in names]
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


def _output_name(path: Path) -> Path:
    """Return the name of the output. A suffix of an image format that is not written is replaced by ``.png``."""
    suffix = path.suffix.lower()
    if suffix in WRITABLE_SUFFIXES:
        return path
    return path.with_suffix(".png") if suffix in IMAGE_SUFFIXES else path.with_name(f"{path.name}.png")


def _video_output_name(path: Path) -> Path:
    """Return the name of the output. A suffix that is not written is replaced by that of Matroska, which can contain
    most audio and subtitle formats.
    """
    return path if path.suffix.lower() in WRITABLE_VIDEO_SUFFIXES else path.with_suffix(".mkv")


def check_outputs(
    outputs: Sequence[Path], inputs: Sequence[Path], *, overwrite: bool = False, manifest: Manifest | None = None
) -> None:
    """Check that the outputs of a command can be written and that no file is lost.

    Raise UsageError if an output is an input, if two outputs are the same file, if the folder of an output is a file,
    or if an output exists. An existing file is allowed if ``overwrite`` is true or the manifest of the output folder
    names it. Raise ChromaboxError for a folder that cannot be written to.
    """
    check_not_input(inputs, *outputs)
    for folder in {output.parent for output in outputs}:
        check_writable_folder(folder)
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
        found = "exists" if manifest is None else "exists and was not written by this command"
        raise UsageError(f"{taken[0]}{more}: {found}; use --overwrite to replace it, or another output path")


def check_writable(path: Path) -> None:
    """Raise ChromaboxError if a file is write-protected. A rename would replace it in spite of the protection."""
    if path.exists() and not path.stat().st_mode & 0o222:
        raise ChromaboxError(f"{path}: is write-protected; use --overwrite to replace it, or another output path")
