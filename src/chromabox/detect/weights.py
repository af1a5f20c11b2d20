"""Detector weights of every origin, read into one thing: a net, the names of its classes, and where it comes from."""

from dataclasses import dataclass
from typing import Any

from chromabox.detect.kinds import Kind
from chromabox.detect.layers import Architecture
from chromabox.detect.nets import DetectorNet


@dataclass(frozen=True)
class TrainedDetector:
    """A net in evaluation mode, the names of its classes, the side it is usually shown, and its history."""

    net: DetectorNet
    classes: tuple[str, ...]
    size: int
    description: dict[str, Any]

    @property
    def architecture(self) -> Architecture:
        return self.net.architecture

    @property
    def kind(self) -> Kind:
        return self.net.kind
