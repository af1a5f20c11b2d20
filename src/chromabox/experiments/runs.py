"""Colour runs that are wanted in certain folders: trained there, gone on with there, or taken as they are.

The finished runs below some folders, by what they are.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from chromabox.colour.training.recipes import NETS_IN_ORDER
from chromabox.colour.training.train import Inputs, TrainConfig, load_inputs, read_config, train
from chromabox.engine.runtime_options import ExecutionOptions
from chromabox.errors import UsageError
from chromabox.report.training import draw_run, watch_run


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


@dataclass(frozen=True)
class Found:
    """Folders of finished runs, each list in the order of its paths."""

    colour: dict[str, list[Path]] = field(default_factory=dict)
    """Of nets with a palette, by the net's name in the assignment's order, then by seed; all of one recipe, data and
    palette, so that they can be compared."""
    sweeps: list[Path] = field(default_factory=list)
    """Folders that hold a ``sweep.json``."""
    detectors: list[Path] = field(default_factory=list)
    """Fine-tuned detectors."""
    left_out: list[str] = field(default_factory=list)
    """Sentences about runs that are there and cannot be used."""


def summary_of(run: Path) -> dict[str, Any]:
    """``summary.json`` of a finished run."""
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return summary


def find_runs(paths: Sequence[Path]) -> Found:
    """Look for finished runs in the folders and below them, a sweep's own runs apart.

    Of colour runs the recipe, data and palette that most nets share are taken (the longest trained, of several). Raises
    UsageError for a path that does not exist or below which no run is finished.
    """
    found = Found()
    colour: dict[tuple[str, str, str], list[Path]] = {}
    for path in paths:
        if not path.is_dir():
            raise UsageError(f"{path}: is no folder; give the folder of a run, or one that holds runs")
        sweeps = sorted(file.parent for file in path.rglob("sweep.json"))
        runs = _runs_below(path, sweeps)
        if not sweeps and not runs:
            raise UsageError(f"{path}: holds no finished run; chromabox train or finetune makes one")
        found.sweeps.extend(sweeps)
        for run in runs:
            net = json.loads((run / "config.json").read_text(encoding="utf-8")).get("net")
            if net == "detector":
                found.detectors.append(run)
            elif net in NETS_IN_ORDER:
                summary = summary_of(run)
                colour.setdefault((summary["recipe"], summary["data"], summary["palette"]), []).append(run)
            else:
                found.left_out.append(f"{run}: a run of {net}, which the write-up has no place for")
    _choose(colour, found)
    return found


def _runs_below(path: Path, sweeps: Sequence[Path]) -> list[Path]:
    """Folders with a configuration and a summary, but for a sweep's own."""
    folders = sorted(file.parent for file in path.rglob("summary.json") if (file.parent / "config.json").is_file())
    return [folder for folder in folders if not any(folder.is_relative_to(sweep) for sweep in sweeps)]


def _choose(colour: dict[tuple[str, str, str], list[Path]], found: Found) -> None:
    """Of several kinds of colour runs that cannot be compared the one with the most nets, then the most epochs."""

    def worth(runs: list[Path]) -> tuple[int, int]:
        summaries = [summary_of(run) for run in runs]
        return len({one["net"] for one in summaries}), max(one["epochs"] for one in summaries)

    kinds = sorted(colour.items(), key=lambda kind: worth(kind[1]), reverse=True)
    for (recipe, data, palette), runs in kinds[1:]:
        found.left_out.append(
            f"{len(runs)} runs by the {recipe} recipe on {data} with palette {palette}: not comparable with the "
            "others, so give them to a report of their own"
        )
    for net in NETS_IN_ORDER:
        own = [run for _, runs in kinds[:1] for run in runs if summary_of(run)["net"] == net]
        if own:
            found.colour[net] = _alike(net, own, found)


def _alike(net: str, runs: list[Path], found: Found) -> list[Path]:
    """Of a net's runs those that differ in nothing but the seed: the largest such group, of equal ones the longest."""
    groups: dict[str, list[Path]] = {}
    for run in runs:
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
        what = {name: config.get(name) for name in ("recipe", "settings", "steps", "size", "hold_out", "accumulate")}
        groups.setdefault(json.dumps(what, sort_keys=True), []).append(run)
    best = max(groups.values(), key=lambda group: (len(group), max(summary_of(run)["epochs"] for run in group)))
    others = [run for group in groups.values() if group is not best for run in group]
    if others:
        found.left_out.append(
            f"{len(others)} runs of {net} with other settings than the rest, from {others[0]} on: not comparable with "
            "the others, so give them to a report of their own"
        )
    return sorted(best, key=lambda run: int(summary_of(run)["seed"]))
