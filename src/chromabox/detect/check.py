"""What is in a detection data set and what is wrong with it: counts, faults of labels, damaged and doubled pictures."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chromabox.detect.data import load_detection_set
from chromabox.detect.labelled import DetectionSet, Fault, legible
from chromabox.detect.twins import Twins, find_twins, fingerprints
from chromabox.engine.logger import progress

#: Boxes below which a class is told to be thin: a figure from so few is chance.
FEW_BOXES = 5


@dataclass(frozen=True)
class DetectionCheck:
    """The data as loaded, and all that was found. Nothing of it changes a file."""

    data: DetectionSet
    faults: tuple[Fault, ...]
    """Of labels and of pictures, the damaged ones among them."""
    empty: tuple[Path, ...]
    """Pictures without any box, which teach a detector only what is not there; often on purpose."""
    twins: tuple[Twins, ...]

    @property
    def crossing(self) -> tuple[Twins, ...]:
        """Twins of different splits: what was learnt by heart would be counted as recognised."""
        splits = {one.path: one.split for one in self.data.pictures}
        return tuple(pair for pair in self.twins if splits[pair.first] != splits[pair.second])

    @property
    def boxes(self) -> dict[str, dict[str, int]]:
        """Of each split, the number of boxes of each class."""
        counts = {}
        for split in self.data.splits:
            labels = [one.classes for one in self.data.pictures if one.split == split]
            of_class = np.bincount(np.concatenate([np.zeros(0, np.int64), *labels]), minlength=len(self.data.classes))
            counts[split] = dict(zip(self.data.classes, of_class.tolist(), strict=True))
        return counts

    @property
    def kinds(self) -> dict[str, int]:
        """How many faults there are of each kind."""
        return dict(Counter(fault.kind for fault in self.faults).most_common())

    @property
    def sound(self) -> bool:
        """Whether nothing is broken: no fault but huge boxes, which may be right, and no twins across splits."""
        return not (self.kinds.keys() - {"huge box"}) and not self.crossing

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "format": self.data.format,
            "classes": list(self.data.classes) if self.data.named else None,
            "pictures": dict(Counter(one.split for one in self.data.pictures)),
            "boxes": self.boxes,
            "empty": [legible(path) for path in self.empty],
            "faults": [
                {
                    "kind": one.kind,
                    "file": legible(one.path),
                    "line": one.line,
                    "text": legible(one.text),
                    "dropped": one.dropped,
                }
                for one in self.faults
            ],
            "twins": [
                {"first": legible(one.first), "second": legible(one.second), "exact": one.exact, "bits": one.bits}
                for one in self.twins
            ],
            "twins_across_splits": len(self.crossing),
        }


def check_detection_set(path: Path | str, *, show_progress: bool = False) -> DetectionCheck:
    """Look at every label and decode every picture.

    Raises what `load_detection_set` raises.
    """
    data = load_detection_set(path)
    with progress("checking", len(data.pictures), unit="pictures", show=show_progress) as tick:
        prints, damaged = fingerprints([one.path for one in data.pictures], tick)
    broken = [Fault("damaged picture", place, None, f"{why}; left out", True) for place, why in damaged.items()]
    return DetectionCheck(
        data=data,
        faults=(*data.faults, *broken),
        empty=tuple(one.path for one in data.pictures if len(one.boxes) == 0),
        twins=tuple(find_twins(prints)),
    )
