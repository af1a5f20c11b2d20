"""``chromabox.detect()`` as users call it, with all supported types of images and weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import chromabox
import chromabox.detect.boxes  # must not replace the callable
from chromabox.detect.inference.load import open_detector
from chromabox.detect.inference.predict import detect_image
from chromabox.detect.weights.convert import export_detector
from chromabox.detect.weights.load import save_detector
from chromabox.errors import ChromaboxError, UsageError
from detector_fixtures import make_small_detector
from import_fixtures import run_without

PIXELS = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of detect() with a small exported detector."""
    path = tmp_path_factory.mktemp("weights") / "small.onnx"
    export_detector(make_small_detector(), path)
    return {"weights": path, "confidence": 0.3}


def test_detect_is_both_callable_and_a_package() -> None:
    assert callable(chromabox.detect)
    assert chromabox.detect.boxes.nms is not None  # type: ignore[attr-defined]
    assert "detect" in dir(chromabox)


def test_all_image_types_give_the_same_boxes(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(PIXELS).save(path)
    transparent = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 9, np.uint8)])
    expected = chromabox.detect(PIXELS, **options)
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
        np.testing.assert_allclose(chromabox.detect(image, **options).xyxy, expected.xyxy, atol=0.05)


def test_grey_image_equals_the_same_image_as_rgb(options: dict[str, Any]) -> None:
    grey = PIXELS[..., 0]
    expected = chromabox.detect(np.repeat(grey[..., None], 3, axis=2), **options)
    high_bit_grey = Image.fromarray(grey.astype(np.uint16) * 257)
    for image in (grey, grey[..., None], Image.fromarray(grey), high_bit_grey):
        np.testing.assert_allclose(chromabox.detect(image, **options).xyxy, expected.xyxy, atol=0.05)


def test_weights_file_is_reloaded_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMABOX_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "small.safetensors"
    for seed in (0, 1):
        detector = make_small_detector(seed=seed)
        save_detector(path, detector)
        expected = detect_image(PIXELS, detector, confidence=0.3)
        detections = chromabox.detect(PIXELS, weights=path, confidence=0.3)
        np.testing.assert_allclose(detections.xyxy, expected.xyxy, atol=0.05)
        assert detections.class_names.tolist() == expected.class_names.tolist()


def test_weights_can_be_an_open_detector_and_is_checked(options: dict[str, Any]) -> None:
    expected = chromabox.detect(PIXELS, **options)
    opened = chromabox.detect(PIXELS, weights=open_detector(options["weights"]), confidence=0.3, size=64)
    np.testing.assert_array_equal(opened.xyxy, expected.xyxy)
    with pytest.raises(UsageError, match=r"size is 96: .* was exported for 64 pixels"):
        chromabox.detect(PIXELS, **options, size=96)


def test_classes_accepts_a_single_name(options: dict[str, Any]) -> None:
    detections = chromabox.detect(PIXELS, **options, classes="dog")
    assert set(detections.class_names) == {"dog"}


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "image has type NoneType"),
        ("https://example.org/dog.jpg", r"^https://example\.org/dog\.jpg is a URL, and URLs are not supported"),
        (np.zeros((4, 4, 2), np.uint8), "image has shape 4 × 4 × 2"),
        (np.zeros((0, 4, 3), np.uint8), "image has shape 0 × 4 × 3"),
        (np.zeros((4, 4, 3), np.int64), "image has dtype int64"),
        (np.full((4, 4, 3), 2.0), "image has values from 2 to 2"),
        (np.full((4, 4, 3), np.nan), "image has values that include NaN"),
    ],
)
def test_unsupported_image_is_rejected(image: object, message: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=message):
        chromabox.detect(image, **options)


def test_missing_file_and_unsupported_weights_are_rejected(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ChromaboxError, match="does not exist"):
        chromabox.detect(tmp_path / "none.png", **options)
    with pytest.raises(UsageError, match="weights has type int"):
        chromabox.detect(PIXELS, weights=3)
    with pytest.raises(UsageError, match=r"none\.onnx: no such file"):
        chromabox.detect(PIXELS, weights=tmp_path / "none.onnx")


def test_options_of_the_wrong_type_are_rejected(options: dict[str, Any]) -> None:
    """The program runs in another process, because the signatures are checked in this one."""
    program = (
        "import sys, chromabox, numpy\n"
        "from chromabox.detect.inference.load import open_detector\n"
        "from chromabox.errors import UsageError\n"
        "image, opened = numpy.zeros((64, 64, 3), numpy.uint8), open_detector(sys.argv[1])\n"
        "for invalid in ({'classes': 5}, {'size': 'x'}, {'size': [64]}, {'size': 0}, {'size': -32}):\n"
        "    for weights in (sys.argv[1], opened):\n"
        "        try:\n"
        "            chromabox.detect(image, weights=weights, **invalid)\n"
        "        except UsageError as error:\n"
        "            print(error)\n"
    )
    done = run_without((), program, options["weights"])
    assert done.returncode == 0, done.stderr
    expected = "expected a multiple of 32, at least 32 and at most 8192"
    sizes = [f"--size is {size}: {expected}" for size in ("'x'", "[64]", "0", "-32")]
    classes = "classes is 5: expected a list of names or indices of classes"
    assert done.stdout.splitlines() == [message for message in (classes, *sizes) for _ in range(2)]
