"""What the numbers of a detector mean: three families of weights that fit the same nets and mean different things.

A net loads weights of the wrong kind without a word and is only worse by it. The kind is therefore said by whoever
brings the weights, kept with them, and never guessed from shapes.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from chromabox.errors import UsageError


@dataclass(frozen=True)
class Kind:
    """One family of weights.

    Args:
        name: as ``--kind`` and checkpoints have it.
        activation: what the architecture's ``leaky`` stands for: leaky ReLU with slope 0.1, or SiLU.
        decode: what a head's t means, for a cell (column, row), its stride and an anchor of (width, height) pixels.
            ``exp``: centre (σ(t) + cell)·stride, size e^t·anchor (Redmon and Farhadi 2018). ``sigmoid2``: centre
            (2σ(t) − 0.5 + cell)·stride, size (2σ(t))²·anchor.
        epsilon: added to the variance in batch normalisation.
        momentum: of the running statistics, as PyTorch counts: the new batch's share.
        letterbox_grey: in [0, 1], around a picture that is not square.
        tiny_pool_padding: with which the 2×2 max-pool of stride 1 pads right and bottom.
        tiny_mask: the anchors of YOLOv3-tiny's second head.
    """

    name: str
    activation: Literal["leaky", "silu"]
    decode: Literal["exp", "sigmoid2"]
    epsilon: float
    momentum: float
    letterbox_grey: float
    tiny_pool_padding: float
    tiny_mask: tuple[int, int, int]

    def as_json(self) -> dict[str, Any]:
        """What a checkpoint says of the kind; the infinite padding in words, which JSON has no number for."""
        return {**asdict(self), "tiny_pool_padding": str(self.tiny_pool_padding), "tiny_mask": list(self.tiny_mask)}


DARKNET = Kind("darknet", "leaky", "exp", 1e-5, 0.01, 0.5, float("-inf"), (1, 2, 3))
ULTRALYTICS_9_0 = Kind("ultralytics-9.0", "leaky", "sigmoid2", 1e-3, 0.03, 114 / 255, 0.0, (0, 1, 2))
ULTRALYTICS_9_6 = Kind("ultralytics-9.6", "silu", "sigmoid2", 1e-3, 0.03, 114 / 255, 0.0, (0, 1, 2))
KINDS = {kind.name: kind for kind in (DARKNET, ULTRALYTICS_9_0, ULTRALYTICS_9_6)}


def kind_named(name: str) -> Kind:
    """UsageError for a name that is none."""
    if name not in KINDS:
        raise UsageError(f"kind is {name!r}: the kinds of detector weights are {', '.join(KINDS)}")
    return KINDS[name]


def kind_from_json(stored: dict[str, Any]) -> Kind:
    """The inverse of :meth:`Kind.as_json`. Raises KeyError, TypeError or ValueError for anything else."""
    padding, mask = float(stored["tiny_pool_padding"]), tuple(stored["tiny_mask"])
    return Kind(**{**stored, "tiny_pool_padding": padding, "tiny_mask": mask})
