"""Detection from image to boxes: all steps together, and post-processing; the other steps have separate tests."""

from pathlib import Path

import numpy as np
import pytest
import torch

from chromabox.detect.boxes import iou, letterbox_for
from chromabox.detect.inference.predict import InferenceOptions, detect_files, detect_image, postprocess
from chromabox.detect.models.architecture import DARKNET, ULTRALYTICS_9_0, VARIANTS
from chromabox.detect.models.darknet import decode_all
from chromabox.errors import UsageError
from chromabox.io.images import write_image
from detector_fixtures import CLASS_NAMES, make_small_detector

EXACT = {"confidence": 0.3, "iou": 1.0, "size": 96}


def make_pixels(height: int = 120, width: int = 200, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_boxes_are_decoded_and_mapped_to_the_image() -> None:
    detector, pixels = make_small_detector(), make_pixels()
    letterbox = letterbox_for((120, 200), 96, DARKNET)
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
    assert detections.class_id.tolist() == class_id[order].tolist()
    assert detections.class_names.tolist() == [CLASS_NAMES[each] for each in class_id[order]]
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
def test_fused_detector_gives_the_same_detections(variant) -> None:  # type: ignore[no-untyped-def]
    detector = make_small_detector(variant)
    expected = detect_image(make_pixels(), detector, **EXACT)
    fused = detect_image(make_pixels(), detector.fused(), **EXACT)
    np.testing.assert_allclose(fused.xyxy, expected.xyxy, atol=1e-2)
    np.testing.assert_allclose(fused.confidence, expected.confidence, atol=1e-4)
    assert len(expected) > 5


def test_fusing_does_not_modify_the_model() -> None:
    detector = make_small_detector()
    before = {name: value.clone() for name, value in detector.model.state_dict().items()}
    fused = detector.fused()
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in fused.model.modules())
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
        ({"classes": ["unicorn"]}, "classes: unicorn is not a class of the detector"),
        ({"classes": [3]}, "classes: 3 is not a class"),
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
    detector = make_small_detector()
    options = InferenceOptions.for_detector(detector, 0.3, 1.0, None, 96)
    results = list(detect_files(paths, detector, options, workers=3))
    assert str(results.pop(3)).startswith(f"{paths.pop(3)} is not an image")
    for path, result in zip(paths, results, strict=True):
        index = int(path.stem)
        expected = detect_image(make_pixels(40 + index, 60, seed=index), detector, **EXACT)
        np.testing.assert_allclose(result.xyxy, expected.xyxy, atol=1e-3)


def test_detect_files_rejects_invalid_options_before_the_first_file() -> None:
    detector = make_small_detector()
    with pytest.raises(UsageError, match="workers is 0"):
        detect_files([], detector, InferenceOptions.for_detector(detector, 0.3, 1.0, None, None), workers=0)


#: Two boxes of IoU 0.6 and a distant one, in an input of 64 pixels.
BOXES = np.array([[0, 0, 40, 40], [10, 0, 50, 40], [44, 44, 64, 64]], np.float32)
#: A square image of twice the size of the input.
SQUARE = letterbox_for((128, 128), 64, DARKNET)


def test_every_class_above_the_threshold_is_a_detection() -> None:
    scores = np.array([[0.9, 0.5, 0.0], [0.0, 0.0, 0.0], [0.2, 0.7, 0.6]], np.float32)
    boxes, kept_scores, class_ids = postprocess(BOXES, scores, SQUARE, confidence=0.5, iou=0.5)
    # The score 0.5 is equal to the threshold, not higher.
    np.testing.assert_array_equal(kept_scores, np.array([0.9, 0.7, 0.6], np.float32))
    assert class_ids.tolist() == [0, 1, 2]
    np.testing.assert_allclose(boxes, 2 * BOXES[[0, 2, 2]])


@pytest.mark.parametrize(("iou", "kept"), [(0.5, [0, 2]), (0.7, [0, 1, 2])])
def test_lower_score_of_overlapping_boxes_of_a_class_is_suppressed(iou: float, kept: list[int]) -> None:
    scores = np.array([[0.9], [0.8], [0.7]], np.float32)
    boxes, kept_scores, _ = postprocess(BOXES, scores, SQUARE, confidence=0.1, iou=iou)
    np.testing.assert_allclose(boxes, 2 * BOXES[kept])
    np.testing.assert_array_equal(kept_scores, scores[kept, 0])


def test_overlapping_boxes_of_different_classes_are_kept_in_order_of_their_scores() -> None:
    scores = np.array([[0.8, 0.0], [0.0, 0.9], [0.0, 0.0]], np.float32)
    boxes, _, class_ids = postprocess(BOXES, scores, SQUARE, confidence=0.1, iou=0.1)
    np.testing.assert_allclose(boxes, 2 * BOXES[[1, 0]])
    assert class_ids.tolist() == [1, 0]


def test_only_selected_classes_are_kept() -> None:
    scores = np.full((3, 3), 0.9, np.float32)
    selection = np.array([2, 0])
    _, _, class_ids = postprocess(BOXES, scores, SQUARE, confidence=0.1, iou=0.9, class_ids=selection)
    assert sorted(class_ids.tolist()) == [0, 0, 0, 2, 2, 2]
    nothing = postprocess(BOXES, scores, SQUARE, confidence=0.1, iou=0.9, class_ids=selection[:0])
    assert [part.shape for part in nothing] == [(0, 4), (0,), (0,)]


def test_boxes_are_clipped_to_the_image_and_those_in_the_padding_are_removed() -> None:
    # 96 pixels of the input show 200 columns of the image; 57 rows from row 19 on show its 120 rows.
    boxes = np.array([[-9, 10, 48, 47.5], [0, 0, 96, 18], [10, 77, 20, 90], [90, 70, 99, 99]], np.float32)
    scores = np.array([[0.9], [0.8], [0.7], [0.6]], np.float32)
    clipped, kept_scores, _ = postprocess(
        boxes, scores, letterbox_for((120, 200), 96, DARKNET), confidence=0.1, iou=0.5
    )
    np.testing.assert_allclose(kept_scores, [0.9, 0.6], rtol=1e-6)
    np.testing.assert_allclose(clipped, [[0, 0, 100, 60], [187.5, 51 * 120 / 57, 200, 120]], rtol=1e-6)


def test_letterbox_depends_on_the_variant() -> None:
    darknet, ultralytics = (letterbox_for((418, 640), 416, variant) for variant in (DARKNET, ULTRALYTICS_9_0))
    assert (darknet.fill, darknet.inner_size, darknet.sampling) == (0.5, (271, 416), "corners")
    assert (ultralytics.fill, ultralytics.inner_size, ultralytics.sampling) == (114 / 255, (272, 416), "edges")
