"""Training of the palette models, from a configuration to a run folder."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chromabox.colour.data.datasets import (
    AuxiliaryImages,
    ColourDataset,
    gather_batch,
    load_colour_dataset,
    make_batches,
    num_batches,
    resolve_palette,
)
from chromabox.colour.models import build_model, num_trainable_parameters
from chromabox.colour.palette.io import load_palette, save_palette
from chromabox.colour.palette.palette import Palette
from chromabox.colour.training.loss import compute_losses, loss_and_accuracy
from chromabox.colour.training.recipes import PaletteModelName, TrainRecipe, lr_factor
from chromabox.colour.weights.checkpoint import model_metadata
from chromabox.engine.autotune import RuntimeConfig, autotune, resolve_device
from chromabox.engine.checkpoint import write_json
from chromabox.engine.distributed import DistInfo, broadcast_object, convert_sync_batchnorm
from chromabox.engine.logger import EpochRecord, read_metrics
from chromabox.engine.optim import Muon
from chromabox.engine.runs import read_config_values, write_config
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.engine.trainer import ParamGroupSettings, TrainSchedule, TrainTask, fit
from chromabox.errors import UsageError

#: Number of images, from the start of the training split, on which training accuracy is measured in evaluation mode.
TRAIN_EVAL_IMAGES = 500


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Complete configuration of a training run: the content of ``config.json``."""

    model: PaletteModelName
    recipe_name: str
    recipe: TrainRecipe
    data: str
    palette: str
    seed: int = 0
    size: int = 32
    val_fraction: float = 0.0
    accumulate: int = 1
    patience: int | None = None
    max_steps: int | None = None
    """Optimizer steps of the whole run, instead of the recipe's epochs; the last epoch can be shortened."""
    model_args: dict[str, Any] = field(default_factory=dict)
    runtime: RuntimeConfig | None = None
    """Device, precision and threads; None until they have been chosen by :func:`train`."""


@dataclass(frozen=True)
class TrainInputs:
    """Inputs of a run: the palette, and the images with their palette labels."""

    palette: Palette
    data: ColourDataset


def load_inputs(config: TrainConfig, resume_from: Path | None = None) -> TrainInputs:
    """Load the palette and the data of a configuration; a resumed run uses the palette saved in its folder."""
    saved = None if resume_from is None else resume_from / "palette.json"
    if saved and saved.is_file():
        palette = load_palette(saved)
    else:
        palette = resolve_palette(config.palette, config.data, size=config.size)
    data = load_colour_dataset(
        config.data,
        palette,
        val_fraction=config.val_fraction,
        size=config.size,
        with_auxiliary=config.recipe.auxiliary_fraction > 0,
    )
    return TrainInputs(palette, data)


def train(
    config: TrainConfig,
    folder: Path,
    *,
    options: RuntimeOptions | None = None,
    inputs: TrainInputs | None = None,
    dist_info: DistInfo | None = None,
    resume: bool = False,
    log: Callable[[str], None] = print,
    on_epoch_end: Callable[[EpochRecord, nn.Module, TrainInputs], None] = lambda record, model, inputs: None,
) -> dict[str, Any]:
    """Train a palette model, write the run to ``folder`` and return its summary, the content of ``summary.json``.

    Args:
        config: the configuration of the run.
        folder: the run folder.
        options: requested runtime options, used if ``config.runtime`` is None.
        inputs: inputs shared by several runs; None loads those of ``config``.
        dist_info: rank and number of processes; None for a single process.
        resume: whether to continue from the last checkpoint in ``folder``.
        log: function called with each line of output, in the main process.
        on_epoch_end: function called in the main process after each epoch with the epoch's record, the model and the
            inputs.
    """
    dist_info = dist_info or DistInfo()
    inputs = inputs or load_inputs(config, folder if resume else None)
    torch.manual_seed(config.seed)
    model_args = {"num_colours": len(inputs.palette.colours), **config.model_args}
    model = build_model(config.model, **model_args)
    if config.runtime is None:
        runtime = _autotune(config, options or RuntimeOptions(), model, inputs) if dist_info.is_main else None
        config = replace(config, runtime=broadcast_object(runtime, dist_info))
    assert config.runtime is not None
    runtime = config.runtime
    convert_sync_batchnorm(model, dist_info)
    # Build the task before writing anything: a run with invalid settings must not leave a run folder.
    task, schedule = build_task(config, model, model_args, inputs, dist_info, runtime)
    if dist_info.is_main:
        _write_config(config, folder)
        save_palette(folder / "palette.json", inputs.palette)
        log(
            f"{config.model}, {config.recipe_name} recipe: {num_trainable_parameters(model):,} parameters; "
            f"running on {runtime}"
        )
    trained_model = fit(
        task,
        schedule,
        folder=folder,
        runtime=runtime,
        dist_info=dist_info,
        resume=resume,
        on_epoch_end=lambda record, eval_model: on_epoch_end(record, eval_model, inputs),
    )
    summary = _write_summary(config, folder, trained_model, inputs, schedule) if dist_info.is_main else {}
    return broadcast_object(summary, dist_info)


def _autotune(config: TrainConfig, options: RuntimeOptions, model: nn.Module, inputs: TrainInputs) -> RuntimeConfig:
    """Choose the runtime configuration: from the options, else from the recipe, else the fastest one measured."""
    recipe = config.recipe
    if options.precision == "auto":
        options = replace(options, precision=recipe.precision)
    batch_size = min(recipe.batch_size, len(inputs.data.train))
    indices, flips = torch.arange(batch_size), torch.zeros(batch_size, dtype=torch.bool)
    batch = gather_batch(inputs.data.train, indices, flips, device=resolve_device(options))

    def compute_loss(forward: Callable[[Tensor], Tensor]) -> Tensor:
        return compute_losses(forward, batch)["loss"]

    num_steps = config.max_steps or recipe.epochs * (len(inputs.data.train) // batch_size)
    return autotune(options, model, compute_loss, num_steps)


def build_task(
    config: TrainConfig,
    model: nn.Module,
    model_args: dict[str, Any],
    inputs: TrainInputs,
    dist_info: DistInfo,
    runtime: RuntimeConfig,
) -> tuple[TrainTask[Any], TrainSchedule]:
    """Return the training task and its schedule; validation loss selects the best epoch if there is held-out data."""
    recipe, data = config.recipe, inputs.data
    schedule = TrainSchedule(
        epochs=recipe.epochs,
        batches_per_epoch=num_batches(len(data.train), recipe.batch_size, shuffle=recipe.shuffle, dist_info=dist_info),
        accumulate=config.accumulate,
        monitor="val_loss" if data.val is not None else None,
        patience=config.patience,
    )
    if config.max_steps is not None:
        epochs = math.ceil(config.max_steps / schedule.steps_per_epoch)
        schedule = replace(schedule, epochs=epochs, max_steps=config.max_steps)
    if recipe.ema_fraction:
        schedule = replace(schedule, ema_decay=max(0.0, 1 - 1 / (recipe.ema_fraction * schedule.total_steps)))
    optimizers = build_optimizers(recipe, model)
    metadata = model_metadata(config.model, model_args, inputs.palette)
    metadata |= {"recipe": config.recipe_name, "data": config.data, "size": config.size, "seed": config.seed}
    task = TrainTask(
        model=model,
        optimizers=optimizers,
        batches=make_batches(
            data.train,
            recipe.batch_size,
            shuffle=recipe.shuffle,
            hflip=recipe.hflip,
            seed=config.seed,
            auxiliary=_auxiliary_images(recipe, data),
            dist_info=dist_info,
            device=runtime.device,
        ),
        compute_loss=compute_losses,
        validate=lambda eval_model: _evaluate_epoch(eval_model, data, runtime.device),
        lr_schedule=lr_schedule(recipe, optimizers, schedule.total_steps),
        checkpoint_metadata=lambda: metadata,
    )
    return task, schedule


def _auxiliary_images(recipe: TrainRecipe, data: ColourDataset) -> AuxiliaryImages | None:
    if data.auxiliary is None or not recipe.auxiliary_fraction:
        return None
    return AuxiliaryImages(data.auxiliary, recipe.auxiliary_fraction)


def build_optimizers(recipe: TrainRecipe, model: nn.Module) -> list[torch.optim.Optimizer]:
    """Return the optimizers of a recipe; weight decay applies to kernels only.

    Muon updates the convolution kernels with more than one input channel. All other parameters use AdamW: a kernel with
    a single input channel is in effect a vector.
    """
    parameters = list(model.parameters())
    kernels = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    if recipe.optimizer == "adam":
        return [torch.optim.Adam(parameters, lr=recipe.lr)]
    if recipe.optimizer == "adamw":
        groups = [{"params": kernels, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        return [torch.optim.AdamW(groups, lr=recipe.lr)]
    muon_kernels = [kernel for kernel in kernels if kernel.ndim == 4 and kernel.shape[1] > 1]
    adamw_parameters = vectors + [kernel for kernel in kernels if not (kernel.ndim == 4 and kernel.shape[1] > 1)]
    return [
        Muon(muon_kernels, lr=recipe.lr, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(adamw_parameters, lr=recipe.adamw_lr, weight_decay=0.0),
    ]


def lr_schedule(
    recipe: TrainRecipe, optimizers: Sequence[torch.optim.Optimizer], total_steps: int
) -> Callable[[int], Sequence[Sequence[ParamGroupSettings]]]:
    """Return a function that maps a step to the learning rates according to the recipe's schedule.

    The optimizers' current learning rates are the peak learning rates.
    """
    peak_lrs = [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in optimizers]

    def schedule(step: int) -> Sequence[Sequence[ParamGroupSettings]]:
        # With an offset of half a step, neither the first nor the last step has a learning rate of 0.
        factor = lr_factor(recipe, (step + 0.5) / total_steps)
        return [[{"lr": lr * factor} for lr in group_lrs] for group_lrs in peak_lrs]

    return schedule


def _evaluate_epoch(model: nn.Module, data: ColourDataset, device: str) -> dict[str, float]:
    """Return the metrics of an epoch, in the order of ``metrics.jsonl``."""

    def forward(grey: Tensor) -> Tensor:
        logits: Tensor = model(grey.to(device))
        return logits.cpu()

    metrics = {}
    for name, images in (
        ("train", data.train.select(slice(0, TRAIN_EVAL_IMAGES))),
        ("val", data.val),
        ("test", data.test),
    ):
        if images is not None:
            loss, accuracy = loss_and_accuracy(forward, images.grey, images.labels)
            metrics[f"{name}_loss"], metrics[f"{name}_accuracy"] = loss, accuracy
    del metrics["train_loss"]  # the trainer records the mean loss of the epoch's batches under this name
    return metrics


def _write_config(config: TrainConfig, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, config)


def read_config(folder: Path) -> TrainConfig:
    """Read the configuration of a run folder. Raise UsageError if there is none or if it is invalid."""
    path = folder / "config.json"
    if not path.is_file():
        raise UsageError(f"{folder}: contains no config.json; use a run folder written by chromabox train")
    try:
        values = read_config_values(folder)
        values["recipe"] = TrainRecipe(**values["recipe"])
        values["runtime"] = RuntimeConfig(**values["runtime"])
        return TrainConfig(**values)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not the configuration of a colourisation run ({error})") from error


def _write_summary(
    config: TrainConfig, folder: Path, model: nn.Module, inputs: TrainInputs, schedule: TrainSchedule
) -> dict[str, Any]:
    """Evaluate the model of the last epoch in float32, write ``summary.json`` and return its content."""
    model.eval()
    device = config.runtime.device if config.runtime else "cpu"
    test = inputs.data.test
    test_loss, test_accuracy = loss_and_accuracy(lambda grey: model(grey.to(device)).cpu(), test.grey, test.labels)
    records = read_metrics(folder)
    epochs = int(records[-1]["epoch"])
    summary = {
        "net": config.model,
        "recipe": config.recipe_name,
        "data": config.data,
        "palette": inputs.palette.name,
        "seed": config.seed,
        "parameters": num_trainable_parameters(model),
        "epochs": epochs,
        "updates": min(schedule.total_steps, epochs * schedule.steps_per_epoch),
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "seconds": round(sum(record["seconds"] for record in records), 3),
    }
    write_json(folder / "summary.json", summary)
    return summary
