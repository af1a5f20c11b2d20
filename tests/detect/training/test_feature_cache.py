"""The cache of frozen layers' outputs: sizes against what a net gives, gradients against the net without a cache."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from chromabox.detect.models.architecture import yolov3_tiny
from chromabox.detect.models.darknet import DARKNET, ULTRALYTICS_9_0, DarknetModel
from chromabox.detect.training.config import CachePrecision
from chromabox.detect.training.feature_cache import fill_cache, open_cache, plan_cache, to_image_batch
from chromabox.detect.training.freeze import freeze
from chromabox.errors import ChromaboxError
from detector_fixtures import make_small_detector

VIEWS = 5


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.randint(0, 256, (VIEWS, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def _gradients(net: DarknetModel, heads: list[Tensor]) -> dict[str, Tensor]:
    net.zero_grad()
    sum(head.square().mean() for head in heads).backward()
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters() if parameter.grad is not None}


def _far(some: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """The greatest relative difference of two gradients, of each parameter's as a whole."""
    assert some.keys() == others.keys()
    return max(float((some[name] - others[name]).norm() / others[name].norm()) for name in some)


@pytest.mark.parametrize("kind", [DARKNET, ULTRALYTICS_9_0], ids=lambda kind: kind.name)
@pytest.mark.parametrize(("precision", "bar"), [("float32", 1e-5), ("float16", 0.05), ("bfloat16", 0.4)])
@pytest.mark.parametrize("until", [9, 10, 17])
def test_gradients_equal_those_without_a_cache(
    kind: object, precision: CachePrecision, bar: float, until: int, pictures: Tensor, tmp_path: Path
) -> None:
    """Layer 10 and 9 read what others read too; before 17 a head is already done."""
    torch.manual_seed(0)
    net = DarknetModel(yolov3_tiny(2), kind)
    freeze(net, until)
    net.train()
    order = [3, 0, 4]
    plain = _gradients(net, net(to_image_batch(list(pictures[order]))))
    with open_cache(plan_cache(net, until, 64, VIEWS, precision), tmp_path, 10**9) as cache:
        fill_cache(cache, net, until, pictures, batch_size=2)
        assert net.training
        assert _far(_gradients(net, net.forward_from(cache.read(order), until)), plain) < bar
    assert all(int(name.split(".")[1]) >= until for name in plain)


def test_the_size_is_known_beforehand() -> None:
    """At 416 layer 8 gives 256 maps of 26 × 26, which the second head reads, and layer 9 as many of 13 × 13."""
    net = DarknetModel.uninitialised(yolov3_tiny(), DARKNET)
    plan = plan_cache(net, 10, 416, 128)
    assert plan.shapes == {8: (256, 26, 26), 9: (256, 13, 13)}
    assert plan.num_bytes == 128 * 2 * 256 * (26 * 26 + 13 * 13)
    assert plan_cache(net, 10, 416, 128, "float32").num_bytes == 2 * plan.num_bytes
    assert str(plan) == "128 views of 0.43 MB in float16, 0.06 GB"


def test_a_cache_over_its_bound_lies_in_a_file_while_it_is_used(pictures: Tensor, tmp_path: Path) -> None:
    net = copy.deepcopy(make_small_detector().model)
    plan = plan_cache(net, 3, 64, VIEWS, "float32")
    said: list[str] = []
    with open_cache(plan, tmp_path / "run", plan.num_bytes - 1, said.append) as cache:
        file = tmp_path / "run" / "prefix-cache.bin"
        assert file.stat().st_size == plan.num_bytes
        fill_cache(cache, net, 3, pictures)
        kept = cache.read([4, 1])
    assert str(file) in said[0]
    assert not file.exists()
    expected = net.eval().forward_features(to_image_batch([pictures[4], pictures[1]]), 3)
    torch.testing.assert_close(kept, expected)


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path) -> None:
    net = make_small_detector().model
    plan = plan_cache(net, 1, 2048, 10**8)
    with pytest.raises(ChromaboxError, match=r"the disk has .* take fewer --views"), open_cache(plan, tmp_path, 0):
        pass
    assert not list(tmp_path.iterdir())


def test_numbers_beyond_half_precision_are_cut(tmp_path: Path) -> None:
    net = make_small_detector().model
    plan = plan_cache(net, 1, 64, 1)
    with open_cache(plan, tmp_path, 10**9) as cache:
        cache.write(0, {0: torch.full((1, *plan.shapes[0]), 1e9)})
        assert cache.read([0])[0].max() == 65504
