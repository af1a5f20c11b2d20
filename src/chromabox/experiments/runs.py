"""Colour runs that are wanted in certain folders: trained there, gone on with there, or taken as they are.

The finished runs below some folders, by what they are.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from chromabox.colour.training.recipes import PALETTE_MODELS
from chromabox.colour.training.train import TrainConfig, TrainInputs, load_inputs, read_config, train
from chromabox.engine.runs import read_config_values
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.errors import UsageError
from chromabox.report.training import epoch_callback, plot_run


def train_pending(
    configs: Mapping[Path, TrainConfig], *, options: RuntimeOptions | None = None, log: Callable[[str], None] = print
) -> None:
    """Train every run into its folder: finished ones are taken as they are, begun ones gone on with.

    Runs that read the same follow each other best: the pictures of one are kept for the next. Raises UsageError, before
    anything is trained, if another run is in the place of one.
    """
    there = {run: _existing_config(run, config) for run, config in configs.items()}
    read: tuple[object, ...] | None = None
    inputs: TrainInputs | None = None
    for run, config in configs.items():
        begun = there[run]
        if begun is not None and (run / "summary.json").is_file():
            log(f"{run}: taken as it is")
            continue
        if begun is None and read != _inputs_key(config):
            read, inputs = _inputs_key(config), load_inputs(config)
        log(f"{run}: {'training' if begun is None else 'going on'}")
        train(
            begun or config,
            run,
            options=options,
            inputs=inputs if begun is None else None,  # A begun run has a palette of its own.
            resume=begun is not None,
            log=log,
            on_epoch_end=epoch_callback(run, log),
        )
        plot_run(run, f"{run.name}, {config.data}")


def _existing_config(run: Path, config: TrainConfig) -> TrainConfig | None:
    """What is there of this very run, to be taken or gone on with; UsageError if another one is in its place."""
    if not (run / "last.safetensors").is_file():
        return None
    there = read_config(run)
    if replace(there, runtime=None) != config:
        raise UsageError(f"{run}: holds a run with other settings; give another -o folder or remove it")
    return there


def _inputs_key(config: TrainConfig) -> tuple[object, ...]:
    """What decides the inputs of a run."""
    return config.data, config.palette, config.size, config.val_fraction, config.recipe.auxiliary_fraction > 0


@dataclass(frozen=True)
class RunIndex:
    """Folders of finished runs, each list in the order of its paths."""

    colour: dict[str, list[Path]] = field(default_factory=dict)
    """Of nets with a palette, by the net's name in the assignment's order, then by seed; all of one recipe, data and
    palette, so that they can be compared."""
    sweeps: list[Path] = field(default_factory=list)
    """Folders that hold a ``sweep.json``."""
    detectors: list[Path] = field(default_factory=list)
    """Fine-tuned detectors."""
    ignored: list[str] = field(default_factory=list)
    """Sentences about runs that are there and cannot be used."""


def read_summary(run: Path) -> dict[str, Any]:
    """``summary.json`` of a finished run."""
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return summary


def find_runs(paths: Sequence[Path]) -> RunIndex:
    """Look for finished runs in the folders and below them, a sweep's own runs apart.

    Of colour runs the recipe, data and palette that most nets share are taken (the longest trained, of several). Raises
    UsageError for a path that does not exist or below which no run is finished.
    """
    found = RunIndex()
    colour: dict[tuple[str, str, str], list[Path]] = {}
    for path in paths:
        if not path.is_dir():
            raise UsageError(f"{path}: is no folder; give the folder of a run, or one that holds runs")
        sweeps = sorted(file.parent for file in path.rglob("sweep.json"))
        runs = _find_run_folders(path, sweeps)
        if not sweeps and not runs:
            raise UsageError(f"{path}: holds no finished run; chromabox train or finetune makes one")
        found.sweeps.extend(sweeps)
        for run in runs:
            net = read_config_values(run).get("model")
            if net == "detector":
                found.detectors.append(run)
            elif net in PALETTE_MODELS:
                summary = read_summary(run)
                colour.setdefault((summary["recipe"], summary["data"], summary["palette"]), []).append(run)
            else:
                found.ignored.append(f"{run}: a run of {net}, which the write-up has no place for")
    _select_group(colour, found)
    return found


def _find_run_folders(path: Path, sweeps: Sequence[Path]) -> list[Path]:
    """Folders with a configuration and a summary, but for a sweep's own."""
    folders = sorted(file.parent for file in path.rglob("summary.json") if (file.parent / "config.json").is_file())
    return [folder for folder in folders if not any(folder.is_relative_to(sweep) for sweep in sweeps)]


def _select_group(colour: dict[tuple[str, str, str], list[Path]], index: RunIndex) -> None:
    """Of several kinds of colour runs that cannot be compared the one with the most nets, then the most epochs."""

    def worth(runs: list[Path]) -> tuple[int, int]:
        summaries = [read_summary(run) for run in runs]
        return len({one["net"] for one in summaries}), max(one["epochs"] for one in summaries)

    kinds = sorted(colour.items(), key=lambda kind: worth(kind[1]), reverse=True)
    for (recipe, data, palette), runs in kinds[1:]:
        index.ignored.append(
            f"{len(runs)} runs by the {recipe} recipe on {data} with palette {palette}: not comparable with the "
            "others, so give them to a report of their own"
        )
    for net in PALETTE_MODELS:
        own = [run for _, runs in kinds[:1] for run in runs if read_summary(run)["net"] == net]
        if own:
            index.colour[net] = _same_settings(net, own, index)


def _same_settings(model: str, runs: list[Path], index: RunIndex) -> list[Path]:
    """Of a net's runs those that differ in nothing but the seed: the largest such group, of equal ones the longest."""
    groups: dict[str, list[Path]] = {}
    for run in runs:
        config = read_config_values(run)
        what = {
            name: config.get(name)
            for name in ("recipe", "model_args", "max_steps", "size", "val_fraction", "accumulate")
        }
        groups.setdefault(json.dumps(what, sort_keys=True), []).append(run)
    best = max(groups.values(), key=lambda group: (len(group), max(read_summary(run)["epochs"] for run in group)))
    others = [run for group in groups.values() if group is not best for run in group]
    if others:
        index.ignored.append(
            f"{len(others)} runs of {model} with other settings than the rest, from {others[0]} on: not comparable with "
            "the others, so give them to a report of their own"
        )
    return sorted(best, key=lambda run: int(read_summary(run)["seed"]))
