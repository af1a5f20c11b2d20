"""Fine-tuning YOLOv3-tiny on the raccoons: gradients through the cache equal those without it, on the same views."""

from pathlib import Path

import pytest
import torch

from chromabox.detect.data.dataset import DetectionDataset
from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.training.batches import AugmentedSamples, cached_reader, stack_targets
from chromabox.detect.training.config import FinetuneConfig
from chromabox.detect.training.feature_cache import fill_cache, open_cache, plan_cache, to_image_batch
from chromabox.detect.training.freeze import freeze
from chromabox.detect.training.recipes import make_finetune_recipe
from chromabox.detect.training.setup import build_loss, make_loss_function
from chromabox.detect.training.transfer import replace_heads
from chromabox.detect.weights.load import Detector, load_detector
from chromabox.errors import ChromaboxError


@pytest.fixture(scope="module")
def data() -> DetectionDataset:
    try:
        return load_detection_dataset("raccoon", "train")
    except ChromaboxError as error:
        pytest.skip(f"THE RACCOONS CANNOT BE REACHED, SO NOTHING OF FINE-TUNING ON THEM IS TESTED: {error}")


@pytest.fixture(scope="module")
def trained(data: DetectionDataset) -> Detector:
    try:
        return replace_heads(load_detector("yolov3-tiny"), data.classes)
    except ChromaboxError as error:
        pytest.skip(f"YOLOV3-TINY CANNOT BE REACHED, SO NOTHING OF FINE-TUNING IT IS TESTED: {error}")


def test_gradients_with_and_without_the_cache(data: DetectionDataset, trained: Detector, tmp_path: Path) -> None:
    net, size, until, count = trained.model, 416, 10, 4
    freeze(net, until)
    views = AugmentedSamples(data, "default", size, 0, cached_reader())
    drawn = [views.sample(0, index) for index in range(count)]
    targets = stack_targets([boxes for _, boxes in drawn])
    images = to_image_batch([torch.from_numpy(pixels) for pixels, _ in drawn])
    loss = build_loss(net, FinetuneConfig(data="raccoon", recipe=make_finetune_recipe("default")))
    with open_cache(plan_cache(net, until, size, count, "float32"), tmp_path, 10**9) as cache:
        fill_cache(cache, net, until, iter(images))
        kept = cache.read(range(count))
    found = []
    for given, depth in (({-1: images}, 0), (kept, until)):
        net.train()
        net.zero_grad()
        make_loss_function(depth, loss)(net, (given, targets))["loss"].backward()
        found.append([parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None])
    whole, cached = (torch.cat([gradient.flatten() for gradient in gradients]) for gradients in found)
    assert float((whole - cached).norm() / whole.norm()) < 1e-5
    worst = max(float((one - other).norm() / one.norm()) for one, other in zip(*found, strict=True))
    assert worst < 1e-5
