"""Training of pending colour runs and discovery of finished runs.

Each run is trained in its own folder, resumed if interrupted, and reused if finished. Finished runs below the given
folders are grouped by type.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chromabox.colour.training.recipes import PALETTE_MODELS
from chromabox.colour.training.train import TrainConfig, TrainInputs, load_inputs, train
from chromabox.engine.runs import RunDir, train_pending
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.errors import UsageError
from chromabox.report.training import log_metrics, plot_run, sample_callback


def require_distinct(option: str, values: Sequence[object]) -> None:
    """Raise UsageError if the list of values of a command-line option is empty or has duplicates."""
    if not values or len(set(values)) < len(values):
        problem = "has duplicate values" if values else "is empty"
        raise UsageError(f"{option}: {tuple(values)} {problem}; expected one or more different values")


def train_palette_models(configs: Mapping[Path, TrainConfig], *, options: RuntimeOptions | None = None) -> None:
    """Train every run into its folder; skip finished runs and resume interrupted ones.

    Place runs with the same inputs next to each other: the next run reuses the loaded images. Raise UsageError,
    before any training, if a folder contains a run with different settings.
    """
    inputs_key: tuple[object, ...] | None = None
    inputs: TrainInputs | None = None

    def train_run(config: TrainConfig, run: RunDir) -> None:
        nonlocal inputs_key, inputs
        # A resumed run uses the palette stored in its folder.
        key = (config.data, config.palette, config.size, config.val_fraction, config.recipe.auxiliary_fraction > 0)
        if run.is_started:
            run_inputs = load_inputs(config, run.path)
        else:
            if inputs is None or key != inputs_key:
                inputs_key, inputs = key, load_inputs(config)
            run_inputs = inputs
        callbacks = (log_metrics, sample_callback(run.path, run_inputs))
        train(config, run.path, options=options, inputs=run_inputs, resume=run.is_started, callbacks=callbacks)
        plot_run(run.path)

    train_pending(configs, train_run)


@dataclass(frozen=True)
class RunIndex:
    """Folders of finished runs; lists are sorted by path."""

    colour: dict[str, list[Path]] = field(default_factory=dict)
    """Runs of palette models by model name, in the assignment's order, then by seed. All share recipe, data and
    palette, which makes them comparable."""
    sweeps: list[Path] = field(default_factory=list)
    """Folders that contain a ``sweep.json``."""
    detectors: list[Path] = field(default_factory=list)
    """Runs of fine-tuned detectors."""
    ignored: list[str] = field(default_factory=list)
    """Messages about runs that cannot be used."""


def find_runs(paths: Sequence[Path]) -> RunIndex:
    """Return the finished runs in and below the folders, without the runs that belong to a sweep.

    Of the colour runs, select the combination of recipe, data and palette with the most models; ties go to the runs
    with the most epochs. Raise UsageError if a path is not a folder or contains no finished run.
    """
    run_index = RunIndex()
    colour: dict[tuple[str, str, str], list[Path]] = {}
    for path in paths:
        if not path.is_dir():
            raise UsageError(f"{path}: not a folder; use the folder of a run or a folder that contains runs")
        sweeps = sorted(file.parent for file in path.rglob("sweep.json"))
        folders = sorted(file.parent for file in path.rglob("summary.json") if (file.parent / "config.json").is_file())
        runs = [folder for folder in folders if not any(folder.is_relative_to(sweep) for sweep in sweeps)]
        if not sweeps and not runs:
            raise UsageError(
                f"{path}: contains no finished run; use chromabox train or chromabox finetune to create one"
            )
        run_index.sweeps.extend(sweeps)
        for run in runs:
            model = RunDir(run).config_values().get("model")
            if model == "detector":
                run_index.detectors.append(run)
            elif model in PALETTE_MODELS:
                summary = RunDir(run).summary()
                colour.setdefault((summary["recipe"], summary["data"], summary["palette"]), []).append(run)
            else:
                run_index.ignored.append(f"{run}: a run of {model}, which reports do not support")

    def sort_key(runs: list[Path]) -> tuple[int, int]:
        summaries = [RunDir(run).summary() for run in runs]
        return len({summary["net"] for summary in summaries}), max(summary["epochs"] for summary in summaries)

    groups = sorted(colour.items(), key=lambda group: sort_key(group[1]), reverse=True)
    for (recipe, data, palette), runs in groups[1:]:
        run_index.ignored.append(
            f"{len(runs)} runs with the {recipe} recipe on {data} with palette {palette}: not comparable with the "
            "others; use a separate report"
        )
    for name in PALETTE_MODELS:
        model_runs = [run for _, runs in groups[:1] for run in runs if RunDir(run).summary()["net"] == name]
        if model_runs:
            run_index.colour[name] = _same_settings(name, model_runs, run_index)
    return run_index


def _same_settings(model: str, runs: list[Path], index: RunIndex) -> list[Path]:
    """Return a model's largest group of runs that differ only in the seed; ties go to the one with the most epochs."""
    groups: dict[str, list[Path]] = {}
    for run in runs:
        config = RunDir(run).config_values()
        settings = {
            name: config.get(name)
            for name in ("recipe", "model_args", "max_steps", "size", "val_fraction", "accumulate")
        }
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(run)
    best = max(groups.values(), key=lambda group: (len(group), max(RunDir(run).summary()["epochs"] for run in group)))
    others = [run for group in groups.values() if group is not best for run in group]
    if others:
        index.ignored.append(
            f"{len(others)} runs of {model} have other settings than the rest, starting with {others[0]}: not "
            "comparable with the others; use a separate report"
        )
    return sorted(best, key=lambda run: int(RunDir(run).summary()["seed"]))
