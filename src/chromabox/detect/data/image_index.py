"""Search for the image that a label file or an entry of a label file names.

A name is not enough to identify an image: `train/0.jpg` and `test/0.jpg` are different images, and so are `1.jpg` and
`1.png`.
"""

import os
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath

from chromabox.detect.data.dataset import count_common_parts, iter_files, split_from_path, split_role
from chromabox.io.images import IMAGE_SUFFIXES


class ImageIndex:
    """All images in a folder and its subfolders, which are found by name."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for path in iter_files(root):
            self._by_stem[_comparable(path.stem)].append(path)

    def find(
        self, name: str, source: Path, split: str = "", *, any_suffix: bool = False, any_split: bool = False
    ) -> list[Path]:
        """Return the images that `source` most probably denotes by `name`: none, one, or several that match equally.

        A path relative to the folder of `source` denotes this file. Otherwise, the best match is the image whose
        folders end most like those of `name`, then the nearest image (see `_distance`), then an image with the exact
        name. Case and the Unicode normalisation of names are ignored, because file systems change them.

        Args:
            name: file name or path, with "/" or Windows' backslashes.
            source: label file.
            split: the split of the labels; "" for the split that the folders of `source` denote.
            any_suffix: whether the suffix of the image may differ from the suffix of `name`.
            any_split: whether the image may be in the folder of another split.
        """
        declared = PurePosixPath(name.replace("\\", "/"))
        literal = os.path.normpath(source.parent / declared)
        if os.path.isfile(literal):
            return [Path(literal)]
        is_image_name = declared.suffix.lower() in IMAGE_SUFFIXES
        stem = declared.stem if is_image_name else declared.name
        split = split_from_path(Path(declared), Path()) or split or split_from_path(source, self._root)
        folders = [_comparable(part) for part in declared.parts[:-1]]
        ranks: dict[Path, tuple[int, int, bool]] = {}
        for path in self._by_stem.get(_comparable(stem), ()):
            image_split = split_from_path(path, self._root)
            is_other_split = bool(split and image_split) and split_role(split) != split_role(image_split)
            is_other_suffix = path.suffix.lower() != declared.suffix.lower()
            if (is_other_suffix and not any_suffix) or (is_other_split and not any_split):
                continue
            shared = count_common_parts([_comparable(part) for part in path.parts[:-1]], folders)
            ranks[path] = (-shared, self._distance(path, source, split), path.name != declared.name)
        best = min(ranks.values(), default=None)
        return [path for path, rank in ranks.items() if rank == best]

    def _distance(self, image: Path, source: Path, split: str) -> int:
        """Return the number of folder names that only one of the two paths contains.

        The split counts as a folder of `source`, and the names of a split are equal (``valid``, ``val2017``).
        """
        image_folders = Counter(map(_folder_key, image.relative_to(self._root).parts[:-1]))
        folders = source.relative_to(self._root).parts[:-1] if source.is_relative_to(self._root) else ()
        source_folders = Counter(map(_folder_key, folders))
        if split:
            source_folders[_folder_key(split)] = 1
        return (image_folders - source_folders).total() + (source_folders - image_folders).total()


def _comparable(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _folder_key(name: str) -> str:
    """Return the comparable name of a folder, or the role of the split that it denotes."""
    return split_role(name) or _comparable(name)
