"""Decoding against the formulas of Redmon and Farhadi (2018) and of the second kind, cell by cell in plain Python."""

import math
from dataclasses import replace

import pytest
import torch

from chromabox.detect.models.architecture import Architecture, yolov3_tiny
from chromabox.detect.models.darknet import DARKNET, ULTRALYTICS_9_0, Variant, decode_all, decode_candidates

SIZE = 64


def sigmoid(t: float) -> float:
    return 1 / (1 + math.exp(-t))


def some_outputs(architecture: Architecture, batch: int = 2, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, len(yolo.mask), 5 + yolo.classes, SIZE // stride, SIZE // stride, generator=generator)
        for yolo, stride in zip(architecture.yolo_layers, architecture.strides, strict=True)
    ]


@pytest.mark.parametrize("kind", [DARKNET, ULTRALYTICS_9_0])
def test_every_box_by_the_formula(kind: Variant) -> None:
    architecture = yolov3_tiny(num_classes=3)
    outputs = some_outputs(architecture)
    boxes, scores = decode_all(outputs, architecture, kind, SIZE)
    place = 0
    for output, yolo, stride in zip(outputs, architecture.yolo_layers, architecture.strides, strict=True):
        for a, (wide, high) in enumerate(yolo.head_anchors):
            for row in range(output.shape[-2]):
                for column in range(output.shape[-1]):
                    x, y, w, h, objectness, *classes = output[1, a, :, row, column].tolist()
                    if kind.decode == "exp":
                        centre = (sigmoid(x) + column) * stride, (sigmoid(y) + row) * stride
                        sides = math.exp(w) * wide, math.exp(h) * high
                    else:
                        centre = (2 * sigmoid(x) - 0.5 + column) * stride, (2 * sigmoid(y) - 0.5 + row) * stride
                        sides = (2 * sigmoid(w)) ** 2 * wide, (2 * sigmoid(h)) ** 2 * high
                    expected = [
                        centre[0] - sides[0] / 2,
                        centre[1] - sides[1] / 2,
                        centre[0] + sides[0] / 2,
                        centre[1] + sides[1] / 2,
                    ]
                    assert boxes[1, place].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-2)
                    likely = [sigmoid(objectness) * sigmoid(t) for t in classes]
                    assert scores[1, place].tolist() == pytest.approx(likely, rel=1e-4)
                    place += 1
    assert place == boxes.shape[1] == scores.shape[1]


@pytest.mark.parametrize("kind", [DARKNET, ULTRALYTICS_9_0])
@pytest.mark.parametrize("confidence", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_candidates_are_what_decode_finds(kind: Variant, confidence: float) -> None:
    architecture = yolov3_tiny(num_classes=3)
    outputs = some_outputs(architecture)
    boxes, scores = decode_all(outputs, architecture, kind, SIZE)
    found = decode_candidates(outputs, architecture, kind, SIZE, confidence)
    assert len(found) == 2
    for picture, (corners, own, numbers) in enumerate(found):
        place, category = torch.nonzero(scores[picture] > confidence, as_tuple=True)
        torch.testing.assert_close(corners, boxes[picture, place])
        torch.testing.assert_close(own, scores[picture, place, category])
        assert torch.equal(numbers, category)


def test_the_two_kinds_differ() -> None:
    architecture = yolov3_tiny(num_classes=3)
    outputs = some_outputs(architecture)
    assert not torch.allclose(
        decode_all(outputs, architecture, DARKNET, SIZE)[0], decode_all(outputs, architecture, ULTRALYTICS_9_0, SIZE)[0]
    )


def test_half_precision_heads_are_decoded_in_float32() -> None:
    architecture = yolov3_tiny(num_classes=3)
    half = [output.bfloat16() for output in some_outputs(architecture)]
    for part, whole in zip(
        decode_all(half, architecture, DARKNET, SIZE),
        decode_all([output.float() for output in half], architecture, DARKNET, SIZE),
        strict=True,
    ):
        assert part.dtype == torch.float32
        assert torch.equal(part, whole)


def test_masks_decide_the_anchors() -> None:
    outputs = some_outputs(yolov3_tiny(num_classes=3))
    one, other = (
        decode_all(outputs, yolov3_tiny(num_classes=3, mask=mask), replace(DARKNET, tiny_mask=mask), SIZE)[0]
        for mask in ((1, 2, 3), (0, 1, 2))
    )
    first = outputs[0][0, :, 0].numel()
    assert torch.equal(one[:, :first], other[:, :first])
    assert not torch.allclose(one[:, first:], other[:, first:])
