"""Setup of a fine-tuning run: initial model and data, loss, optimizers and learning rates."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from chromabox.detect.data.dataset import DetectionDataset, LabelIssue, list_names, normalise_name, remap_classes
from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.data.validate import class_warnings, count_boxes, default_split
from chromabox.detect.models.darknet import DarknetModel
from chromabox.detect.training.batches import DataSplits, DetectionBatch, ImageReader, cached_reader, split_dataset
from chromabox.detect.training.config import FinetuneConfig
from chromabox.detect.training.freeze import num_layers_to_freeze
from chromabox.detect.training.loss import DetectionLoss
from chromabox.detect.training.recipes import FinetuneRecipe
from chromabox.detect.training.transfer import Teacher, replace_heads
from chromabox.detect.weights.load import Detector, load_detector
from chromabox.engine.optim import LrSchedule, build_muon, lr_schedule
from chromabox.errors import ChromaboxError, UsageError


@dataclass(frozen=True)
class InitialState:
    """State at the start of training: the detector, whose heads have the dataset's classes, and the dataset splits."""

    detector: Detector
    splits: DataSplits
    issues: tuple[LabelIssue, ...] = ()
    """Issues with the labels and images of the dataset."""
    read_image: ImageReader = field(default_factory=cached_reader)
    """Image reader with a cache for decoded images."""

    @property
    def num_new_classes(self) -> int:
        """Number of classes on which the initial weights were not trained."""
        return len(self.class_origins["new"])

    @property
    def class_origins(self) -> dict[str, list[str]]:
        """Names of the classes that are "kept" from the initial weights, of the "new" classes, and of the weights'
        "dropped" classes."""
        origins = self.detector.metadata.get("surgery", {"kept": list(self.detector.classes)})
        return {name: list(origins.get(name, ())) for name in ("kept", "new", "dropped")}


def initialise_run(config: FinetuneConfig, resume_folder: Path | None) -> InitialState:
    """Load the weights and the data, and replace the heads of the detector with heads for the dataset's classes.

    A resumed run reads its initial model from ``start.safetensors`` in ``resume_folder``.

    Raise UsageError for invalid settings, and ChromaboxError for weights or data that cannot be read.
    """
    detector = load_detector(config.weights if resume_folder is None else resume_folder / "start.safetensors")
    detector.check_size(config.size)
    for option, value in (("--cached-views", config.num_cached_views), ("--cache-memory", config.cache_memory_gb)):
        if not value >= 0:
            raise UsageError(f"{option} is {value}: expected at least 0")
    data = load_detection_dataset(config.data)
    warnings: tuple[str, ...] = ()
    if config.classes is not None:
        data, warnings = select_classes(data, config.classes)
    own_data = data
    if resume_folder is None:
        prior = config.recipe.new_class_prior
        new_classes = data.classes if config.new_classes == [] else config.new_classes or ()
        detector = replace_heads(
            detector, data.classes, config.keep_old_classes, new_classes=new_classes, max_prior=prior
        )
        if data.category_ids and detector.classes == data.classes:
            detector = replace(detector, metadata={**detector.metadata, "category_ids": list(data.category_ids)})
    data, _ = remap_classes(data, detector.classes)
    if config.freeze != "auto":
        num_layers_to_freeze(detector.architecture, config.freeze)  # Raises UsageError for an invalid value.
    if resume_folder is not None and (resume_folder / "splits.json").is_file():
        splits = DataSplits.load(resume_folder / "splits.json", data)
    else:
        splits = split_dataset(data, config.seed, early_stopping=config.patience is not None)
        # The warnings about classes refer to the classes of the dataset, not to all classes of the model.
        parts = (_with_images_of(own_data, part) for part in (splits.train, splits.val))
        splits = replace(splits, warnings=(*splits.warnings, *warnings, *class_warnings(*parts)))
    return InitialState(replace(detector, size=config.size), splits, data.issues)


def _with_images_of(data: DetectionDataset, part: DetectionDataset) -> DetectionDataset:
    """Return the samples of ``data`` whose images are in ``part``."""
    images = {sample.path for sample in part.samples}
    return replace(data, samples=tuple(sample for sample in data.samples if sample.path in images))


def select_classes(data: DetectionDataset, classes: Sequence[str]) -> tuple[DetectionDataset, tuple[str, ...]]:
    """Return a dataset with only some of its classes, in the order of the dataset.

    Args:
        data: the dataset. Its images are kept, including those without boxes of these classes.
        classes: names, compared as by :func:`remap_classes`, or class numbers.

    Returns:
        The dataset, and warnings with the number of boxes of the other classes.

    Raise UsageError for a name that is not a class of the dataset.
    """
    numbers = {str(index): index for index in range(len(data.classes))}
    numbers |= {normalise_name(name): index for index, name in enumerate(data.classes)}
    unknown = [name for name in classes if normalise_name(name) not in numbers]
    if unknown or not classes:
        raise UsageError(f"--classes: {list_names(unknown)} is not in the dataset; expected {list_names(data.classes)}")
    selected = sorted({numbers[normalise_name(name)] for name in classes})
    counts = count_boxes(data)
    others = [f"{name}: {count}" for name, count in zip(data.classes, counts.tolist(), strict=True)]
    others = [text for index, text in enumerate(others) if index not in selected and counts[index]]
    named = data if data.has_class_names else replace(data, has_class_names=True)
    named, _ = remap_classes(named, [data.classes[index] for index in selected])
    if data.category_ids:
        named = replace(named, category_ids=tuple(data.category_ids[index] for index in selected))
    warning = f"boxes of other classes, which are not used ({list_names(others)}); their objects count as background"
    return named, (warning,) if others else ()


@dataclass(frozen=True)
class RetentionTest:
    """Test whether a detector retains the classes of the original weights.

    ``classes`` are the names, in normalised form, of the original classes that the fine-tuned detector also has.
    """

    data: DetectionDataset
    original: Detector
    classes: tuple[str, ...]


def prepare_retention(config: FinetuneConfig, detector: Detector) -> RetentionTest | None:
    """Load what is needed to measure retention after training. ``detector`` has the classes of the run.

    Return None if the configuration has no retention data.

    Raise UsageError if there is no such dataset, or if the detector has none of the original classes. Raise
    ChromaboxError if the dataset cannot be read or has no boxes of these classes.
    """
    if config.retention_data is None:
        return None
    original = load_detector(config.weights)
    try:
        data = load_detection_dataset(config.retention_data)
        split = default_split(data)
        data, _ = remap_classes(data if split is None else data.split(split), original.classes)
    except ChromaboxError as error:
        raise type(error)(f"--retention-data {config.retention_data}: {error}") from error
    names = {normalise_name(name) for name in detector.classes}
    shared = [name for name in original.classes if normalise_name(name) in names]
    if not shared:
        raise UsageError(
            f"--retention-data: the detector keeps none of the original classes ({list_names(original.classes)}); "
            "use --keep-old-classes"
        )
    counts = dict(zip(original.classes, count_boxes(data).tolist(), strict=True))
    if not any(counts[name] for name in shared):
        raise ChromaboxError(
            f"--retention-data {config.retention_data}: no boxes of the retained classes ({list_names(shared)})"
            + (f" in the split {split}; expected a dataset with such boxes" if split else "; expected such boxes")
        )
    return RetentionTest(data, original, tuple(map(normalise_name, shared)))


def build_loss(model: DarknetModel, config: FinetuneConfig) -> DetectionLoss:
    """Return the loss for the weight variant of the model, with the ``pos_weight`` values of the recipe."""
    return DetectionLoss(
        model.architecture,
        model.variant,
        model.architecture.num_classes,
        cls_pw=config.recipe.class_pos_weight,
        obj_pw=config.recipe.objectness_pos_weight,
        size=config.size,
        recipe=config.recipe.name,
    )


def build_teacher(config: FinetuneConfig, initial: InitialState, loss: DetectionLoss, device: str) -> Teacher | None:
    """Return the teacher for distillation, which is a copy of the initial model.

    Return None if the recipe does not use distillation or if original and new classes are not trained together.
    """
    if not (config.recipe.distill and config.keep_old_classes and initial.num_new_classes):
        return None
    model = copy.deepcopy(initial.detector.model).to(device).eval()
    return Teacher(model, len(initial.detector.classes) - initial.num_new_classes, loss)


def compute_losses(
    forward: Callable[[Tensor], Tensor],
    batch: DetectionBatch,
    loss: DetectionLoss,
    num_frozen: int = 0,
    teacher: Teacher | None = None,
) -> dict[str, Tensor]:
    """Return the loss terms of a batch. The batch contains the features of the first ``num_frozen`` layers.

    ``forward`` is the model itself, because fine-tuning does not use compilation.
    """
    features, targets = batch
    outputs = cast(DarknetModel, forward).forward_from(features, num_frozen)
    if teacher is None:
        return loss(outputs, targets)
    teacher_output = teacher.predict(features, num_frozen, targets)
    terms = loss(outputs, targets, teacher_output.objectness)
    distillation = teacher.distillation_loss(outputs, teacher_output)
    return {**terms, **distillation, "loss": terms["loss"] + torch.stack(list(distillation.values())).sum()}


def build_finetune_optimizers(model: DarknetModel, recipe: FinetuneRecipe) -> list[torch.optim.Optimizer]:
    """Return the optimizers of all trainable parameters, with their peak learning rates.

    ``sgd`` uses SGD with Nesterov momentum and three parameter groups: kernels with weight decay, BatchNorm weights,
    and biases. ``muon`` uses Muon with weight decay for kernels, and AdamW without weight decay for all other
    parameters. The last kernel of each head is also trained with AdamW, because its rows predict different quantities.
    Empty groups are omitted.
    """
    kernels, norm_weights, biases = parameter_groups(model)
    if recipe.optimizer == "sgd":
        decay_scale = recipe.batch_size * recipe.accumulate / (recipe.nominal_batch_size or recipe.batch_size)
        groups: list[dict[str, Any]] = [
            {"params": kernels, "lr": recipe.lr, "weight_decay": recipe.weight_decay * decay_scale, "bias": False},
            {"params": norm_weights, "lr": recipe.adamw_lr, "bias": False},
            {"params": biases, "lr": recipe.adamw_lr, "bias": True},
        ]
        groups = [group for group in groups if group["params"]]
        return [torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=True)]
    last_layers = [model.layers[head - 1] for head in model.architecture.head_indices]
    head_ids = {id(parameter) for layer in last_layers for parameter in layer.parameters()}
    hidden_kernels = [kernel for kernel in kernels if id(kernel) not in head_ids]
    others = [*(kernel for kernel in kernels if id(kernel) in head_ids), *norm_weights, *biases]
    adamw = torch.optim.AdamW(others, lr=recipe.adamw_lr, betas=(0.9, 0.99), weight_decay=0.0)
    return build_muon(recipe, hidden_kernels, adamw)


def parameter_groups(model: DarknetModel) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Return three lists of parameters that are not frozen: convolution kernels, BatchNorm weights, and biases."""
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    kernels = [parameter for _, parameter in trainable if parameter.ndim == 4]
    norm_weights = [parameter for name, parameter in trainable if parameter.ndim == 1 and name.endswith("weight")]
    biases = [parameter for name, parameter in trainable if name.endswith("bias")]
    return kernels, norm_weights, biases


def finetune_lr_schedule(
    recipe: FinetuneRecipe, optimizers: Sequence[torch.optim.Optimizer], batches_per_epoch: int
) -> LrSchedule:
    """Return the learning rate and momentum of every parameter group as a function of the optimizer step.

    The ``cosine`` schedule changes the learning rates once per epoch, and during the warm-up in every step.
    """
    warmup_batches = recipe.num_warmup_batches(batches_per_epoch)
    if recipe.schedule != "cosine":
        num_batches = recipe.epochs * batches_per_epoch
        return lr_schedule(replace(recipe, warmup_fraction=warmup_batches / num_batches), optimizers, num_batches)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    peaks = [(float(group["lr"]), recipe.warmup_bias_lr if group["bias"] else 0.0) for group in groups]
    initial_momentum = recipe.momentum if recipe.warmup_momentum is None else recipe.warmup_momentum
    steps_per_epoch = math.ceil(batches_per_epoch / recipe.accumulate)

    def schedule(step: int) -> list[list[dict[str, float]]]:
        epoch, step_in_epoch = divmod(step, steps_per_epoch)
        cosine = (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2
        factor = recipe.final_lr_fraction + (1 - recipe.final_lr_fraction) * cosine
        batch = epoch * batches_per_epoch + step_in_epoch * recipe.accumulate
        warmup = min(batch / warmup_batches, 1.0) if warmup_batches else 1.0
        momentum = initial_momentum + (recipe.momentum - initial_momentum) * warmup
        lrs = [initial_lr + (lr * factor - initial_lr) * warmup for lr, initial_lr in peaks]
        return [[{"lr": lr, "momentum": momentum} for lr in lrs]]

    return schedule
