"""Detection from image to boxes: all steps together, with all runtime settings; each step also has separate tests."""

from pathlib import Path

import numpy as np
import pytest
import torch

from chromabox.detect.boxes import darknet_letterbox, iou, letterbox_for
from chromabox.detect.inference.predict import detect_files, detect_image
from chromabox.detect.inference.runtime import optimize_for_inference
from chromabox.detect.models.architecture import DARKNET, ULTRALYTICS_9_0, VARIANTS
from chromabox.detect.models.darknet import decode_all
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.errors import UsageError
from chromabox.io.images import write_image
from detector_fixtures import CLASS_NAMES, make_small_detector

EXACT = {"confidence": 0.3, "iou": 1.0, "size": 96}


def make_pixels(height: int = 120, width: int = 200, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_boxes_are_decoded_and_mapped_to_the_image() -> None:
    detector, pixels = make_small_detector(), make_pixels()
    letterbox = darknet_letterbox((120, 200), 96)
    with torch.inference_mode():
        outputs = detector.model(torch.from_numpy(letterbox.apply_image(pixels))[None])
    boxes, scores = (part[0].numpy() for part in decode_all(outputs, detector.architecture, detector.variant, 96))
    index, class_id = np.nonzero(scores > 0.3)
    # 96 pixels of the network input show 200 columns of the image; 57 rows from row 19 on show its 120 rows.
    expected = (boxes[index] - [0, 19, 0, 19]) * [200 / 96, 120 / 57, 200 / 96, 120 / 57]
    expected = np.clip(expected, 0, [200, 120, 200, 120])
    inside = (expected[:, 2:] > expected[:, :2]).all(axis=1)
    index, class_id, expected = index[inside], class_id[inside], expected[inside]
    detections = detect_image(pixels, detector, **EXACT)
    order = np.argsort(-scores[index, class_id], kind="stable")
    assert len(detections) == len(index) > 5
    np.testing.assert_allclose(detections.confidence, scores[index, class_id][order], atol=1e-5)
    assert detections.class_id is not None
    assert detections.class_id.tolist() == class_id[order].tolist()
    assert detections.data["class_name"].tolist() == [CLASS_NAMES[each] for each in class_id[order]]
    np.testing.assert_allclose(detections.xyxy, expected[order], atol=1e-3)


def test_overlapping_boxes_of_a_class_are_suppressed() -> None:
    detections = detect_image(make_pixels(), make_small_detector(), confidence=0.3, iou=0.2, size=160)
    unsuppressed = detect_image(make_pixels(), make_small_detector(), **{**EXACT, "size": 160})
    assert 0 < len(detections) < len(unsuppressed)
    overlaps = iou(detections.xyxy, detections.xyxy)
    same_class = detections.class_id[:, None] == detections.class_id
    # Boxes are suppressed before they are clipped to the image: the bound holds for those inside of it.
    inside = ((detections.xyxy > 0) & (detections.xyxy < [200, 120, 200, 120])).all(axis=1)
    both_inside = np.outer(inside, inside) & same_class & ~np.eye(len(detections), dtype=bool)
    assert (overlaps[both_inside] <= 0.2 + 1e-4).all()


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=lambda variant: variant.name)
def test_optimized_detector_gives_the_same_detections(variant) -> None:  # type: ignore[no-untyped-def]
    detector = make_small_detector(variant)
    expected = detect_image(make_pixels(), detector, **EXACT)
    optimized = detect_image(make_pixels(), optimize_for_inference(detector), **EXACT)
    np.testing.assert_allclose(optimized.xyxy, expected.xyxy, atol=1e-2)
    np.testing.assert_allclose(optimized.confidence, expected.confidence, atol=1e-4)
    assert len(expected) > 5


def test_bfloat16_is_close_and_its_heads_are_float32() -> None:
    detector = make_small_detector()
    optimized = optimize_for_inference(detector, RuntimeOptions(precision="bfloat16"))
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        (output,), (expected,) = optimized.forward(image), detector.model(image)
    assert output.dtype == torch.float32
    assert (output - expected).abs().max() < 0.2
    assert not torch.equal(output, expected)
    # Outputs computed in bfloat16 would be unchanged by rounding to bfloat16.
    assert not torch.equal(output, output.bfloat16().float())


def test_precision_is_measured_without_modifying_the_model() -> None:
    detector = make_small_detector()
    before = {name: value.clone() for name, value in detector.model.state_dict().items()}
    optimized = optimize_for_inference(detector, RuntimeOptions())
    assert optimized.runtime.precision in ("float32", "bfloat16")
    assert all(torch.equal(value, before[name]) for name, value in detector.model.state_dict().items())


def test_16_bit_image_gives_the_same_boxes() -> None:
    pixels = make_pixels()
    detections_8bit = detect_image(pixels, make_small_detector(), **EXACT)
    detections_16bit = detect_image(pixels.astype(np.uint16) * 257, make_small_detector(), **EXACT)
    np.testing.assert_allclose(detections_8bit.xyxy, detections_16bit.xyxy, atol=1e-2)


def test_classes_are_selected_by_name_or_index() -> None:
    detector = make_small_detector()
    all_classes = detect_image(make_pixels(), detector, **EXACT)
    selected = detect_image(make_pixels(), detector, **EXACT, classes=["Red Fox", 0])
    assert all_classes.class_id is not None
    np.testing.assert_allclose(selected.confidence, all_classes.confidence[all_classes.class_id != 1])
    assert set(selected.class_id.tolist()) == {0, 2}


def test_no_detections_have_shape_0_by_4() -> None:
    detections = detect_image(make_pixels(), make_small_detector(), confidence=1.0)
    assert (len(detections), detections.xyxy.shape) == (0, (0, 4))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"confidence": 1.5}, "confidence is 1.5"),
        ({"iou": -1.0}, "iou is -1.0"),
        ({"size": 65}, "size is 65: expected a multiple of 32 for small"),
        ({"size": 0}, "size is 0"),
        ({"classes": ["unicorn"]}, "classes: unicorn is not one of the detector's 3 classes"),
        ({"classes": [3]}, "classes: 3 is not one"),
    ],
)
def test_invalid_option_is_rejected(option: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        detect_image(make_pixels(), make_small_detector(), **option)  # type: ignore[arg-type]


def test_files_are_processed_in_order_and_a_corrupt_file_gives_an_error(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(7)]
    for index, path in enumerate(paths):
        write_image(path, make_pixels(40 + index, 60, seed=index))
    paths[3].write_bytes(b"not an image")
    detector = optimize_for_inference(make_small_detector())
    threads = torch.get_num_threads()
    results = list(detect_files(paths, detector, **EXACT, workers=3))
    assert torch.get_num_threads() == threads
    assert [result.path for result in results] == paths
    assert [result.error is None for result in results] == [True] * 3 + [False] + [True] * 3
    for index in (0, 6):
        expected = detect_image(make_pixels(40 + index, 60, seed=index), detector, **EXACT)
        np.testing.assert_allclose(results[index].detections.xyxy, expected.xyxy, atol=1e-3)


def test_detect_files_rejects_invalid_options_before_the_first_file() -> None:
    with pytest.raises(UsageError, match="workers is 0"):
        detect_files([], make_small_detector(), workers=0)
    with pytest.raises(UsageError, match="iou is 2"):
        detect_files([], make_small_detector(), iou=2.0)


def test_letterbox_depends_on_the_variant() -> None:
    darknet, ultralytics = (letterbox_for((418, 640), 416, variant) for variant in (DARKNET, ULTRALYTICS_9_0))
    assert (darknet.fill, darknet.inner_size, darknet.sampling) == (0.5, (271, 416), "corners")
    assert (ultralytics.fill, ultralytics.inner_size, ultralytics.sampling) == (114 / 255, (272, 416), "edges")
