"""A trained detector for other classes: what its heads know of boxes, objects and shared classes stays."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from chromabox.detect.labelled import plain_name
from chromabox.detect.layers import Architecture, Convolution, Yolo
from chromabox.detect.nets import DetectorNet
from chromabox.detect.weights import TrainedDetector
from chromabox.errors import ChromaboxError, UsageError

#: The surest that an untrained class may be; where there is one class alone, every object is of it.
HIGHEST_PRIOR = 0.99


def with_classes(
    trained: TrainedDetector, names: Sequence[str], keep_old: bool = False, *, surest: float = HIGHEST_PRIOR
) -> TrainedDetector:
    """The detector with heads for the classes ``names``, matched by name; everything but class rows is copied.

    Names are compared without regard to case and to "_" or "-" for a space. Rows of classes that the detector knows are
    kept. A new class begins at the same score everywhere, one part in as many as there are classes: its weights are 0
    and only its bias speaks, which no place and no picture prefers.

    Args:
        names: all different.
        keep_old: the old classes stay, in their places, and names that are new are appended.
        surest: above 0 and below 1, the highest score at which a new class may begin.

    Returns:
        A new detector in evaluation mode; ``trained`` is not touched. Raises UsageError for names that are no such
        list, ChromaboxError for a net whose heads do not end in a plain convolution.
    """
    _refuse_names(names)
    old = {plain_name(name): index for index, name in enumerate(trained.classes)}
    classes = [name for name in names if not (keep_old and plain_name(name) in old)]
    classes = [*trained.classes, *classes] if keep_old else classes
    rows = [old.get(plain_name(name), -1) for name in classes]
    net = DetectorNet.blank(_architecture(trained.architecture, len(classes)), trained.kind)
    state = trained.net.state_dict()
    for head in net.architecture.heads:
        yolo = net.architecture.layers[head]
        assert isinstance(yolo, Yolo)
        for part in ("weight", "bias"):
            name = f"layers.{head - 1}.convolution.{part}"
            state[name] = _rows(state[name], len(yolo.mask), rows, surest)
    net.load_state_dict(state)
    kept = [name for name, row in zip(classes, rows, strict=True) if row >= 0]
    begun = [name for name, row in zip(classes, rows, strict=True) if row < 0]
    description = {**trained.description, "surgery": {"kept": kept, "new": begun}}
    return TrainedDetector(net.eval(), tuple(classes), trained.size, description)


def _refuse_names(names: Sequence[str]) -> None:
    plain = [plain_name(name) for name in names]
    twice = next((name for name in plain if plain.count(name) > 1), None)
    if not names or twice is not None:
        problem = "none is given" if not names else f"{twice!r} stands there twice"
        raise UsageError(f"classes: {problem}; at least one name, and all different, is right")


def _architecture(architecture: Architecture, classes: int) -> Architecture:
    layers = list(architecture.layers)
    for head in architecture.heads:
        yolo, before = layers[head], layers[head - 1]
        assert isinstance(yolo, Yolo)
        if not isinstance(before, Convolution) or before.batch_normalise or before.groups > 1:
            raise ChromaboxError(
                f"{architecture.name}: layer {head} is no head behind a plain convolution with a bias; "
                "its classes cannot be changed"
            )
        layers[head] = replace(yolo, classes=classes)
        layers[head - 1] = replace(before, filters=len(yolo.mask) * (5 + classes))
    return replace(architecture, layers=tuple(layers))


def _rows(values: Tensor, anchors: int, rows: Sequence[int], surest: float) -> Tensor:
    """Kernel or bias of a head: of every anchor the five rows of box and objectness, then those of the classes."""
    by_anchor = values.unflatten(0, (anchors, -1))
    prior = min(1 / len(rows), surest)
    begun = torch.full_like(by_anchor[:, :1], math.log(prior / (1 - prior)) if values.ndim == 1 else 0.0)
    parts = [by_anchor[:, :5], *(begun if row < 0 else by_anchor[:, 5 + row : 6 + row] for row in rows)]
    return torch.cat(parts, 1).flatten(0, 1)
