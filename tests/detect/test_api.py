"""``chromabox.detect`` as users call it: the package itself, with pictures of all kinds."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import chromabox
import chromabox.detect.boxes  # which must not take the callable's place
from chromabox.detect.weights.load import save_detector
from chromabox.errors import ChromaboxError, UsageError
from detector_fixtures import make_small_detector

PIXELS = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
OPTIONS = {"weights": make_small_detector(), "confidence": 0.3}


def test_the_wing_can_be_called_and_is_still_a_package() -> None:
    assert callable(chromabox.detect)
    assert chromabox.detect.boxes.nms is not None  # type: ignore[attr-defined]
    assert "detect" in dir(chromabox)


def test_all_kinds_of_pictures_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(PIXELS).save(path)
    transparent = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 9, np.uint8)])
    expected = chromabox.detect(PIXELS, **OPTIONS)
    assert len(expected) > 3
    pictures = (
        path,
        str(path),
        Image.fromarray(PIXELS),
        Image.fromarray(PIXELS).convert("RGBA"),
        PIXELS.astype(np.uint16) * 257,
        PIXELS.astype(">u2") * 257,
        (PIXELS / 255).astype(np.float64),
        transparent,
    )
    for picture in pictures:
        np.testing.assert_allclose(chromabox.detect(picture, **OPTIONS).xyxy, expected.xyxy, atol=0.05)


def test_grey_pictures(tmp_path: Path) -> None:
    grey = PIXELS[..., 0]
    expected = chromabox.detect(np.repeat(grey[..., None], 3, axis=2), **OPTIONS)
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    for picture in (grey, grey[..., None], Image.fromarray(grey), wide):
        np.testing.assert_allclose(chromabox.detect(picture, **OPTIONS).xyxy, expected.xyxy, atol=0.05)


def test_weights_from_a_file_are_read_again_when_they_change(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    for seed in (0, 1):
        trained = make_small_detector(seed=seed)
        save_detector(path, trained)
        expected = chromabox.detect(PIXELS, weights=trained, confidence=0.3)
        found = chromabox.detect(PIXELS, weights=path, confidence=0.3)
        np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=0.05)
        assert found.data["class_name"].tolist() == expected.data["class_name"].tolist()


def test_one_class_by_its_name() -> None:
    found = chromabox.detect(PIXELS, **OPTIONS, classes="dog")
    assert set(found.data["class_name"]) == {"dog"}


@pytest.mark.parametrize(
    ("picture", "sentence"),
    [
        (None, "image is a NoneType"),
        (np.zeros((4, 4, 2), np.uint8), "image has the shape 4 × 4 × 2"),
        (np.zeros((0, 4, 3), np.uint8), "image has the shape 0 × 4 × 3"),
        (np.zeros((4, 4, 3), np.int64), "image is of int64"),
        (np.full((4, 4, 3), 2.0), "image has values 2 to 2"),
        (np.full((4, 4, 3), np.nan), "image has values nan to nan"),
    ],
)
def test_what_is_no_picture(picture: object, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        chromabox.detect(picture, **OPTIONS)


def test_missing_file_and_wrong_weights(tmp_path: Path) -> None:
    with pytest.raises(ChromaboxError, match="does not exist"):
        chromabox.detect(tmp_path / "none.png", **OPTIONS)
    with pytest.raises(UsageError, match="weights are a int"):
        chromabox.detect(PIXELS, weights=3)
