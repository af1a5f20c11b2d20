"""The result of detection: bounding boxes with scores and classes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, Shaped

from chromabox.errors import missing_package


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections in one image, in decreasing order of confidence.

    Indexing with a slice, a boolean mask or an array of indices selects detections. Indexing with an integer returns a
    single detection, which is also a ``Detections`` object. Iteration yields single detections. An example of a mask::

        people = detections[(detections.class_names == "person") & (detections.confidence > 0.6)]

    Args:
        xyxy: left, top, right and bottom of the boxes in pixels of the image.
        confidence: scores in [0, 1].
        class_id: indices of the classes.
        class_names: names of the classes, as strings.
    """

    xyxy: Float32[np.ndarray, "detections 4"]
    confidence: Float32[np.ndarray, " detections"]
    class_id: Int64[np.ndarray, " detections"]
    class_names: Shaped[np.ndarray, " detections"]

    def __len__(self) -> int:
        return len(self.xyxy)

    def __getitem__(self, index: Any) -> "Detections":
        rows = np.atleast_1d(np.arange(len(self))[index])  # An out-of-range integer raises IndexError.
        return Detections(self.xyxy[rows], self.confidence[rows], self.class_id[rows], self.class_names[rows])

    def __iter__(self) -> Iterator["Detections"]:
        return (self[index] for index in range(len(self)))

    def to_supervision(self) -> Any:
        """Return the detections as ``supervision.Detections``, with the names in ``data["class_name"]``.

        Raise UsageError if supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise missing_package("to_supervision()", error) from error
        return supervision.Detections(
            xyxy=self.xyxy,
            confidence=self.confidence,
            class_id=self.class_id,
            data={"class_name": np.asarray(self.class_names, str)},
        )
