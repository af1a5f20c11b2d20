"""From a configuration to a run folder: data → net → loop, and what stands in the folder at the end."""

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

#: Training accuracy is measured, in evaluation mode, on the first pictures of the training split.
TRAIN_EVAL_IMAGES = 500


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run, complete: what stands in ``config.json``."""

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
    """Steps of the optimisers in the whole run, instead of the recipe's epochs; the last epoch may be cut short."""
    model_args: dict[str, Any] = field(default_factory=dict)
    runtime: RuntimeConfig | None = None
    """How it is run; None until the probe has chosen."""


@dataclass(frozen=True)
class TrainInputs:
    """What a run reads: the palette and the pictures under it."""

    palette: Palette
    data: ColourDataset


def load_inputs(config: TrainConfig, resume_from: Path | None = None) -> TrainInputs:
    """Load the palette and the data that a configuration names; a run that has begun keeps its own palette."""
    own = None if resume_from is None else resume_from / "palette.json"
    palette = (
        load_palette(own) if own and own.is_file() else resolve_palette(config.palette, config.data, size=config.size)
    )
    others = config.recipe.auxiliary_fraction > 0
    data = load_colour_dataset(
        config.data, palette, val_fraction=config.val_fraction, size=config.size, with_auxiliary=others
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
    on_epoch_end: Callable[[EpochRecord, nn.Module, TrainInputs], None] = lambda record, net, inputs: None,
) -> dict[str, Any]:
    """Train one net into ``folder`` and return its summary (what is written as ``summary.json``).

    ``inputs`` may be handed in where several runs share them. ``options`` is asked where ``config.execution`` is None.
    ``after_epoch`` is called in the main process after each epoch, with the record, the net and the inputs.
    """
    dist_info = dist_info or DistInfo()
    inputs = inputs or load_inputs(config, folder if resume else None)
    torch.manual_seed(config.seed)
    settings = {"num_colours": len(inputs.palette.colours), **config.model_args}
    net = build_model(config.model, **settings)
    if config.runtime is None:
        execution = _autotune(config, options or RuntimeOptions(), net, inputs) if dist_info.is_main else None
        config = replace(config, runtime=broadcast_object(execution, dist_info))
    assert config.runtime is not None
    execution = config.runtime
    convert_sync_batchnorm(net, dist_info)
    # Before anything is written: a run that cannot begin must not leave a folder that looks like one.
    job, plan = build_task(config, net, settings, inputs, dist_info, execution)
    if dist_info.is_main:
        _write_config(config, folder)
        save_palette(folder / "palette.json", inputs.palette)
        log(
            f"{config.model}, {config.recipe_name} recipe: {num_trainable_parameters(net):,} parameters; "
            f"running on {execution}"
        )
    trained = fit(
        job,
        plan,
        folder=folder,
        runtime=execution,
        dist_info=dist_info,
        resume=resume,
        on_epoch_end=lambda record, trained_so_far: on_epoch_end(record, trained_so_far, inputs),
    )
    return broadcast_object(
        _write_summary(config, folder, trained, inputs, plan) if dist_info.is_main else {}, dist_info
    )


def _autotune(config: TrainConfig, options: RuntimeOptions, model: nn.Module, inputs: TrainInputs) -> RuntimeConfig:
    """Choose how to run: what the options fix, else what the recipe fixes, else what is measured to be fastest."""
    recipe = config.recipe
    if options.precision == "auto":
        options = replace(options, precision=recipe.precision)
    count = min(recipe.batch_size, len(inputs.data.train))

    grey, labels = gather_batch(
        inputs.data.train, torch.arange(count), torch.zeros(count, dtype=torch.bool), device=resolve_device(options)
    )

    def losses(call: Callable[[Tensor], Tensor]) -> Tensor:
        return compute_losses(call, (grey, labels))["loss"]

    updates = config.max_steps or recipe.epochs * (len(inputs.data.train) // count)
    return autotune(options, model, losses, updates)


def build_task(
    config: TrainConfig,
    model: nn.Module,
    model_args: dict[str, Any],
    inputs: TrainInputs,
    dist_info: DistInfo,
    runtime: RuntimeConfig,
) -> tuple[TrainTask[Any], TrainSchedule]:
    recipe, data = config.recipe, inputs.data
    steps = num_batches(len(data.train), recipe.batch_size, shuffle=recipe.shuffle, dist_info=dist_info)
    plan = TrainSchedule(
        epochs=recipe.epochs,
        batches_per_epoch=steps,
        accumulate=config.accumulate,
        monitor="val_loss" if data.val is not None else None,
        patience=config.patience,
    )
    if config.max_steps is not None:
        plan = replace(plan, epochs=math.ceil(config.max_steps / plan.steps_per_epoch), max_steps=config.max_steps)
    if recipe.ema_fraction:
        plan = replace(plan, ema_decay=max(0.0, 1 - 1 / (recipe.ema_fraction * plan.total_steps)))
    optimisers = build_optimizers(recipe, model)
    description = model_metadata(config.model, model_args, inputs.palette)
    description |= {"recipe": config.recipe_name, "data": config.data, "size": config.size, "seed": config.seed}
    job = TrainTask(
        model=model,
        optimizers=optimisers,
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
        validate=lambda candidate: _evaluate_epoch(candidate, data, runtime.device),
        lr_schedule=lr_schedule(recipe, optimisers, plan.total_steps),
        checkpoint_metadata=lambda: description,
    )
    return job, plan


def _auxiliary_images(recipe: TrainRecipe, data: ColourDataset) -> AuxiliaryImages | None:
    if data.auxiliary is None or not recipe.auxiliary_fraction:
        return None
    return AuxiliaryImages(data.auxiliary, recipe.auxiliary_fraction)


def build_optimizers(recipe: TrainRecipe, model: nn.Module) -> list[torch.optim.Optimizer]:
    """The recipe's optimisers, weight decay on kernels only.

    Muon is for kernels between hidden layers; a kernel that reads one channel is as good as a vector and goes to AdamW.
    """
    parameters = list(model.parameters())
    kernels = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    if recipe.optimizer == "adam":
        return [torch.optim.Adam(parameters, lr=recipe.lr)]
    if recipe.optimizer == "adamw":
        groups = [{"params": kernels, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return [torch.optim.AdamW(groups, lr=recipe.lr)]
    hidden = [kernel for kernel in kernels if kernel.ndim == 4 and kernel.shape[1] > 1]
    rest = others + [kernel for kernel in kernels if not (kernel.ndim == 4 and kernel.shape[1] > 1)]
    return [
        Muon(hidden, lr=recipe.lr, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(rest, lr=recipe.adamw_lr, weight_decay=0.0),
    ]


def lr_schedule(
    recipe: TrainRecipe, optimizers: Sequence[torch.optim.Optimizer], total_steps: int
) -> Callable[[int], Sequence[Sequence[ParamGroupSettings]]]:
    """The learning rates of every update, by the recipe's shape, from the peaks that the optimisers hold."""
    peaks = [[float(group["lr"]) for group in optimiser.param_groups] for optimiser in optimizers]

    def schedule(update: int) -> Sequence[Sequence[ParamGroupSettings]]:
        # Half an update in: neither the first nor the last step is wasted on a rate of 0.
        factor = lr_factor(recipe, (update + 0.5) / total_steps)
        return [[{"lr": peak * factor} for peak in groups] for groups in peaks]

    return schedule


def _evaluate_epoch(model: nn.Module, data: ColourDataset, device: str) -> dict[str, float]:
    """The metrics of an epoch, in the order of ``metrics.jsonl``."""

    def call(grey: Tensor) -> Tensor:
        scores: Tensor = model(grey.to(device))
        return scores.cpu()

    metrics = {}
    for name, pictures in (
        ("train", data.train.select(slice(0, TRAIN_EVAL_IMAGES))),
        ("val", data.val),
        ("test", data.test),
    ):
        if pictures is not None:
            metrics[f"{name}_loss"], metrics[f"{name}_accuracy"] = loss_and_accuracy(
                call, pictures.grey, pictures.labels
            )
    del metrics["train_loss"]  # The mean over the epoch's own batches stands there already.
    return metrics


def _write_config(config: TrainConfig, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, config)


def read_config(folder: Path) -> TrainConfig:
    """The configuration of a run folder; UsageError if it holds none."""
    path = folder / "config.json"
    if not path.is_file():
        raise UsageError(f"{folder}: holds no config.json; give the folder of a run that chromabox train began")
    try:
        values = read_config_values(folder)
        values["recipe"] = TrainRecipe(**values["recipe"])
        values["runtime"] = RuntimeConfig(**values["runtime"])
        return TrainConfig(**values)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not the configuration of a colour run ({error})") from error


def _write_summary(
    config: TrainConfig, folder: Path, model: nn.Module, inputs: TrainInputs, schedule: TrainSchedule
) -> dict[str, Any]:
    """The run's result, measured again in float32 with the last epoch's net."""
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
