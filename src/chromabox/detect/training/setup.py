"""What a fine-tuning run begins with, and what the training loop is told to do: weights, data, loss, rates.

The caches of a fine-tuning run and the batches that come from them.

How a fine-tuning run is best run on this machine, and how long it will take: measured on a few real pictures.

The optimisers of fine-tuning, and the rate, momentum and decay of every update as a recipe says.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from chromabox.detect.data.augment import read_pixels
from chromabox.detect.data.dataset import DetectionDataset, remap_classes
from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.models.darknet import DarknetModel
from chromabox.detect.training.batches import (
    AugmentedSamples,
    DataSplits,
    DetectionBatch,
    cached_batches,
    epoch_batch_indices,
    fill_feature_cache,
    split_dataset,
    stack_targets,
    stream_batches,
)
from chromabox.detect.training.config import CachePrecision, FinetuneConfig
from chromabox.detect.training.feature_cache import FeatureCache, open_cache, plan_cache
from chromabox.detect.training.freeze import FreezeReport, freeze, num_layers_to_freeze, trainable_head_parameters
from chromabox.detect.training.loss import DetectionLoss
from chromabox.detect.training.recipes import FinetuneRecipe, scale_lr
from chromabox.detect.training.transfer import Teacher, replace_heads
from chromabox.detect.training.validator import Validator, make_validator
from chromabox.detect.weights.load import Detector, detector_metadata, load_detector
from chromabox.engine.autotune import RuntimeConfig, autotune, resolve_device
from chromabox.engine.optim import Muon
from chromabox.engine.runs import peak_memory_bytes
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.engine.trainer import ParamGroupSettings, TrainSchedule, TrainTask
from chromabox.errors import UsageError


@dataclass(frozen=True)
class InitialState:
    """The detector before the first step, with the data's classes, and the parts of the data in its classes."""

    detector: Detector
    splits: DataSplits

    @property
    def num_new_classes(self) -> int:
        """The number of classes that the weights did not know."""
        return len(self.detector.metadata.get("surgery", {}).get("new", ()))


def initialise_run(config: FinetuneConfig, resume_folder: Path | None) -> InitialState:
    """Weights and data made for each other; a run that goes on has in its folder what it began from."""
    trained = load_detector(config.weights if resume_folder is None else resume_folder / "start.safetensors")
    multiple = trained.architecture.max_stride
    if config.size < multiple or config.size % multiple:
        raise UsageError(f"size is {config.size}: {trained.architecture.name} needs a multiple of {multiple}")
    if config.num_cached_views < 0 or not config.cache_memory_gb >= 0:
        raise UsageError(
            f"views is {config.num_cached_views} and cache-memory {config.cache_memory_gb}: neither can be below 0"
        )
    data = load_detection_dataset(config.data)
    if data.has_class_names and resume_folder is None:
        trained = replace_heads(trained, data.classes, config.keep_old_classes, max_prior=config.recipe.new_class_prior)
    data, _ = remap_classes(data, trained.classes)
    num_layers_to_freeze(trained.architecture, config.freeze)
    parts = split_dataset(data, config.seed, early_stopping=config.patience is not None)
    return InitialState(replace(trained, size=config.size), parts)


def build_loss(model: DarknetModel, config: FinetuneConfig) -> DetectionLoss:
    """The loss of the net's kind with the recipe's weights."""
    return DetectionLoss(
        model.architecture,
        model.variant,
        model.architecture.num_classes,
        cls_pw=config.recipe.class_pos_weight,
        obj_pw=config.recipe.objectness_pos_weight,
        size=config.size,
        recipe=config.recipe.name,
    )


def apply_freezing(config: FinetuneConfig, initial: InitialState, model: DarknetModel) -> FreezeReport:
    """Freeze what the configuration says, and all normalisation where the weights know all classes and so is wished."""
    recipe = config.recipe
    still = recipe.freeze_all_bn and not initial.num_new_classes
    return freeze(model, config.freeze, update_bn_stats=recipe.update_bn_stats, freeze_all_bn=still)


def build_teacher(
    config: FinetuneConfig, initial: InitialState, loss: DetectionLoss, device: torch.device
) -> Teacher | None:
    """What holds the old classes to what they were, where they are kept beside new ones and the recipe has it."""
    if not (config.recipe.distill and config.keep_old_classes and initial.num_new_classes):
        return None
    net = copy.deepcopy(initial.detector.model).to(device).eval()
    return Teacher(net, len(initial.detector.classes) - initial.num_new_classes, loss)


def make_loss_function(
    num_frozen: int, loss: DetectionLoss, teacher: Teacher | None = None
) -> Callable[[Callable[[Tensor], Tensor], DetectionBatch], dict[str, Tensor]]:
    """The terms of a batch, whose outputs of the first ``until`` layers are there already."""

    def losses(call: Callable[[Tensor], Tensor], batch: DetectionBatch) -> dict[str, Tensor]:
        kept, targets = batch
        # Never compiled, see the probe: what is called is the net itself.
        outputs = cast(DarknetModel, call).forward_from(kept, num_frozen)
        if teacher is None:
            return loss(outputs, targets)
        opinion = teacher.predict(kept, num_frozen, targets)
        terms, distances = loss(outputs, targets, opinion.objectness), teacher.distillation_loss(outputs, opinion)
        return {**terms, **distances, "loss": terms["loss"] + torch.stack(list(distances.values())).sum()}

    return losses


def build_finetune_task(
    config: FinetuneConfig,
    initial: InitialState,
    model: DarknetModel,
    num_frozen: int,
    loss: DetectionLoss,
    validator: Validator,
    batches: Callable[[int, int], Any],
    num_images: int,
) -> tuple[TrainTask[DetectionBatch], TrainSchedule]:
    recipe = config.recipe
    if not initial.num_new_classes:
        recipe = scale_lr(recipe, recipe.lr_scale_same_classes)
    elif config.keep_old_classes:
        recipe = scale_lr(recipe, recipe.lr_scale_added_classes)
    old = build_teacher(config, initial, loss, next(model.parameters()).device)
    cached = bool(num_frozen and config.num_cached_views)
    plan = TrainSchedule(
        epochs=recipe.epochs,
        batches_per_epoch=len(epoch_batch_indices(num_images, recipe.batch_size, config.seed, 0)),
        accumulate=recipe.accumulate,
        ema_decay=recipe.ema_decay,
        ema_warmup_steps=recipe.ema_warmup_steps,
        monitor="val_ap50_missing" if initial.splits.early_stopping is not None else None,
        patience=config.patience,
    )
    if recipe.ema_fraction:
        decay = max(0.0, 1 - 1 / (recipe.ema_fraction * plan.total_steps))
        plan = replace(plan, ema_decay=decay, ema_warmup_steps=plan.total_steps / 50)
    optimisers = build_finetune_optimizers(model, recipe)
    description = {**detector_metadata(initial.detector), "recipe": recipe.name, "data": Path(config.data).name}
    job = TrainTask(
        model=model,
        optimizers=optimisers,
        batches=batches,
        compute_loss=make_loss_function(num_frozen if cached else 0, loss, old),
        validate=lambda net: validator.evaluate(cast(DarknetModel, net), loss),
        lr_schedule=finetune_lr_schedule(recipe, optimisers, recipe.epochs, plan.batches_per_epoch),
        checkpoint_metadata=lambda: description,
    )
    return job, plan


class FeatureCaches:
    """The caches of a run, one after another from the memory that is allowed; they live as long as ``stack``."""

    def __init__(
        self,
        stack: ExitStack,
        config: FinetuneConfig,
        folder: Path,
        model: DarknetModel,
        num_frozen: int,
        log: Callable[[str], None],
    ) -> None:
        self.stack, self.config, self.folder, self.model, self.num_frozen, self.log = (
            stack,
            config,
            folder,
            model,
            num_frozen,
            log,
        )
        assert config.runtime is not None
        self.workers = config.runtime.threads
        self.memory_left = round(config.cache_memory_gb * 1e9)
        #: Seconds that filling took.
        self.fill_seconds = 0.0

    def open(self, num_views: int, precision: CachePrecision, name: str) -> FeatureCache:
        plan = plan_cache(self.model, self.num_frozen, self.config.size, num_views, precision)
        cache = self.stack.enter_context(open_cache(plan, self.folder / name, self.memory_left, self.log))
        self.memory_left -= plan.num_bytes if plan.num_bytes <= self.memory_left else 0
        return cache

    def build_validator(self, data: DetectionDataset, samples: AugmentedSamples) -> Validator:
        """Plain views, exactly."""
        begin = time.perf_counter()
        cache = self.open(len(data.samples), "float32", f"cache-{data.splits[0]}")
        judge = make_validator(
            cache, self.model, self.num_frozen, data, self.config.size, samples.read_image, workers=self.workers
        )
        self.fill_seconds += time.perf_counter() - begin
        return judge

    def train_batches(self, samples: AugmentedSamples) -> Callable[[int, int], Any]:
        """Training batches, from a cache where anything stands still and views are fixed."""
        config = self.config
        assert config.runtime is not None
        device, batch = config.runtime.device, config.recipe.batch_size
        if not self.num_frozen or not config.num_cached_views:
            return stream_batches(samples, batch, device=device, workers=self.workers)
        begin = time.perf_counter()
        numbers = min(config.num_cached_views, config.recipe.epochs)
        cache = self.open(numbers * len(samples), config.cache_precision, "cache-train")
        boxes = fill_feature_cache(cache, self.model, self.num_frozen, samples, numbers, workers=self.workers)
        self.fill_seconds += time.perf_counter() - begin
        self.log(f"filling the caches took {self.fill_seconds:.1f} s")
        return cached_batches(cache, boxes, len(samples), batch, config.seed, device=device)


#: Pictures that are tried: as many as go through the frozen layers at once.
_NUM_PROBE_IMAGES = 8


@dataclass(frozen=True)
class FinetuneCosts:
    """Seconds, each measured after a first time that warms up."""

    decode_seconds: float
    """To decode a picture."""
    augment_seconds: float
    """To draw a view of decoded pictures and compute the frozen layers for it."""
    step_seconds: float
    """Of training on a batch."""
    validate_seconds: float
    """To validate on a picture."""


@dataclass(frozen=True)
class FinetuneProbe:
    """What is tried: a net whose first ``until`` layers stand still, the data, and the loss."""

    config: FinetuneConfig
    model: DarknetModel
    num_frozen: int
    loss: DetectionLoss
    samples: AugmentedSamples
    initial: InitialState

    @property
    def num_cached_layers(self) -> int:
        """The layers whose outputs for training views are kept."""
        return self.num_frozen if self.config.num_cached_views else 0

    def pick_runtime(self, options: RuntimeOptions, log: Callable[[str], None]) -> RuntimeConfig:
        """How to run, by measuring real steps on copies; tells what the run will take."""
        config, few = self.config, self._probe_subset(self.samples.data)
        cache = self._make_cache(self.num_cached_layers, len(few.samples))
        boxes = fill_feature_cache(cache, self.model, self.num_cached_layers, replace(self.samples, data=few), 1)
        places = [place % len(boxes) for place in range(min(config.recipe.batch_size, len(self.samples)))]
        batch = cache.read(places), stack_targets([boxes[place] for place in places])
        # What is trained is a part of the net, called by a method of its own, which torch.compile does not reach.
        options = replace(options, compile="off")
        steps = self._batches_per_epoch() * config.recipe.epochs
        loss = self._make_loss(torch.device(resolve_device(options)), batch)
        execution = autotune(options, self.model, loss, steps)
        self._log_estimate(self.measure_costs(execution, cache, loss), execution, log)
        return execution

    def measure_costs(
        self, runtime: RuntimeConfig, cache: FeatureCache, loss: Callable[[Callable[[Tensor], Tensor]], Tensor]
    ) -> FinetuneCosts:
        """What things cost in the way of running that was chosen, on a copy of the net."""
        net = copy.deepcopy(self.model).train()
        runtime.prepare(net)
        few = replace(self.samples, data=self._probe_subset(self.samples.data))
        read = _median_seconds(lambda: [read_pixels(one.path) for one in few.data.samples]) / len(few)
        view = _median_seconds(
            lambda: fill_feature_cache(cache, net, self.num_cached_layers, few, 1, workers=runtime.threads)
        ) / len(few)

        optimisers = build_finetune_optimizers(net, self.config.recipe)

        def backward() -> None:
            with runtime.autocast():
                value = loss(cast(Callable[[Tensor], Tensor], net))
            value.backward()
            value.item()  # Waits for a graphics card to finish.

        step = _median_seconds(backward)
        step += _median_seconds(lambda: [one.step() for one in optimisers]) / self.config.recipe.accumulate
        data = self._probe_subset(self.initial.splits.early_stopping or self.initial.splits.val)
        own, size = self._make_cache(self.num_frozen, len(data.samples)), self.config.size
        judge = make_validator(own, net, self.num_frozen, data, size, self.samples.read_image, workers=runtime.threads)
        net.eval()
        return FinetuneCosts(
            read, view, step, _median_seconds(lambda: judge.evaluate(net, self.loss)) / len(data.samples)
        )

    def _log_estimate(self, costs: FinetuneCosts, runtime: RuntimeConfig, log: Callable[[str], None]) -> None:
        config, parts = self.config, self.initial.splits
        watched = 0 if parts.early_stopping is None else len(parts.early_stopping.samples)
        judged, count = len(parts.val.samples), len(self.samples)
        views = min(config.num_cached_views, config.recipe.epochs) * count if self.num_cached_layers else 0
        filling = (views + judged + watched) * costs.augment_seconds + (count + judged + watched) * costs.decode_seconds
        epoch = self._batches_per_epoch() * costs.step_seconds + (watched or judged) * costs.validate_seconds
        # Without a cache views are drawn while the net computes, but not for nothing where cores are few.
        epoch += 0 if self.num_cached_layers else count * costs.augment_seconds
        log(
            f"{count:,} pictures train, {self._batches_per_epoch()} batches an epoch, running on {runtime}; about "
            f"{filling:.0f} s to fill the caches, then {epoch:.1f} s an epoch, "
            f"{(filling + epoch * config.recipe.epochs) / 60:.1f} minutes in all, and {peak_memory_bytes() / 1e9:.1f} GB of "
            "memory besides the caches"
        )

    def _batches_per_epoch(self) -> int:
        return len(epoch_batch_indices(len(self.samples), self.config.recipe.batch_size, self.config.seed, 0))

    def _make_cache(self, num_layers: int, num_views: int) -> FeatureCache:
        return FeatureCache(plan_cache(self.model, num_layers, self.config.size, num_views, "float32"), None)

    def _make_loss(self, device: torch.device, batch: DetectionBatch) -> Callable[[Callable[[Tensor], Tensor]], Tensor]:
        """The loss of a batch, as a function of what is called on it."""
        losses = make_loss_function(
            self.num_cached_layers, self.loss, build_teacher(self.config, self.initial, self.loss, device)
        )
        kept, targets = batch
        moved = {layer: one.to(device) for layer, one in kept.items()}, targets.to(device)
        return lambda call: losses(call, moved)["loss"]

    @staticmethod
    def _probe_subset(data: DetectionDataset) -> DetectionDataset:
        return replace(data, samples=data.samples[:_NUM_PROBE_IMAGES])


def _median_seconds(func: Callable[[], object], repeats: int = 3) -> float:
    """The middle of a few times after one that warms up."""
    durations = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        func()
        durations.append(time.perf_counter() - begin)
    return sorted(durations[1:])[repeats // 2]


LrSchedule = Callable[[int], Sequence[Sequence[ParamGroupSettings]]]


def build_finetune_optimizers(model: DarknetModel, recipe: FinetuneRecipe) -> list[torch.optim.Optimizer]:
    """The optimisers of whatever is not frozen, at their peak rates; groups without a parameter are left out.

    sgd: kernels, with weight decay; the weights of batch normalisation; biases. muon: Muon for kernels, with weight
    decay; AdamW for the heads' last kernels, whose rows mean different things each, and for everything else.
    """
    kernels, weights, biases = _parameter_groups(model)
    if recipe.optimizer == "sgd":
        nominal = recipe.batch_size * recipe.accumulate / (recipe.nominal_batch_size or recipe.batch_size)
        groups: list[dict[str, Any]] = [
            {"params": kernels, "lr": recipe.lr, "weight_decay": recipe.weight_decay * nominal},
            {"params": weights, "lr": recipe.adamw_lr},
            {"params": biases, "lr": recipe.adamw_lr},
        ]
        groups = [{**group, "bias": at == 2} for at, group in enumerate(groups) if group["params"]]
        return [torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=True)]
    heads = {id(parameter) for parameter in trainable_head_parameters(model)}
    inner = [kernel for kernel in kernels if id(kernel) not in heads]
    last = [kernel for kernel in kernels if id(kernel) in heads]
    adam = torch.optim.AdamW([*last, *weights, *biases], lr=recipe.adamw_lr, betas=(0.9, 0.99))
    adam.param_groups[0]["weight_decay"] = 0.0
    if not inner:
        return [adam]
    muon = Muon(inner, recipe.lr, recipe.weight_decay, recipe.momentum)
    return [muon, adam]


def _parameter_groups(model: DarknetModel) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Trained kernels, weights of normalisation, biases."""
    trained = [parameter for parameter in model.named_parameters() if parameter[1].requires_grad]
    kernels = [parameter for _, parameter in trained if parameter.ndim == 4]
    weights = [parameter for name, parameter in trained if parameter.ndim == 1 and name.endswith("weight")]
    return kernels, weights, [parameter for name, parameter in trained if name.endswith("bias")]


def finetune_lr_schedule(
    recipe: FinetuneRecipe, optimizers: Sequence[torch.optim.Optimizer], epochs: int, batches_per_epoch: int
) -> LrSchedule:
    """The settings of every update of a run of ``epochs`` epochs of ``batches`` batches.

    The course's cosine falls from epoch to epoch; ours are straight lines from update to update.
    """
    peaks = [[float(group["lr"]) for group in optimiser.param_groups] for optimiser in optimizers]
    biases = [[bool(group.get("bias")) for group in optimiser.param_groups] for optimiser in optimizers]
    updates = math.ceil(batches_per_epoch / recipe.accumulate)
    warm_up = recipe.num_warmup_batches(epochs, batches_per_epoch)

    def settings(update: int, peak: float, bias: bool) -> ParamGroupSettings:
        epoch, within = divmod(update, updates)
        batch = epoch * batches_per_epoch + within * recipe.accumulate
        if recipe.schedule == "cosine":
            fall = (1 + math.cos(math.pi * epoch / epochs)) / 2
            full = peak * (recipe.final_lr_fraction + (1 - recipe.final_lr_fraction) * fall)
            up = batch / warm_up if warm_up else 1.0
            low = recipe.warmup_bias_lr if bias else 0.0
        else:
            # Half an update in: neither the first nor the last step is wasted on a rate of 0.
            place = batch + recipe.accumulate / 2
            left = (epochs * batches_per_epoch - place) / max(epochs * batches_per_epoch - warm_up, 1)
            full = peak * min(recipe.final_lr_fraction + (1 - recipe.final_lr_fraction) * left, 1.0)
            up, low = place / warm_up if warm_up else 1.0, 0.0
        found = {"lr": low + (full - low) * min(up, 1.0)}
        if recipe.warmup_momentum is not None:
            start = recipe.warmup_momentum
            found["momentum"] = start + (recipe.momentum - start) * min(up, 1.0)
        return found

    def schedule(update: int) -> Sequence[Sequence[ParamGroupSettings]]:
        return [
            [settings(update, peak, bias) for peak, bias in zip(*groups, strict=True)]
            for groups in zip(peaks, biases, strict=True)
        ]

    return schedule
