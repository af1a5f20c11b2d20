"""Decoding against the formulas of Redmon and Farhadi (2018) and of the Ultralytics variants, in plain Python."""

import math
from dataclasses import replace

import pytest
import torch

from chromabox.detect.models.architecture import DARKNET, ULTRALYTICS_9_0, Architecture, Variant, yolov3_tiny
from chromabox.detect.models.darknet import decode_all

SIZE = 64


def sigmoid(t: float) -> float:
    return 1 / (1 + math.exp(-t))


def random_outputs(architecture: Architecture, batch: int = 2, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, len(yolo.mask), 5 + yolo.classes, SIZE // stride, SIZE // stride, generator=generator)
        for yolo, stride in zip(architecture.yolo_layers, architecture.strides, strict=True)
    ]


@pytest.mark.parametrize("variant", [DARKNET, ULTRALYTICS_9_0])
def test_boxes_and_scores_match_the_formulas(variant: Variant) -> None:
    architecture = yolov3_tiny(num_classes=3)
    outputs = random_outputs(architecture)
    boxes, scores = decode_all(outputs, architecture, variant, SIZE)
    index = 0
    for output, yolo, stride in zip(outputs, architecture.yolo_layers, architecture.strides, strict=True):
        for a, (anchor_width, anchor_height) in enumerate(yolo.head_anchors):
            for row in range(output.shape[-2]):
                for column in range(output.shape[-1]):
                    x, y, w, h, objectness, *classes = output[1, a, :, row, column].tolist()
                    if variant.decode == "exp":
                        centre = (sigmoid(x) + column) * stride, (sigmoid(y) + row) * stride
                        sides = math.exp(w) * anchor_width, math.exp(h) * anchor_height
                    else:
                        centre = (2 * sigmoid(x) - 0.5 + column) * stride, (2 * sigmoid(y) - 0.5 + row) * stride
                        sides = (2 * sigmoid(w)) ** 2 * anchor_width, (2 * sigmoid(h)) ** 2 * anchor_height
                    expected = [
                        centre[0] - sides[0] / 2,
                        centre[1] - sides[1] / 2,
                        centre[0] + sides[0] / 2,
                        centre[1] + sides[1] / 2,
                    ]
                    assert boxes[1, index].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-2)
                    expected_scores = [sigmoid(objectness) * sigmoid(t) for t in classes]
                    assert scores[1, index].tolist() == pytest.approx(expected_scores, rel=1e-4)
                    index += 1
    assert index == boxes.shape[1] == scores.shape[1]


def test_variants_decode_differently() -> None:
    architecture = yolov3_tiny(num_classes=3)
    outputs = random_outputs(architecture)
    assert not torch.allclose(
        decode_all(outputs, architecture, DARKNET, SIZE)[0], decode_all(outputs, architecture, ULTRALYTICS_9_0, SIZE)[0]
    )


def test_bfloat16_outputs_are_decoded_in_float32() -> None:
    architecture = yolov3_tiny(num_classes=3)
    half = [output.bfloat16() for output in random_outputs(architecture)]
    for decoded, expected in zip(
        decode_all(half, architecture, DARKNET, SIZE),
        decode_all([output.float() for output in half], architecture, DARKNET, SIZE),
        strict=True,
    ):
        assert decoded.dtype == torch.float32
        assert torch.equal(decoded, expected)


def test_mask_selects_the_anchors() -> None:
    outputs = random_outputs(yolov3_tiny(num_classes=3))
    first, second = (
        decode_all(outputs, yolov3_tiny(num_classes=3, mask=mask), replace(DARKNET, tiny_mask=mask), SIZE)[0]
        for mask in ((1, 2, 3), (0, 1, 2))
    )
    num_boxes = outputs[0][0, :, 0].numel()
    assert torch.equal(first[:, :num_boxes], second[:, :num_boxes])
    assert not torch.allclose(first[:, num_boxes:], second[:, num_boxes:])
