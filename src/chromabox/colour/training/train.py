"""Training of the palette models, from a configuration to a run folder."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chromabox.colour.data.datasets import (
    ColourDataset,
    LabelledImages,
    load_colour_dataset,
    make_batches,
    num_batches,
    resolve_palette,
)
from chromabox.colour.models import build_model, num_trainable_parameters
from chromabox.colour.palette.io import load_palette, save_palette
from chromabox.colour.palette.palette import Palette
from chromabox.colour.training.loss import compute_losses, loss_and_accuracy
from chromabox.colour.training.recipes import PaletteModelName, TrainRecipe
from chromabox.colour.weights.checkpoint import load_palette_model, model_metadata
from chromabox.engine.autotune import RuntimeConfig
from chromabox.engine.distributed import DistInfo
from chromabox.engine.optim import build_muon, lr_schedule, split_kernels
from chromabox.engine.options import RuntimeOptions
from chromabox.engine.runs import RunConfig, RunDir
from chromabox.engine.train import EpochCallback, Forward, run_training
from chromabox.engine.trainer import TrainSchedule, TrainTask, make_schedule

#: Number of images at the start of the training split on which the training accuracy is measured in evaluation mode.
TRAIN_EVAL_IMAGES = 500


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """Complete configuration for training a palette model, saved as ``config.json``."""

    model: PaletteModelName
    recipe_name: str
    recipe: TrainRecipe
    palette: str
    size: int = 32
    val_fraction: float = 0.0
    accumulate: int = 1
    model_args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainInputs:
    """Inputs of a training run: the palette and the images with their palette labels."""

    palette: Palette
    data: ColourDataset


def load_inputs(config: TrainConfig, resume_from: Path | None = None) -> TrainInputs:
    """Load the palette and the data that a configuration specifies.

    A resumed run uses ``palette.json`` in its folder or, if this file is missing, the palette in its last checkpoint.
    """
    if resume_from is None:
        palette = resolve_palette(config.palette, config.data, size=config.size)
    elif (resume_from / "palette.json").is_file():
        palette = load_palette(resume_from / "palette.json")
    else:
        palette = load_palette_model(resume_from / "last.safetensors").palette
    with_auxiliary, val_fraction = config.recipe.auxiliary_fraction > 0, config.val_fraction
    data = load_colour_dataset(
        config.data, palette, val_fraction=val_fraction, size=config.size, with_auxiliary=with_auxiliary
    )
    return TrainInputs(palette, data)


class PaletteJob:
    """Training job for a palette model."""

    def __init__(self, config: TrainConfig, inputs: TrainInputs, dist_info: DistInfo) -> None:
        self.config, self.inputs, self.dist_info = config, inputs, dist_info
        torch.manual_seed(config.seed)
        self.model_args = {"num_colours": len(inputs.palette.colours), **config.model_args}
        self.model = build_model(config.model, **self.model_args)
        num_images, recipe = len(inputs.data.train), config.recipe
        self.batches_per_epoch = num_batches(num_images, recipe.batch_size, shuffle=recipe.shuffle, dist_info=dist_info)
        self.num_steps = config.max_steps or recipe.epochs * self.batches_per_epoch

    def __str__(self) -> str:
        num_parameters = num_trainable_parameters(self.model)
        return f"{self.config.model}, {self.config.recipe_name} recipe: {num_parameters:,} parameters"

    def trial_loss(self, device: str) -> Callable[[Forward], Tensor]:
        """Return a function that computes the loss of a forward function on the first batch."""
        images = self.inputs.data.train.select(slice(self.config.recipe.batch_size))
        batch = images.grey.to(device), images.labels.to(device)
        return lambda forward: compute_losses(forward, batch)["loss"]

    def save_inputs(self, run: RunDir) -> None:
        """Write the palette to the run folder."""
        save_palette(run.path / "palette.json", self.inputs.palette)

    @contextmanager
    def open_task(self, run: RunDir, runtime: RuntimeConfig) -> Iterator[tuple[TrainTask[Any], TrainSchedule]]:
        """Yield the task and its schedule. If there is a validation set, its loss determines the best epoch."""
        config, recipe, data = self.config, self.config.recipe, self.inputs.data
        monitor = "val_loss" if data.val is not None else None
        self.schedule = make_schedule(
            config, self.batches_per_epoch, accumulate=config.accumulate, monitor=monitor, ema_warmup=False
        )
        optimizers = build_optimizers(recipe, self.model)
        metadata = model_metadata(config.model, self.model_args, self.inputs.palette)
        metadata |= {"recipe": config.recipe_name, "data": config.data, "size": config.size, "seed": config.seed}
        task = TrainTask(
            model=self.model,
            optimizers=optimizers,
            batches=make_batches(
                data.train,
                recipe.batch_size,
                shuffle=recipe.shuffle,
                hflip=recipe.hflip,
                seed=config.seed,
                auxiliary=data.auxiliary if recipe.auxiliary_fraction else None,
                auxiliary_fraction=recipe.auxiliary_fraction,
                dist_info=self.dist_info,
                device=runtime.device,
            ),
            compute_loss=compute_losses,
            validate=lambda model: _evaluate_epoch(model, data, runtime.device),
            lr_schedule=lr_schedule(recipe, optimizers, self.schedule.total_steps),
            checkpoint_metadata=lambda: metadata,
        )
        yield task, self.schedule

    def summarise(self, run: RunDir, model: nn.Module) -> dict[str, Any]:
        """Evaluate the model of the last epoch in float32 and return the summary of the run."""
        device = next(model.parameters()).device
        test_loss, test_accuracy = _loss_and_accuracy(model, self.inputs.data.test, device)
        records = run.metrics()
        epochs = int(records[-1]["epoch"])
        return {
            "net": self.config.model,
            "recipe": self.config.recipe_name,
            "data": self.config.data,
            "palette": self.inputs.palette.name,
            "seed": self.config.seed,
            "parameters": num_trainable_parameters(model),
            "epochs": epochs,
            "updates": min(self.schedule.total_steps, epochs * self.schedule.steps_per_epoch),
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "seconds": round(sum(record["seconds"] for record in records), 3),
        }


def train(
    config: TrainConfig,
    folder: Path,
    *,
    options: RuntimeOptions | None = None,
    inputs: TrainInputs | None = None,
    dist_info: DistInfo | None = None,
    resume: bool = False,
    callbacks: Sequence[EpochCallback] = (),
) -> dict[str, Any]:
    """Train a palette model, write the run to ``folder`` and return its summary.

    ``inputs`` can be shared by several runs. If they are None, the inputs that ``config`` specifies are loaded. See
    :func:`chromabox.engine.train.run_training` for the other arguments.
    """
    dist_info, options = dist_info or DistInfo(), options or RuntimeOptions()
    job = PaletteJob(config, inputs or load_inputs(config, folder if resume else None), dist_info)
    if options.precision == "auto":
        options = replace(options, precision=config.recipe.precision)
    return run_training(job, RunDir(folder), options=options, dist_info=dist_info, resume=resume, callbacks=callbacks)


def build_optimizers(recipe: TrainRecipe, model: nn.Module) -> list[torch.optim.Optimizer]:
    """Return the optimizers of a recipe.

    With ``optimizer="adam"``, Adam updates all parameters. Otherwise, Muon with weight decay updates the convolution
    kernels, and AdamW without weight decay updates the other parameters.
    """
    if recipe.optimizer == "adam":
        return [torch.optim.Adam(model.parameters(), lr=recipe.lr)]
    kernels, others = split_kernels(model.parameters())
    others.sort(key=lambda parameter: parameter.ndim)
    return build_muon(recipe, kernels, torch.optim.AdamW(others, lr=recipe.adamw_lr, weight_decay=0.0))


def _evaluate_epoch(model: nn.Module, data: ColourDataset, device: str) -> dict[str, float]:
    """Return the metrics of an epoch, in the order in which ``metrics.jsonl`` lists them."""
    metrics = {}
    splits = {"train": data.train.select(slice(TRAIN_EVAL_IMAGES)), "val": data.val, "test": data.test}
    for name, images in splits.items():
        if images is not None:
            metrics[f"{name}_loss"], metrics[f"{name}_accuracy"] = _loss_and_accuracy(model, images, device)
    del metrics["train_loss"]  # The trainer records the mean loss over the batches of the epoch.
    return metrics


def _loss_and_accuracy(model: nn.Module, images: LabelledImages, device: str | torch.device) -> tuple[float, float]:
    return loss_and_accuracy(lambda grey: model(grey.to(device)).cpu(), images.grey, images.labels)
