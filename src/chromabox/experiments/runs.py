"""Training of the colourisation runs of an experiment, and search for finished runs."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chromabox.colour.training.recipes import PALETTE_MODELS
from chromabox.colour.training.train import TrainConfig, TrainInputs, load_inputs, train
from chromabox.engine.logger import read_metrics
from chromabox.engine.options import RuntimeOptions
from chromabox.engine.runs import RunDir, train_pending
from chromabox.errors import ChromaboxError, UsageError
from chromabox.report.training import log_metrics, plot_run, sample_callback

log = logging.getLogger(__name__)

#: Values that the summary of a palette model must have.
_PALETTE_SUMMARY = ("recipe", "data", "palette", "net", "seed", "test_loss", "test_accuracy")


def require_distinct(option: str, values: Sequence[object]) -> None:
    """Raise UsageError if a command-line option has no values or duplicate values."""
    if not values or len(set(values)) < len(values):
        problem = "has duplicate values" if values else "is empty"
        raise UsageError(f"{option}: {tuple(values)} {problem}; expected one or more different values")


def train_palette_models(configs: Mapping[Path, TrainConfig], *, options: RuntimeOptions | None = None) -> None:
    """Train every run in its folder. Skip finished runs and resume interrupted runs.

    A run reuses the images of the previous run if both have the same inputs. Callers should therefore place such runs
    next to each other. Raise UsageError, before any training, if a folder contains a run with different settings.
    """
    loaded: dict[tuple[object, ...], TrainInputs] = {}

    def train_run(config: TrainConfig, run: RunDir) -> None:
        key = (config.data, config.palette, config.size, config.val_fraction, config.recipe.auxiliary_fraction > 0)
        if run.is_started:
            inputs = load_inputs(config, run.path)  # A resumed run uses the palette stored in its folder.
        else:
            if key not in loaded:
                loaded.clear()
                loaded[key] = load_inputs(config)
            inputs = loaded[key]
        callbacks = (log_metrics, sample_callback(run.path, inputs))
        train(config, run.path, options=options, inputs=inputs, resume=run.is_started, callbacks=callbacks)
        plot_run(run.path)

    train_pending(configs, train_run)


@dataclass(frozen=True)
class RunIndex:
    """Folders of finished runs. Lists are sorted by path unless stated otherwise."""

    colour: dict[str, list[Path]] = field(default_factory=dict)
    """Runs of palette models, keyed by model name in the assignment's order and sorted by seed. All runs have the same
    recipe, data and palette, so that they can be compared."""
    sweeps: list[Path] = field(default_factory=list)
    """Folders that contain a ``sweep.json``."""
    detectors: list[Path] = field(default_factory=list)
    """Runs of fine-tuned detectors."""
    ignored: list[str] = field(default_factory=list)
    """Messages about runs that cannot be used."""


def find_runs(paths: Sequence[Path]) -> RunIndex:
    """Return the finished sweeps and runs in and below the folders, without the runs that belong to a sweep.

    Colourisation runs are returned for only one combination of recipe, data and palette: the one with the most models
    or, in a tie, the one whose longest run has the most epochs. Raise UsageError if a path is not a folder, and
    ChromaboxError if a folder contains no finished run. Damaged runs are ignored with a warning, except that
    ChromaboxError is raised if there is nothing else.
    """
    run_index = RunIndex()
    damaged: list[ChromaboxError] = []
    combinations: dict[tuple[str, str, str], dict[Path, dict[str, Any]]] = {}
    for path in paths:
        if not path.is_dir():
            raise UsageError(f"{path}: not a folder; use the folder of a run or a folder that contains runs")
        sweeps = sorted(file.parent for file in path.rglob("sweep.json"))
        folders = sorted(file.parent for file in path.rglob("summary.json") if (file.parent / "config.json").is_file())
        runs = [folder for folder in folders if not any(folder.is_relative_to(sweep) for sweep in sweeps)]
        if not sweeps and not runs:
            raise ChromaboxError(f"{path}: contains no finished run; use chromabox train or finetune to create one")
        run_index.sweeps.extend(sweeps)
        for run in runs:
            try:
                model, summary = RunDir(run).config_values()["model"], RunDir(run).summary()
                read_metrics(run, summary["epochs"])
                if model == "detector":
                    run_index.detectors.append(run)
                elif model in PALETTE_MODELS:
                    # A missing value raises ChromaboxError.
                    recipe, data, palette, *_ = (summary[name] for name in _PALETTE_SUMMARY)
                    combinations.setdefault((recipe, data, palette), {})[run] = summary
                else:
                    run_index.ignored.append(f"{run}: is a run of {model}, which reports do not support")
            except ChromaboxError as error:
                damaged.append(error)
    if damaged and not (run_index.sweeps or run_index.detectors or combinations):
        raise damaged[0]
    for problem in damaged:
        log.warning(f"run left out: {problem}")
        run_index.ignored.append(f"run left out: {problem}")

    def rank(summaries: Mapping[Path, Mapping[str, Any]]) -> tuple[int, int]:
        models = {summary["net"] for summary in summaries.values()}
        return len(models), max(summary["epochs"] for summary in summaries.values())

    best_first = sorted(combinations.items(), key=lambda item: rank(item[1]), reverse=True)
    for (recipe, data, palette), summaries in best_first[1:]:
        run_index.ignored.append(
            f"number of runs that are not comparable with the other runs: {len(summaries)} with the {recipe} recipe on "
            f"{data} with palette {palette}; use a separate report"
        )
    for _, summaries in best_first[:1]:
        for model in PALETTE_MODELS:
            runs = [run for run, summary in summaries.items() if summary["net"] == model]
            if runs:
                run_index.colour[model] = _same_settings(model, runs, summaries, run_index)
    return run_index


def _same_settings(
    model: str, runs: Sequence[Path], summaries: Mapping[Path, Mapping[str, Any]], index: RunIndex
) -> list[Path]:
    """Return a model's largest group of runs that differ only in the seed.

    Of groups of the same size, return the group with the most epochs.
    """
    groups: dict[str, list[Path]] = {}
    names = ("recipe", "model_args", "max_steps", "size", "val_fraction", "accumulate")
    for run in runs:
        config = RunDir(run).config_values()
        groups.setdefault(json.dumps([config.get(name) for name in names], sort_keys=True), []).append(run)
    best = max(groups.values(), key=lambda group: (len(group), max(summaries[run]["epochs"] for run in group)))
    if others := [run for run in runs if run not in best]:
        index.ignored.append(
            f"number of runs that are not comparable with the other runs: {len(others)} of {model} with other settings "
            f"(the first is {others[0]}); use a separate report"
        )
    return sorted(best, key=lambda run: int(summaries[run]["seed"]))
