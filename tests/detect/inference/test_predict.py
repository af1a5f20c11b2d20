"""Pictures → boxes: each step's own tests are elsewhere; here they must fit together, whatever way the net is run."""

from pathlib import Path

import numpy as np
import pytest
import torch

from chromabox.detect.boxes import darknet_letterbox, iou, letterbox_for
from chromabox.detect.inference.predict import detect_files, detect_image
from chromabox.detect.inference.runtime import optimize_for_inference
from chromabox.detect.models.darknet import DARKNET, ULTRALYTICS_9_0, VARIANTS, decode_all
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.errors import UsageError
from chromabox.io.images import write_image
from detector_fixtures import CLASS_NAMES, make_small_detector

EXACT = {"confidence": 0.3, "iou": 1.0, "size": 96}


def some_pixels(height: int = 120, width: int = 200, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_boxes_are_the_decoded_ones_put_back() -> None:
    trained, pixels = make_small_detector(), some_pixels()
    box = darknet_letterbox((120, 200), 96)
    with torch.inference_mode():
        outputs = trained.model(torch.from_numpy(box.apply_image(pixels))[None])
    corners, scores = (part[0].numpy() for part in decode_all(outputs, trained.architecture, trained.variant, 96))
    place, category = np.nonzero(scores > 0.3)
    # 96 pixels of the square show 200 of the picture; its 57 rows show 120 and begin at row 19.
    expected = (corners[place] - [0, 19, 0, 19]) * [200 / 96, 120 / 57, 200 / 96, 120 / 57]
    expected = np.clip(expected, 0, [200, 120, 200, 120])
    inside = (expected[:, 2:] > expected[:, :2]).all(axis=1)
    place, category, expected = place[inside], category[inside], expected[inside]
    found = detect_image(pixels, trained, **EXACT)
    order = np.argsort(-scores[place, category], kind="stable")
    assert len(found) == len(place) > 5
    np.testing.assert_allclose(found.confidence, scores[place, category][order], atol=1e-5)
    assert found.class_id is not None
    assert found.class_id.tolist() == category[order].tolist()
    assert found.data["class_name"].tolist() == [CLASS_NAMES[number] for number in category[order]]
    np.testing.assert_allclose(found.xyxy, expected[order], atol=1e-3)


def test_doubles_go() -> None:
    found = detect_image(some_pixels(), make_small_detector(), confidence=0.3, iou=0.2, size=160)
    many = detect_image(some_pixels(), make_small_detector(), **{**EXACT, "size": 160})
    assert 0 < len(found) < len(many)
    overlaps = iou(found.xyxy, found.xyxy)
    same = found.class_id[:, None] == found.class_id
    # Suppression happens in the square, before boxes are cut off at the picture's edges: of those inside it holds.
    inside = ((found.xyxy > 0) & (found.xyxy < [200, 120, 200, 120])).all(axis=1)
    both = np.outer(inside, inside) & same & ~np.eye(len(found), dtype=bool)
    assert (overlaps[both] <= 0.2 + 1e-4).all()


@pytest.mark.parametrize("kind", VARIANTS.values(), ids=lambda kind: kind.name)
def test_folded_net_finds_the_same(kind) -> None:  # type: ignore[no-untyped-def]
    trained = make_small_detector(kind)
    plain = detect_image(some_pixels(), trained, **EXACT)
    ready = detect_image(some_pixels(), optimize_for_inference(trained), **EXACT)
    np.testing.assert_allclose(ready.xyxy, plain.xyxy, atol=1e-2)
    np.testing.assert_allclose(ready.confidence, plain.confidence, atol=1e-4)
    assert len(plain) > 5


def test_bfloat16_is_near_and_float32_in_its_heads() -> None:
    trained = make_small_detector()
    ready = optimize_for_inference(trained, RuntimeOptions(precision="bfloat16"))
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        (half,), (whole,) = ready.forward(image), trained.model(image)
    assert half.dtype == torch.float32
    assert (half - whole).abs().max() < 0.2
    assert not torch.equal(half, whole)
    # Numbers that passed through bfloat16 would all be among its own.
    assert not torch.equal(half, half.bfloat16().float())


def test_the_probe_chooses_and_leaves_the_net_alone() -> None:
    trained = make_small_detector()
    before = {name: value.clone() for name, value in trained.model.state_dict().items()}
    ready = optimize_for_inference(trained, RuntimeOptions())
    assert ready.runtime.precision in ("float32", "bfloat16")
    assert all(torch.equal(value, before[name]) for name, value in trained.model.state_dict().items())


def test_sixteen_bits_find_the_same() -> None:
    pixels = some_pixels()
    eight = detect_image(pixels, make_small_detector(), **EXACT)
    sixteen = detect_image(pixels.astype(np.uint16) * 257, make_small_detector(), **EXACT)
    np.testing.assert_allclose(eight.xyxy, sixteen.xyxy, atol=1e-2)


def test_classes_by_name_or_number() -> None:
    trained = make_small_detector()
    every = detect_image(some_pixels(), trained, **EXACT)
    some = detect_image(some_pixels(), trained, **EXACT, classes=["Red Fox", 0])
    assert every.class_id is not None
    np.testing.assert_allclose(some.confidence, every.confidence[every.class_id != 1])
    assert set(some.class_id.tolist()) == {0, 2}


def test_nothing_found() -> None:
    found = detect_image(some_pixels(), make_small_detector(), confidence=1.0)
    assert (len(found), found.xyxy.shape) == (0, (0, 4))


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"confidence": 1.5}, "confidence is 1.5"),
        ({"iou": -1.0}, "iou is -1.0"),
        ({"size": 65}, "size is 65: small needs a multiple of 32"),
        ({"size": 0}, "size is 0"),
        ({"classes": ["unicorn"]}, "classes: unicorn is none of the detector's 3 classes"),
        ({"classes": [3]}, "classes: 3 is none"),
    ],
)
def test_refused(option: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        detect_image(some_pixels(), make_small_detector(), **option)  # type: ignore[arg-type]


def test_files_in_order_and_a_bad_one_among_them(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(7)]
    for number, path in enumerate(paths):
        write_image(path, some_pixels(40 + number, 60, seed=number))
    paths[3].write_bytes(b"no picture")
    detector = optimize_for_inference(make_small_detector())
    threads = torch.get_num_threads()
    results = list(detect_files(paths, detector, **EXACT, workers=3))
    assert torch.get_num_threads() == threads
    assert [one.path for one in results] == paths
    assert [one.error is None for one in results] == [True] * 3 + [False] + [True] * 3
    for number in (0, 6):
        alone = detect_image(some_pixels(40 + number, 60, seed=number), detector, **EXACT)
        np.testing.assert_allclose(results[number].detections.xyxy, alone.xyxy, atol=1e-3)


def test_files_refuses_before_the_first() -> None:
    with pytest.raises(UsageError, match="workers is 0"):
        detect_files([], make_small_detector(), workers=0)
    with pytest.raises(UsageError, match="iou is 2"):
        detect_files([], make_small_detector(), iou=2.0)


def test_letterbox_goes_by_kind() -> None:
    darknet, other = (letterbox_for((418, 640), 416, kind) for kind in (DARKNET, ULTRALYTICS_9_0))
    assert (darknet.fill, darknet.inner_size, darknet.sampling) == (0.5, (271, 416), "corners")
    assert (other.fill, other.inner_size, other.sampling) == (114 / 255, (272, 416), "edges")
