"""``chromabox.detect()`` as users call it, with all supported types of images and weights."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import chromabox
import chromabox.detect.boxes  # must not replace the callable
from chromabox.detect.weights.load import save_detector
from chromabox.errors import ChromaboxError, UsageError
from detector_fixtures import make_small_detector

PIXELS = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
OPTIONS = {"weights": make_small_detector(), "confidence": 0.3}


def test_detect_is_both_callable_and_a_package() -> None:
    assert callable(chromabox.detect)
    assert chromabox.detect.boxes.nms is not None  # type: ignore[attr-defined]
    assert "detect" in dir(chromabox)


def test_all_image_types_give_the_same_boxes(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(PIXELS).save(path)
    transparent = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 9, np.uint8)])
    expected = chromabox.detect(PIXELS, **OPTIONS)
    assert len(expected) > 3
    images = (
        path,
        str(path),
        Image.fromarray(PIXELS),
        Image.fromarray(PIXELS).convert("RGBA"),
        PIXELS.astype(np.uint16) * 257,
        PIXELS.astype(">u2") * 257,
        (PIXELS / 255).astype(np.float64),
        transparent,
    )
    for image in images:
        np.testing.assert_allclose(chromabox.detect(image, **OPTIONS).xyxy, expected.xyxy, atol=0.05)


def test_grey_image_equals_the_same_image_as_rgb(tmp_path: Path) -> None:
    grey = PIXELS[..., 0]
    expected = chromabox.detect(np.repeat(grey[..., None], 3, axis=2), **OPTIONS)
    high_bit_grey = Image.fromarray(grey.astype(np.uint16) * 257)
    for image in (grey, grey[..., None], Image.fromarray(grey), high_bit_grey):
        np.testing.assert_allclose(chromabox.detect(image, **OPTIONS).xyxy, expected.xyxy, atol=0.05)


def test_weights_file_is_reloaded_after_a_change(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    for seed in (0, 1):
        detector = make_small_detector(seed=seed)
        save_detector(path, detector)
        expected = chromabox.detect(PIXELS, weights=detector, confidence=0.3)
        detections = chromabox.detect(PIXELS, weights=path, confidence=0.3)
        np.testing.assert_allclose(detections.xyxy, expected.xyxy, atol=0.05)
        assert detections.data["class_name"].tolist() == expected.data["class_name"].tolist()


def test_classes_accepts_a_single_name() -> None:
    detections = chromabox.detect(PIXELS, **OPTIONS, classes="dog")
    assert set(detections.data["class_name"]) == {"dog"}


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "image has type NoneType"),
        (np.zeros((4, 4, 2), np.uint8), "image has shape 4 × 4 × 2"),
        (np.zeros((0, 4, 3), np.uint8), "image has shape 0 × 4 × 3"),
        (np.zeros((4, 4, 3), np.int64), "image has dtype int64"),
        (np.full((4, 4, 3), 2.0), "image has values 2 to 2"),
        (np.full((4, 4, 3), np.nan), "image has values nan to nan"),
    ],
)
def test_unsupported_image_is_rejected(image: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        chromabox.detect(image, **OPTIONS)


def test_missing_file_and_unsupported_weights_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ChromaboxError, match="does not exist"):
        chromabox.detect(tmp_path / "none.png", **OPTIONS)
    with pytest.raises(UsageError, match="weights has type int"):
        chromabox.detect(PIXELS, weights=3)
