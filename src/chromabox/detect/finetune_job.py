"""What a fine-tuning run begins with, and what the training loop is told to do: weights, data, loss, rates."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from chromabox.detect.data import load_detection_set
from chromabox.detect.finetune_config import FinetuneConfig
from chromabox.detect.freeze import Frozen, depth_of, freeze
from chromabox.detect.judge import Judge
from chromabox.detect.labelled import in_classes_of
from chromabox.detect.loss import DetectionLoss
from chromabox.detect.nets import DetectorNet
from chromabox.detect.old_net import OldNet
from chromabox.detect.rates import optimisers_of, schedule_of
from chromabox.detect.recipes import gentler
from chromabox.detect.surgery import with_classes
from chromabox.detect.views import Batch, Parts, chunks_of, parts_of
from chromabox.detect.weights import TrainedDetector, describe_detector, load_detector
from chromabox.engine.trainer import Job, Plan
from chromabox.errors import UsageError


@dataclass(frozen=True)
class Beginning:
    """The detector before the first step, with the data's classes, and the parts of the data in its classes."""

    trained: TrainedDetector
    parts: Parts

    @property
    def new(self) -> int:
        """The number of classes that the weights did not know."""
        return len(self.trained.description.get("surgery", {}).get("new", ()))


def begin(config: FinetuneConfig, run: Path | None) -> Beginning:
    """Weights and data made for each other; a run that goes on has in its folder what it began from."""
    trained = load_detector(config.weights if run is None else run / "start.safetensors")
    multiple = trained.architecture.multiple
    if config.size < multiple or config.size % multiple:
        raise UsageError(f"size is {config.size}: {trained.architecture.name} needs a multiple of {multiple}")
    if config.views < 0 or not config.cache_memory >= 0:
        raise UsageError(f"views is {config.views} and cache-memory {config.cache_memory}: neither can be below 0")
    data = load_detection_set(config.data)
    if data.named and run is None:
        trained = with_classes(trained, data.classes, config.keep_old, surest=config.recipe.surest_new)
    data, _ = in_classes_of(data, trained.classes)
    depth_of(trained.architecture, config.freeze)
    parts = parts_of(data, config.seed, watch=config.patience is not None)
    return Beginning(replace(trained, size=config.size), parts)


def loss_of(net: DetectorNet, config: FinetuneConfig) -> DetectionLoss:
    """The loss of the net's kind with the recipe's weights."""
    return DetectionLoss(
        net.architecture,
        net.kind,
        net.architecture.classes,
        cls_pw=config.recipe.class_weight,
        obj_pw=config.recipe.objectness_weight,
        size=config.size,
        recipe=config.recipe.name,
    )


def freeze_for(config: FinetuneConfig, begun: Beginning, net: DetectorNet) -> Frozen:
    """Freeze what the configuration says, and all normalisation where the weights know all classes and so is wished."""
    recipe = config.recipe
    still = recipe.still_normalisation and not begun.new
    return freeze(net, config.freeze, moving_statistics=recipe.moving_statistics, still_normalisation=still)


def old_net_of(config: FinetuneConfig, begun: Beginning, loss: DetectionLoss, device: torch.device) -> OldNet | None:
    """What holds the old classes to what they were, where they are kept beside new ones and the recipe has it."""
    if not (config.recipe.old_net and config.keep_old and begun.new):
        return None
    net = copy.deepcopy(begun.trained.net).to(device).eval()
    return OldNet(net, len(begun.trained.classes) - begun.new, loss)


def losses_of(
    until: int, loss: DetectionLoss, old: OldNet | None = None
) -> Callable[[Callable[[Tensor], Tensor], Batch], dict[str, Tensor]]:
    """The terms of a batch, whose outputs of the first ``until`` layers are there already."""

    def losses(call: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
        kept, targets = batch
        # Never compiled, see the probe: what is called is the net itself.
        outputs = cast(DetectorNet, call).forward_rest(kept, until)
        if old is None:
            return loss(outputs, targets)
        opinion = old.look(kept, until, targets)
        terms, distances = loss(outputs, targets, opinion.sure), old.distances(outputs, opinion)
        return {**terms, **distances, "loss": terms["loss"] + torch.stack(list(distances.values())).sum()}

    return losses


def job_and_plan(
    config: FinetuneConfig,
    begun: Beginning,
    net: DetectorNet,
    until: int,
    loss: DetectionLoss,
    watch: Judge,
    batches: Callable[[int, int], Any],
    pictures: int,
) -> tuple[Job[Batch], Plan]:
    recipe = config.recipe
    if not begun.new:
        recipe = gentler(recipe, recipe.gentle)
    elif config.keep_old:
        recipe = gentler(recipe, recipe.gentle_beside)
    old = old_net_of(config, begun, loss, next(net.parameters()).device)
    cached = bool(until and config.views)
    plan = Plan(
        epochs=recipe.epochs,
        steps_per_epoch=len(chunks_of(pictures, recipe.batch_size, config.seed, 0)),
        accumulate=recipe.accumulate,
        average_decay=recipe.average_decay,
        average_ramp=recipe.average_ramp,
        watch="val_ap50_missing" if begun.parts.watch is not None else None,
        patience=config.patience,
    )
    if recipe.average:
        decay = max(0.0, 1 - 1 / (recipe.average * plan.updates))
        plan = replace(plan, average_decay=decay, average_ramp=plan.updates / 50)
    optimisers = optimisers_of(net, recipe)
    description = {**describe_detector(begun.trained), "recipe": recipe.name, "data": Path(config.data).name}
    job = Job(
        net=net,
        optimisers=optimisers,
        batches=batches,
        losses=losses_of(until if cached else 0, loss, old),
        validate=lambda net: watch.measure(cast(DetectorNet, net), loss),
        schedule=schedule_of(recipe, optimisers, recipe.epochs, plan.steps_per_epoch),
        describe=lambda: description,
    )
    return job, plan
