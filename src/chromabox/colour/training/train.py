"""From a configuration to a run folder: data → net → loop, and what stands in the folder at the end."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chromabox.colour.data.datasets import (
    ColourData,
    Companions,
    batches,
    batches_per_epoch,
    load_colour_data,
    resolve_palette,
    take_batch,
)
from chromabox.colour.models import build_net, count_parameters
from chromabox.colour.palette.io import load_palette, save_palette
from chromabox.colour.palette.palette import Palette
from chromabox.colour.training.loss import loss_and_accuracy, training_losses
from chromabox.colour.training.recipes import NetName, Recipe, schedule_factor
from chromabox.colour.weights.checkpoint import describe_net
from chromabox.engine.autotune import Execution, choose_execution, device_of
from chromabox.engine.checkpoint import write_json
from chromabox.engine.distributed import World, from_main, synchronise_batch_norm
from chromabox.engine.logger import Record, read_metrics
from chromabox.engine.optim import KernelMuon
from chromabox.engine.runs import versions
from chromabox.engine.runtime_options import ExecutionOptions
from chromabox.engine.trainer import Job, Plan, Settings, fit
from chromabox.errors import UsageError

#: Training accuracy is measured, in evaluation mode, on the first pictures of the training split.
TRAIN_SAMPLE = 500


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run, complete: what stands in ``config.json``."""

    net: NetName
    recipe_name: str
    recipe: Recipe
    data: str
    palette: str
    seed: int = 0
    size: int = 32
    hold_out: float = 0.0
    accumulate: int = 1
    patience: int | None = None
    steps: int | None = None
    """Steps of the optimisers in the whole run, instead of the recipe's epochs; the last epoch may be cut short."""
    settings: dict[str, Any] = field(default_factory=dict)
    execution: Execution | None = None
    """How it is run; None until the probe has chosen."""


@dataclass(frozen=True)
class Inputs:
    """What a run reads: the palette and the pictures under it."""

    palette: Palette
    data: ColourData


def load_inputs(config: TrainConfig, run: Path | None = None) -> Inputs:
    """Load the palette and the data that a configuration names; a run that has begun keeps its own palette."""
    own = None if run is None else run / "palette.json"
    palette = (
        load_palette(own) if own and own.is_file() else resolve_palette(config.palette, config.data, size=config.size)
    )
    others = config.recipe.companions > 0
    data = load_colour_data(config.data, palette, hold_out=config.hold_out, size=config.size, others=others)
    return Inputs(palette, data)


def train(
    config: TrainConfig,
    folder: Path,
    *,
    options: ExecutionOptions | None = None,
    inputs: Inputs | None = None,
    world: World | None = None,
    resume: bool = False,
    say: Callable[[str], None] = print,
    after_epoch: Callable[[Record, nn.Module, Inputs], None] = lambda record, net, inputs: None,
) -> dict[str, Any]:
    """Train one net into ``folder`` and return its summary (what is written as ``summary.json``).

    ``inputs`` may be handed in where several runs share them. ``options`` is asked where ``config.execution`` is None.
    ``after_epoch`` is called in the main process after each epoch, with the record, the net and the inputs.
    """
    world = world or World()
    inputs = inputs or load_inputs(config, folder if resume else None)
    torch.manual_seed(config.seed)
    settings = {"num_colours": len(inputs.palette.colours), **config.settings}
    net = build_net(config.net, **settings)
    if config.execution is None:
        execution = _probe(config, options or ExecutionOptions(), net, inputs) if world.is_main else None
        config = replace(config, execution=from_main(execution, world))
    assert config.execution is not None
    execution = config.execution
    synchronise_batch_norm(net, world)
    # Before anything is written: a run that cannot begin must not leave a folder that looks like one.
    job, plan = _job_and_plan(config, net, settings, inputs, world, execution)
    if world.is_main:
        _write_config(config, folder)
        save_palette(folder / "palette.json", inputs.palette)
        say(f"{config.net}, {config.recipe_name} recipe: {count_parameters(net):,} parameters; running on {execution}")
    trained = fit(
        job,
        plan,
        folder=folder,
        execution=execution,
        world=world,
        resume=resume,
        after_epoch=lambda record, trained_so_far: after_epoch(record, trained_so_far, inputs),
    )
    return from_main(_summary(config, folder, trained, inputs, plan) if world.is_main else {}, world)


def _probe(config: TrainConfig, options: ExecutionOptions, net: nn.Module, inputs: Inputs) -> Execution:
    """Choose how to run: what the options fix, else what the recipe fixes, else what is measured to be fastest."""
    recipe = config.recipe
    if options.precision == "auto":
        options = replace(options, precision=recipe.precision)
    count = min(recipe.batch_size, len(inputs.data.train))

    grey, labels = take_batch(
        inputs.data.train, torch.arange(count), torch.zeros(count, dtype=torch.bool), device=device_of(options)
    )

    def losses(call: Callable[[Tensor], Tensor]) -> Tensor:
        return training_losses(call, (grey, labels))["loss"]

    updates = config.steps or recipe.epochs * (len(inputs.data.train) // count)
    return choose_execution(options, net, losses, updates)


def _job_and_plan(
    config: TrainConfig, net: nn.Module, settings: dict[str, Any], inputs: Inputs, world: World, execution: Execution
) -> tuple[Job[Any], Plan]:
    recipe, data = config.recipe, inputs.data
    steps = batches_per_epoch(len(data.train), recipe.batch_size, shuffle=recipe.shuffle, world=world)
    plan = Plan(
        epochs=recipe.epochs,
        steps_per_epoch=steps,
        accumulate=config.accumulate,
        watch="val_loss" if data.held_out is not None else None,
        patience=config.patience,
    )
    if config.steps is not None:
        plan = replace(plan, epochs=math.ceil(config.steps / plan.updates_per_epoch), most_updates=config.steps)
    if recipe.average:
        plan = replace(plan, average_decay=max(0.0, 1 - 1 / (recipe.average * plan.updates)))
    optimisers = build_optimisers(recipe, net)
    description = describe_net(config.net, settings, inputs.palette)
    description |= {"recipe": config.recipe_name, "data": config.data, "size": config.size, "seed": config.seed}
    job = Job(
        net=net,
        optimisers=optimisers,
        batches=batches(
            data.train,
            recipe.batch_size,
            shuffle=recipe.shuffle,
            mirror=recipe.mirror,
            seed=config.seed,
            companions=_companions(recipe, data),
            world=world,
            device=execution.device,
        ),
        losses=training_losses,
        validate=lambda candidate: _measure(candidate, data, execution.device),
        schedule=schedule_of(recipe, optimisers, plan.updates),
        describe=lambda: description,
    )
    return job, plan


def _companions(recipe: Recipe, data: ColourData) -> Companions | None:
    if data.others is None or not recipe.companions:
        return None
    return Companions(data.others, recipe.companions)


def build_optimisers(recipe: Recipe, net: nn.Module) -> list[torch.optim.Optimizer]:
    """The recipe's optimisers, weight decay on kernels only.

    Muon is for kernels between hidden layers; a kernel that reads one channel is as good as a vector and goes to AdamW.
    """
    parameters = list(net.parameters())
    kernels = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    if recipe.optimiser == "adam":
        return [torch.optim.Adam(parameters, lr=recipe.learning_rate)]
    if recipe.optimiser == "adamw":
        groups = [{"params": kernels, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return [torch.optim.AdamW(groups, lr=recipe.learning_rate)]
    hidden = [kernel for kernel in kernels if kernel.ndim == 4 and kernel.shape[1] > 1]
    rest = others + [kernel for kernel in kernels if not (kernel.ndim == 4 and kernel.shape[1] > 1)]
    return [
        KernelMuon(hidden, lr=recipe.learning_rate, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(rest, lr=recipe.other_learning_rate, weight_decay=0.0),
    ]


def schedule_of(
    recipe: Recipe, optimisers: Sequence[torch.optim.Optimizer], updates: int
) -> Callable[[int], Sequence[Sequence[Settings]]]:
    """The learning rates of every update, by the recipe's shape, from the peaks that the optimisers hold."""
    peaks = [[float(group["lr"]) for group in optimiser.param_groups] for optimiser in optimisers]

    def schedule(update: int) -> Sequence[Sequence[Settings]]:
        # Half an update in: neither the first nor the last step is wasted on a rate of 0.
        factor = schedule_factor(recipe, (update + 0.5) / updates)
        return [[{"lr": peak * factor} for peak in groups] for groups in peaks]

    return schedule


def _measure(net: nn.Module, data: ColourData, device: str) -> dict[str, float]:
    """The metrics of an epoch, in the order of ``metrics.jsonl``."""

    def call(grey: Tensor) -> Tensor:
        scores: Tensor = net(grey.to(device))
        return scores.cpu()

    metrics = {}
    for name, pictures in (
        ("train", data.train.take(slice(0, TRAIN_SAMPLE))),
        ("val", data.held_out),
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
    write_json(folder / "config.json", {**asdict(config), "versions": versions()})


def read_config(folder: Path) -> TrainConfig:
    """The configuration of a run folder; UsageError if it holds none."""
    path = folder / "config.json"
    if not path.is_file():
        raise UsageError(f"{folder}: holds no config.json; give the folder of a run that chromabox train began")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values.pop("versions", None)
        values["recipe"] = Recipe(**values["recipe"])
        values["execution"] = Execution(**values["execution"])
        return TrainConfig(**values)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not the configuration of a colour run ({error})") from error


def _summary(config: TrainConfig, folder: Path, net: nn.Module, inputs: Inputs, plan: Plan) -> dict[str, Any]:
    """The run's result, measured again in float32 with the last epoch's net."""
    net.eval()
    device = config.execution.device if config.execution else "cpu"
    test = inputs.data.test
    test_loss, test_accuracy = loss_and_accuracy(lambda grey: net(grey.to(device)).cpu(), test.grey, test.labels)
    records = read_metrics(folder)
    epochs = int(records[-1]["epoch"])
    summary = {
        "net": config.net,
        "recipe": config.recipe_name,
        "data": config.data,
        "palette": inputs.palette.name,
        "seed": config.seed,
        "parameters": count_parameters(net),
        "epochs": epochs,
        "updates": min(plan.updates, epochs * plan.updates_per_epoch),
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "seconds": round(sum(record["seconds"] for record in records), 3),
    }
    write_json(folder / "summary.json", summary)
    return summary
