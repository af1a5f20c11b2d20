"""Setup of a fine-tuning run: initial model, data, loss, training task, feature caches, runtime and optimizers.

:func:`pick_finetune_runtime` selects the fastest runtime settings. :func:`build_finetune_optimizers` and
:func:`finetune_lr_schedule` implement the recipe's optimizers and learning rates.
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
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.engine.trainer import ParamGroupSettings, TrainSchedule, TrainTask
from chromabox.errors import UsageError


@dataclass(frozen=True)
class InitialState:
    """The detector before the first step, with the classes of the data, and the data splits with the same classes."""

    detector: Detector
    splits: DataSplits

    @property
    def num_new_classes(self) -> int:
        """Number of classes that the initial weights were not trained on."""
        return len(self.detector.metadata.get("surgery", {}).get("new", ()))


def initialise_run(config: FinetuneConfig, resume_folder: Path | None) -> InitialState:
    """Load weights and data, and adapt the heads of the model to the classes of the data.

    A resumed run reads its initial model from ``start.safetensors`` in ``resume_folder``. Raise UsageError for invalid
    settings, and ChromaboxError for weights or data that cannot be read.
    """
    detector = load_detector(config.weights if resume_folder is None else resume_folder / "start.safetensors")
    multiple = detector.architecture.max_stride
    if config.size < multiple or config.size % multiple:
        raise UsageError(f"--size is {config.size}: expected a multiple of {multiple} for {detector.architecture.name}")
    if config.num_cached_views < 0:
        raise UsageError(f"--cached-views is {config.num_cached_views}: expected at least 0")
    if not config.cache_memory_gb >= 0:
        raise UsageError(f"--cache-memory is {config.cache_memory_gb}: expected at least 0")
    data = load_detection_dataset(config.data)
    if data.has_class_names and resume_folder is None:
        detector = replace_heads(
            detector, data.classes, config.keep_old_classes, max_prior=config.recipe.new_class_prior
        )
    data, _ = remap_classes(data, detector.classes)
    num_layers_to_freeze(detector.architecture, config.freeze)  # Raises UsageError for an invalid value.
    splits = split_dataset(data, config.seed, early_stopping=config.patience is not None)
    return InitialState(replace(detector, size=config.size), splits)


def build_loss(model: DarknetModel, config: FinetuneConfig) -> DetectionLoss:
    """Return the loss for the model's weight variant, with the weights of the recipe."""
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
    """Freeze the configured layers.

    BatchNorm is frozen in all layers if the recipe sets ``freeze_all_bn`` and there is no new class.
    """
    recipe = config.recipe
    freeze_all_bn = recipe.freeze_all_bn and not initial.num_new_classes
    return freeze(model, config.freeze, update_bn_stats=recipe.update_bn_stats, freeze_all_bn=freeze_all_bn)


def build_teacher(
    config: FinetuneConfig, initial: InitialState, loss: DetectionLoss, device: torch.device
) -> Teacher | None:
    """Return the initial model as the teacher if old and new classes are trained together and the recipe distils."""
    if not (config.recipe.distill and config.keep_old_classes and initial.num_new_classes):
        return None
    model = copy.deepcopy(initial.detector.model).to(device).eval()
    return Teacher(model, len(initial.detector.classes) - initial.num_new_classes, loss)


def make_loss_function(
    num_frozen: int, loss: DetectionLoss, teacher: Teacher | None = None
) -> Callable[[Callable[[Tensor], Tensor], DetectionBatch], dict[str, Tensor]]:
    """Return the ``compute_loss`` of a task whose batches contain the features of the first ``num_frozen`` layers."""

    def compute_loss(forward: Callable[[Tensor], Tensor], batch: DetectionBatch) -> dict[str, Tensor]:
        features, targets = batch
        # The training loop passes the model itself: it is never compiled (see pick_finetune_runtime).
        outputs = cast(DarknetModel, forward).forward_from(features, num_frozen)
        if teacher is None:
            return loss(outputs, targets)
        teacher_output = teacher.predict(features, num_frozen, targets)
        terms = loss(outputs, targets, teacher_output.objectness)
        distillation = teacher.distillation_loss(outputs, teacher_output)
        return {**terms, **distillation, "loss": terms["loss"] + torch.stack(list(distillation.values())).sum()}

    return compute_loss


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
    """Build the task and the schedule of the training loop.

    ``num_frozen`` is the number of layers whose features can be cached, ``num_images`` the number of training images.
    """
    recipe = config.recipe
    if not initial.num_new_classes:
        recipe = scale_lr(recipe, recipe.lr_scale_same_classes)
    elif config.keep_old_classes:
        recipe = scale_lr(recipe, recipe.lr_scale_added_classes)
    teacher = build_teacher(config, initial, loss, next(model.parameters()).device)
    is_cached = bool(num_frozen and config.num_cached_views)
    schedule = TrainSchedule(
        epochs=recipe.epochs,
        batches_per_epoch=len(epoch_batch_indices(num_images, recipe.batch_size, config.seed, 0)),
        accumulate=recipe.accumulate,
        ema_decay=recipe.ema_decay,
        ema_warmup_steps=recipe.ema_warmup_steps,
        monitor="val_ap50_missing" if initial.splits.early_stopping is not None else None,
        patience=config.patience,
    )
    if recipe.ema_fraction:
        decay = max(0.0, 1 - 1 / (recipe.ema_fraction * schedule.total_steps))
        schedule = replace(schedule, ema_decay=decay, ema_warmup_steps=schedule.total_steps / 50)
    optimizers = build_finetune_optimizers(model, recipe)
    metadata = {**detector_metadata(initial.detector), "recipe": recipe.name, "data": Path(config.data).name}
    task = TrainTask(
        model=model,
        optimizers=optimizers,
        batches=batches,
        compute_loss=make_loss_function(num_frozen if is_cached else 0, loss, teacher),
        validate=lambda model: validator.evaluate(cast(DarknetModel, model), loss),
        lr_schedule=finetune_lr_schedule(recipe, optimizers, recipe.epochs, schedule.batches_per_epoch),
        checkpoint_metadata=lambda: metadata,
    )
    return task, schedule


class FeatureCaches:
    """Feature caches of a run, which share the memory limit and stay open until ``stack`` is closed."""

    def __init__(
        self,
        stack: ExitStack,
        config: FinetuneConfig,
        folder: Path,
        model: DarknetModel,
        num_frozen: int,
        log: Callable[[str], None],
    ) -> None:
        assert config.runtime is not None
        self.stack = stack
        self.config = config
        self.folder = folder
        self.model = model
        self.num_frozen = num_frozen
        self.log = log
        self.workers = config.runtime.threads
        self.memory_left = round(config.cache_memory_gb * 1e9)
        #: Seconds spent on filling the caches.
        self.fill_seconds = 0.0

    def open(self, num_views: int, precision: CachePrecision, name: str) -> FeatureCache:
        """Open a cache in memory if it fits into the remaining memory, else in a file in the subfolder ``name``."""
        spec = plan_cache(self.model, self.num_frozen, self.config.size, num_views, precision)
        cache = self.stack.enter_context(open_cache(spec, self.folder / name, self.memory_left, self.log))
        self.memory_left -= spec.num_bytes if spec.num_bytes <= self.memory_left else 0
        return cache

    def build_validator(self, data: DetectionDataset, samples: AugmentedSamples) -> Validator:
        """Return a validator with cached features of the images without augmentation, in float32."""
        start_time = time.perf_counter()
        cache = self.open(len(data.samples), "float32", f"cache-{data.splits[0]}")
        validator = make_validator(
            cache, self.model, self.num_frozen, data, self.config.size, samples.read_image, workers=self.workers
        )
        self.fill_seconds += time.perf_counter() - start_time
        return validator

    def train_batches(self, samples: AugmentedSamples) -> Callable[[int, int], Any]:
        """Return the training batches, from a cache if layers are frozen and views are fixed."""
        config = self.config
        assert config.runtime is not None
        device, batch_size = config.runtime.device, config.recipe.batch_size
        if not self.num_frozen or not config.num_cached_views:
            return stream_batches(samples, batch_size, device=device, workers=self.workers)
        start_time = time.perf_counter()
        views_per_image = min(config.num_cached_views, config.recipe.epochs)
        cache = self.open(views_per_image * len(samples), config.cache_precision, "cache-train")
        boxes = fill_feature_cache(cache, self.model, self.num_frozen, samples, views_per_image, workers=self.workers)
        self.fill_seconds += time.perf_counter() - start_time
        self.log(f"feature caches filled in {self.fill_seconds:.1f} s")
        return cached_batches(cache, boxes, len(samples), batch_size, config.seed, device=device)


#: Number of images used for timing: the batch size of the frozen layers.
_NUM_PROBE_IMAGES = 8


def pick_finetune_runtime(
    config: FinetuneConfig,
    model: DarknetModel,
    num_frozen: int,
    loss: DetectionLoss,
    samples: AugmentedSamples,
    initial: InitialState,
    options: RuntimeOptions,
) -> RuntimeConfig:
    """Select the fastest runtime settings by timing training steps on copies of the model."""
    num_cached = num_frozen if config.num_cached_views else 0
    data = replace(samples.data, samples=samples.data.samples[:_NUM_PROBE_IMAGES])
    cache = FeatureCache(plan_cache(model, num_cached, config.size, len(data.samples), "float32"), None)
    boxes = fill_feature_cache(cache, model, num_cached, replace(samples, data=data), 1)
    indices = [index % len(boxes) for index in range(min(config.recipe.batch_size, len(samples)))]
    device = torch.device(resolve_device(options))
    features = {layer: feature.to(device) for layer, feature in cache.read(indices).items()}
    batch = features, stack_targets([boxes[index] for index in indices]).to(device)
    compute_loss = make_loss_function(num_cached, loss, build_teacher(config, initial, loss, device))
    num_batches = len(epoch_batch_indices(len(samples), config.recipe.batch_size, config.seed, 0))
    # torch.compile has no effect: training calls DarknetModel.forward_from, not forward.
    return autotune(
        replace(options, compile="off"),
        model,
        lambda forward: compute_loss(forward, batch)["loss"],
        num_batches * config.recipe.epochs,
    )


LrSchedule = Callable[[int], Sequence[Sequence[ParamGroupSettings]]]


def build_finetune_optimizers(model: DarknetModel, recipe: FinetuneRecipe) -> list[torch.optim.Optimizer]:
    """Return the optimizers of all trainable parameters, with their peak learning rates.

    ``sgd``: SGD with Nesterov momentum and three parameter groups: kernels with weight decay, BatchNorm weights, and
    biases. ``muon``: Muon with weight decay for kernels, and AdamW without weight decay for all other parameters. The
    last kernel of a head also uses AdamW, since its rows have different meanings. Empty groups are omitted.
    """
    kernels, norm_weights, biases = _parameter_groups(model)
    if recipe.optimizer == "sgd":
        decay_scale = recipe.batch_size * recipe.accumulate / (recipe.nominal_batch_size or recipe.batch_size)
        groups: list[dict[str, Any]] = [
            {"params": kernels, "lr": recipe.lr, "weight_decay": recipe.weight_decay * decay_scale, "bias": False},
            {"params": norm_weights, "lr": recipe.adamw_lr, "bias": False},
            {"params": biases, "lr": recipe.adamw_lr, "bias": True},
        ]
        groups = [group for group in groups if group["params"]]
        return [torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=True)]
    head_ids = {id(parameter) for parameter in trainable_head_parameters(model)}
    hidden_kernels = [kernel for kernel in kernels if id(kernel) not in head_ids]
    head_kernels = [kernel for kernel in kernels if id(kernel) in head_ids]
    adamw = torch.optim.AdamW([*head_kernels, *norm_weights, *biases], lr=recipe.adamw_lr, betas=(0.9, 0.99))
    adamw.param_groups[0]["weight_decay"] = 0.0
    if not hidden_kernels:
        return [adamw]
    muon = Muon(hidden_kernels, recipe.lr, recipe.weight_decay, recipe.momentum)
    return [muon, adamw]


def _parameter_groups(model: DarknetModel) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Return the trainable convolution kernels, BatchNorm weights and biases; frozen parameters are left out."""
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    kernels = [parameter for _, parameter in trainable if parameter.ndim == 4]
    norm_weights = [parameter for name, parameter in trainable if parameter.ndim == 1 and name.endswith("weight")]
    biases = [parameter for name, parameter in trainable if name.endswith("bias")]
    return kernels, norm_weights, biases


def finetune_lr_schedule(
    recipe: FinetuneRecipe, optimizers: Sequence[torch.optim.Optimizer], epochs: int, batches_per_epoch: int
) -> LrSchedule:
    """Return the learning rate and momentum of every parameter group as a function of the optimizer step.

    The course's ``cosine`` schedule changes once per epoch; the ``linear`` schedule changes with every step.
    """
    peak_lrs = [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in optimizers]
    are_biases = [[bool(group.get("bias")) for group in optimizer.param_groups] for optimizer in optimizers]
    steps_per_epoch = math.ceil(batches_per_epoch / recipe.accumulate)
    warmup_batches = recipe.num_warmup_batches(epochs, batches_per_epoch)

    def group_settings(step: int, peak_lr: float, is_bias: bool) -> ParamGroupSettings:
        epoch, step_in_epoch = divmod(step, steps_per_epoch)
        batch = epoch * batches_per_epoch + step_in_epoch * recipe.accumulate
        if recipe.schedule == "cosine":
            cosine = (1 + math.cos(math.pi * epoch / epochs)) / 2
            lr = peak_lr * (recipe.final_lr_fraction + (1 - recipe.final_lr_fraction) * cosine)
            warmup = batch / warmup_batches if warmup_batches else 1.0
            initial_lr = recipe.warmup_bias_lr if is_bias else 0.0
        else:
            # The middle of the step, so that neither the first nor the last step has a learning rate of 0.
            position = batch + recipe.accumulate / 2
            total_batches = epochs * batches_per_epoch
            remaining = (total_batches - position) / max(total_batches - warmup_batches, 1)
            lr = peak_lr * min(recipe.final_lr_fraction + (1 - recipe.final_lr_fraction) * remaining, 1.0)
            warmup, initial_lr = position / warmup_batches if warmup_batches else 1.0, 0.0
        warmup = min(warmup, 1.0)
        settings = {"lr": initial_lr + (lr - initial_lr) * warmup}
        if recipe.warmup_momentum is not None:
            settings["momentum"] = recipe.warmup_momentum + (recipe.momentum - recipe.warmup_momentum) * warmup
        return settings

    def schedule(step: int) -> Sequence[Sequence[ParamGroupSettings]]:
        return [
            [group_settings(step, peak_lr, is_bias) for peak_lr, is_bias in zip(*groups, strict=True)]
            for groups in zip(peak_lrs, are_biases, strict=True)
        ]

    return schedule
