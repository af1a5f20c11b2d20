"""Images of a run: the file ``splits.json``, and recognition of the images in a dataset that was moved or changed.

The file contains, for each split, the path of each image, the SHA-256 of its file, and a digest of its boxes.
``unused`` contains the SHA-256 of the other images of the dataset. Files of earlier versions contain only the paths.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chromabox.detect.data.dataset import DetectionDataset, Sample, count_common_parts, list_names
from chromabox.engine.checkpoint import write_json
from chromabox.errors import ChromaboxError
from chromabox.io.atomic import parse_json
from chromabox.io.manifest import sha256_file

log = logging.getLogger(__name__)

SPLITS = ("train", "early_stopping", "val")


@dataclass(frozen=True)
class RunImage:
    """Path of an image, SHA-256 of its file, and digest of its boxes. Earlier versions stored only the path."""

    path: str
    sha256: str = ""
    labels: str = ""


@dataclass(frozen=True)
class RunImages:
    """Images of a run by split (None: no such split), warnings, and SHA-256 of the other images of the dataset."""

    splits: Mapping[str, Sequence[RunImage] | None]
    warnings: Sequence[str]
    unused: Sequence[str]

    @classmethod
    def read(cls, path: Path) -> "RunImages":
        """Read a file written by :meth:`write` or by an earlier version. Raise ChromaboxError if it is damaged."""
        try:
            values = parse_json(path.read_text(encoding="utf-8"))
            splits = {name: None if values[name] is None else tuple(map(_run_image, values[name])) for name in SPLITS}
            if splits["train"] is None or splits["val"] is None:
                raise ValueError("train or val is missing")
            warnings, unused = ([str(text) for text in values.get(name, ())] for name in ("warnings", "unused"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ChromaboxError(
                f"{path}: the file is damaged ({error!r}); restore it from a copy, or start a new run"
            ) from error
        return cls(splits, warnings, unused)

    def write(self, path: Path) -> None:
        """Write the images and warnings as JSON."""
        splits = {
            name: None if images is None else [asdict(image) for image in images]
            for name, images in self.splits.items()
        }
        write_json(path, {**splits, "warnings": list(self.warnings), "unused": list(self.unused)})

    def find(
        self, path: Path, data: DetectionDataset, digests: Mapping[Path, str]
    ) -> dict[str, tuple[Sample, ...] | None]:
        """Return the samples of each split. Images that were added to the dataset are logged as a warning.

        ``digests`` contains the SHA-256 of every image file of ``data``.

        Raise ChromaboxError, which names ``path``, if images are missing or if images or boxes have changed.
        """
        finder = _SampleFinder(data, digests)
        found = {
            name: None if images is None else tuple(finder(image) for image in images)
            for name, images in self.splits.items()
        }
        if finder.changes:
            lines = (f"{kind}: {len(names)} ({list_names(names)})" for kind, names in finder.changes.items())
            raise ChromaboxError(
                f"{path}: the dataset has changed since the run was started: {'; '.join(lines)}; restore the dataset "
                "or start a new run"
            )
        known = {*self.unused, *(image.sha256 for images in self.splits.values() for image in images or ())}
        added = [] if "" in known else [str(image) for image, digest in digests.items() if digest not in known]
        if added:
            log.warning(
                f"images added since the run was started, which are not used: {len(added)} ({list_names(added)})"
            )
        return found


def find_trained_images(path: Path, data: DetectionDataset) -> list[Path]:
    """Return the images of a dataset with which a run was trained, including those for early stopping.

    ``path`` is the file ``splits.json`` of the run. Images are recognised by their contents, or by their paths if the
    run was written by an earlier version.

    Raise ChromaboxError if the file is damaged.
    """
    splits = RunImages.read(path).splits
    trained = [*(splits["train"] or ()), *(splits["early_stopping"] or ())]
    paths, digests = {image.path for image in trained if not image.sha256}, {image.sha256 for image in trained}
    images = dict.fromkeys(sample.path for sample in data.samples)
    return [image for image in images if str(image) in paths or sha256_file(image) in digests]


def labels_digest(sample: Sample) -> str:
    """Return a digest of the boxes of an image, rounded to 0.01 pixels, with their classes and crowd marks."""
    rows = np.column_stack([sample.boxes.round(2) + 0.0, sample.class_ids, sample.is_crowd])
    return hashlib.sha256(rows.astype("<f8").tobytes()).hexdigest()[:16]


def _run_image(value: Any) -> RunImage:
    """Return the image described by a value in the file. Raise TypeError or ValueError if the value is invalid."""
    image = RunImage(value) if isinstance(value, str) else RunImage(**value)
    if not all(isinstance(text, str) for text in (image.path, image.sha256, image.labels)):
        raise ValueError("expected text")
    return image


class _SampleFinder:
    """Search for the images of a run in a dataset. ``changes`` contains the images that were not found, by reason."""

    def __init__(self, data: DetectionDataset, digests: Mapping[Path, str]) -> None:
        self.samples, self.changes = data.samples, dict[str, list[str]]()
        self.by_key: dict[str, list[Sample]] = {}
        for sample in data.samples:
            for key in (str(sample.path), digests[sample.path]):
                self.by_key.setdefault(key, []).append(sample)

    def __call__(self, image: RunImage) -> Sample:
        """Return the sample of an image. Of identical images, prefer those with the same boxes and similar paths."""
        path = Path(image.path)

        def similarity(sample: Sample) -> tuple[bool, int]:
            return labels_digest(sample) == image.labels, count_common_parts(sample.path.parts, path.parts)

        found = max(self.by_key.get(image.sha256 or image.path, ()), key=similarity, default=None)
        if found is None:
            is_changed = any(sample.path.name == path.name for sample in self.samples)
            self.changes.setdefault("changed images" if is_changed else "missing images", []).append(image.path)
            return self.samples[0]  # The caller reports the change.
        if image.labels not in ("", labels_digest(found)):
            self.changes.setdefault("images with changed labels", []).append(str(found.path))
        return found
