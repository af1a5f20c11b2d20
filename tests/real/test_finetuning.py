"""Fine-tuning YOLOv3-tiny on the raccoon dataset: gradients with the feature cache equal those without it."""

from pathlib import Path

import pytest
import torch

from chromabox.detect.data.dataset import DetectionDataset
from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.training.batches import AugmentedSamples, cached_reader, stack_targets
from chromabox.detect.training.config import FinetuneConfig
from chromabox.detect.training.feature_cache import FeatureCache, fill_cache, to_image_batch
from chromabox.detect.training.freeze import freeze
from chromabox.detect.training.recipes import make_finetune_recipe
from chromabox.detect.training.setup import build_loss, compute_losses
from chromabox.detect.training.transfer import replace_heads
from chromabox.detect.weights.load import Detector, load_detector
from chromabox.errors import ChromaboxError


@pytest.fixture(scope="module")
def data() -> DetectionDataset:
    try:
        return load_detection_dataset("raccoon", "train")
    except ChromaboxError as error:
        pytest.skip(f"THE RACCOON DATASET IS NOT AVAILABLE, SO FINE-TUNING ON IT IS NOT TESTED: {error}")


@pytest.fixture(scope="module")
def detector(data: DetectionDataset) -> Detector:
    try:
        return replace_heads(load_detector("yolov3-tiny"), data.classes)
    except ChromaboxError as error:
        pytest.skip(f"YOLOV3-TINY IS NOT AVAILABLE, SO FINE-TUNING IT IS NOT TESTED: {error}")


def test_gradients_are_equal_with_and_without_the_cache(
    data: DetectionDataset, detector: Detector, tmp_path: Path
) -> None:
    model, size, depth, num_views = detector.model, 416, 10, 4
    freeze(model, depth)
    views = AugmentedSamples(data, "default", size, 0, cached_reader())
    samples = [views.sample(0, index) for index in range(num_views)]
    targets = stack_targets([boxes for _, boxes in samples])
    images = to_image_batch([torch.from_numpy(pixels) for pixels, _ in samples])
    loss = build_loss(model, FinetuneConfig(data="raccoon", recipe=make_finetune_recipe("default")))
    with FeatureCache(model, depth, size, num_views, "float32").open(tmp_path, 10**9) as cache:
        fill_cache(cache, model, iter(images))
        features = cache.read(range(num_views))
    gradients = []
    for inputs, first_layer in (({-1: images}, 0), (features, depth)):
        model.train()
        model.zero_grad()
        compute_losses(model, (inputs, targets), loss, first_layer)["loss"].backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    full, cached = (torch.cat([gradient.flatten() for gradient in run]) for run in gradients)
    assert float((full - cached).norm() / full.norm()) < 1e-5
    worst = max(float((first - second).norm() / first.norm()) for first, second in zip(*gradients, strict=True))
    assert worst < 1e-5
