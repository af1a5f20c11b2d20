"""Feature cache: sizes against a model's outputs, gradients against training without a cache."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from chromabox.detect.models.architecture import DARKNET, ULTRALYTICS_9_0, yolov3_tiny
from chromabox.detect.models.darknet import DarknetModel
from chromabox.detect.training.config import CachePrecision
from chromabox.detect.training.feature_cache import FeatureCache, fill_cache, to_image_batch
from chromabox.detect.training.freeze import freeze
from chromabox.errors import ChromaboxError
from detector_fixtures import make_small_detector

VIEWS = 5


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (VIEWS, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def _gradients(model: DarknetModel, heads: list[Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    sum(head.square().mean() for head in heads).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def _max_relative_difference(gradients: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the maximum over parameters of the norm of the difference, relative to the norm of the expectation."""
    assert gradients.keys() == expected.keys()
    return max(float((gradients[name] - expected[name]).norm() / expected[name].norm()) for name in gradients)


@pytest.mark.parametrize("variant", [DARKNET, ULTRALYTICS_9_0], ids=lambda variant: variant.name)
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("float16", 0.01), ("bfloat16", 0.08)])
@pytest.mark.parametrize("num_frozen", [9, 10, 17])
def test_gradients_equal_those_without_a_cache(
    variant: object, precision: CachePrecision, tolerance: float, num_frozen: int, images: Tensor, tmp_path: Path
) -> None:
    """Other layers also read the inputs of layers 9 and 10; a head is complete before layer 17.

    Expected: the gradients for features rounded to the precision of the cache. Features of another batch size can
    differ in the last bit and be rounded differently.
    """
    torch.manual_seed(0)
    model = DarknetModel(yolov3_tiny(2), variant)
    freeze(model, num_frozen)
    model.train()
    order = [3, 0, 4]
    features = model.forward_features(to_image_batch(list(images[order])), num_frozen)
    rounded = {layer: output.to(getattr(torch, precision)).float() for layer, output in features.items()}
    expected = _gradients(model, model.forward_from(rounded, num_frozen))
    if precision == "float32":
        without_cache = _gradients(model, model(to_image_batch(list(images[order]))))
        assert _max_relative_difference(expected, without_cache) < tolerance
    with FeatureCache(model, num_frozen, 64, VIEWS, precision).open(tmp_path, 10**9) as cache:
        fill_cache(cache, model, images, batch_size=2)
        assert model.training
        gradients = _gradients(model, model.forward_from(cache.read(order), num_frozen))
        assert _max_relative_difference(gradients, expected) < tolerance
    assert all(int(name.split(".")[1]) >= num_frozen for name in expected)


def test_cache_size_is_planned_without_computing() -> None:
    """At 416 pixels, layer 8 has 256 maps of 26 × 26, which the second head reads, and layer 9 has 256 of 13 × 13."""
    model = DarknetModel.uninitialised(yolov3_tiny(), DARKNET)
    spec = FeatureCache(model, 10, 416, 128)
    assert spec.shapes == {8: (256, 26, 26), 9: (256, 13, 13)}
    assert spec.num_bytes == 128 * 2 * 256 * (26 * 26 + 13 * 13)
    assert FeatureCache(model, 10, 416, 128, "float32").num_bytes == 2 * spec.num_bytes


def test_cache_above_the_memory_limit_is_a_temporary_file(images: Tensor, tmp_path: Path, messages: list[str]) -> None:
    model = copy.deepcopy(make_small_detector().model)
    spec = FeatureCache(model, 3, 64, VIEWS, "float32")
    messages.clear()
    with spec.open(tmp_path / "run", spec.num_bytes - 1) as cache:
        file = tmp_path / "run" / "prefix-cache.bin"
        assert file.stat().st_size == spec.num_bytes
        fill_cache(cache, model, images)
        features = cache.read([4, 1])
    assert str(file) in messages[0]
    assert not file.exists()
    expected = model.eval().forward_features(to_image_batch([images[4], images[1]]), 3)
    torch.testing.assert_close(features, expected)


def test_full_disk_is_reported_before_anything_is_written(tmp_path: Path) -> None:
    model = make_small_detector().model
    spec = FeatureCache(model, 1, 2048, 10**8)
    message = r"the disk has only .* use fewer --cached-views"
    with pytest.raises(ChromaboxError, match=message), spec.open(tmp_path, 0):
        pass
    assert not list(tmp_path.iterdir())


def test_values_outside_the_range_of_float16_are_clipped(tmp_path: Path) -> None:
    model = make_small_detector().model
    spec = FeatureCache(model, 1, 64, 1)
    with spec.open(tmp_path, 10**9) as cache:
        cache.write(0, {0: torch.full((1, *spec.shapes[0]), 1e9)})
        assert cache.read([0])[0].max() == 65504
