"""How a net fares with vivid colours and with dull ones."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8

from chromabox.colour.answers import Answers
from chromabox.colour.palette import Palette
from chromabox.colour.palette_classes import lab_of


def vivid_colours(palette: Palette) -> Bool[np.ndarray, " colours"]:
    """The half of a palette with the greater chroma, √(a*² + b*²) in CIELab; the rest are dull."""
    chroma = np.hypot(*lab_of(palette.rgb)[:, 1:].T)
    return np.asarray(chroma > np.median(chroma))


@dataclass(frozen=True)
class Vividness:
    """Shares, 0 to 1; not-a-number where there is nothing to share."""

    true: float
    """Pixels whose true colour is vivid."""
    said: float
    """Pixels to which the net gives a vivid colour."""
    expected: float
    """The probability that the net gives to vivid colours, mean over the pixels."""
    vivid_right: float
    """Of the pixels of vivid colour those that are right."""
    dull_right: float
    """Of the pixels of dull colour those that are right."""


def vividness(
    answers: Answers, truth: UInt8[np.ndarray, "pictures height width"], vivid: Bool[np.ndarray, " colours"]
) -> Vividness:
    """Compare a net's answers with the truth, for the colours that are ``vivid`` and for the others."""
    right, lively = answers.right, vivid[truth]
    hits, count = int(right[lively].sum()), int(lively.sum())
    dull_hits, dull_count = int(right.sum()) - hits, lively.size - count
    return Vividness(
        true=count / lively.size,
        said=float(vivid[answers.labels].mean()),
        expected=float(answers.expected[vivid].sum()),
        vivid_right=hits / count if count else float("nan"),
        dull_right=dull_hits / dull_count if dull_count else float("nan"),
    )
