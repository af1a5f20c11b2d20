"""Colour runs that are wanted in certain folders: trained there, gone on with there, or taken as they are."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from chromabox.colour.training.train import Inputs, TrainConfig, load_inputs, read_config, train
from chromabox.engine.runtime_options import ExecutionOptions
from chromabox.errors import UsageError
from chromabox.report.live import draw_run, watch_run


def train_missing(
    wanted: Mapping[Path, TrainConfig], *, options: ExecutionOptions | None = None, say: Callable[[str], None] = print
) -> None:
    """Train every run into its folder: finished ones are taken as they are, begun ones gone on with.

    Runs that read the same follow each other best: the pictures of one are kept for the next. Raises UsageError, before
    anything is trained, if another run is in the place of one.
    """
    there = {run: _begun(run, config) for run, config in wanted.items()}
    read: tuple[object, ...] | None = None
    inputs: Inputs | None = None
    for run, config in wanted.items():
        begun = there[run]
        if begun is not None and (run / "summary.json").is_file():
            say(f"{run}: taken as it is")
            continue
        if begun is None and read != _reads(config):
            read, inputs = _reads(config), load_inputs(config)
        say(f"{run}: {'training' if begun is None else 'going on'}")
        train(
            begun or config,
            run,
            options=options,
            inputs=inputs if begun is None else None,  # A begun run has a palette of its own.
            resume=begun is not None,
            say=say,
            after_epoch=watch_run(run, say),
        )
        draw_run(run, f"{run.name}, {config.data}")


def _begun(run: Path, config: TrainConfig) -> TrainConfig | None:
    """What is there of this very run, to be taken or gone on with; UsageError if another one is in its place."""
    if not (run / "last.safetensors").is_file():
        return None
    there = read_config(run)
    if replace(there, execution=None) != config:
        raise UsageError(f"{run}: holds a run with other settings; give another -o folder or remove it")
    return there


def _reads(config: TrainConfig) -> tuple[object, ...]:
    """What decides the inputs of a run."""
    return config.data, config.palette, config.size, config.hold_out, config.recipe.companions > 0
