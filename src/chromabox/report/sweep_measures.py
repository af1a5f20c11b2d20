"""What the finished runs of a sweep reached, measured alike for all of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from chromabox.colour.data.datasets import ColourData, Pictures, batches_per_epoch
from chromabox.colour.evaluation import metrics
from chromabox.colour.evaluation.evaluate import BATCH, predict_labels
from chromabox.colour.palette.io import load_palette
from chromabox.colour.palette.palette import labels_to_rgb
from chromabox.colour.training.loss import loss_and_accuracy
from chromabox.colour.training.train import Inputs, TrainConfig, load_inputs, read_config
from chromabox.colour.weights.checkpoint import TrainedNet, load_palette_net
from chromabox.errors import UsageError
from chromabox.report.found import summary_of
from chromabox.report.swept import Measured, Row, Value

Rgb = UInt8[np.ndarray, "pictures height width 3"]


class RunMeasures:
    """Measures runs, each once; pictures that were read are kept for the next run with the same palette."""

    def __init__(self, *, one_palette: bool) -> None:
        self.one_palette = one_palette
        self.inputs: Inputs | None = None
        self.done: dict[Path, dict[str, float]] = {}
        self.palettes: dict[str, Path] = {}

    def row(self, folder: Path, value: Value, runs: Sequence[Path]) -> Row:
        """What the runs of one value reached; they lie in ``folder``."""
        found = [self.measured(run) for run in runs]
        summary = summary_of(runs[0])
        return Row(
            value=value,
            runs=tuple(run.relative_to(folder) for run in runs),
            parameters=summary["parameters"],
            epochs=summary["epochs"],
            updates=summary["updates"],
            updates_per_epoch=updates_per_epoch(read_config(runs[0]), self.pictures(runs[0]).train),
            measured={name: Measured(tuple(one[name] for one in found)) for name in found[0]},
        )

    def measured(self, run: Path) -> dict[str, float]:
        """One run's numbers, by the names in ``MEASURED``."""
        if run not in self.done:
            self.refuse_another_palette(run)
            self.done[run] = _measured(run, self.pictures(run))
        return self.done[run]

    def pictures(self, run: Path) -> ColourData:
        """The run's pictures under its own palette."""
        palette = load_palette(run / "palette.json")
        if self.inputs is None or not np.array_equal(self.inputs.palette.colours, palette.colours):
            self.inputs = load_inputs(read_config(run), run)
        return self.inputs.data

    def refuse_another_palette(self, run: Path) -> None:
        """UsageError where ``auto`` found another palette while a part of the runs was trained."""
        name = summary_of(run)["palette"]
        self.palettes.setdefault(name, run)
        if self.one_palette and len(self.palettes) > 1:
            other, first = next(iter(self.palettes.items()))
            raise UsageError(
                f"{run}: has palette {name}, but {first} has {other}; give --palette and another -o folder"
            )


def updates_per_epoch(config: TrainConfig, train: Pictures) -> int:
    """Steps of the optimiser in a whole epoch."""
    return batches_per_epoch(len(train), config.recipe.batch_size, shuffle=config.recipe.shuffle)


def psnr_of_grey(test: Pictures) -> float:
    """PSNR in dB of the grey pictures, what is reached without any colour."""
    grey = np.rint(test.grey_sum.numpy() / 3).astype(np.uint8)
    return metrics.psnr(np.repeat(grey[..., None], 3, axis=-1), _truth(test))


def colourfulness_of_truth(test: Pictures) -> float:
    """Mean colourfulness of the true pictures."""
    return _colourfulness(_truth(test))


def _measured(run: Path, data: ColourData) -> dict[str, float]:
    summary, trained = summary_of(run), load_palette_net(run)
    train = data.train.take(slice(0, len(data.test)))
    train_loss, train_accuracy = loss_and_accuracy(trained.net, train.grey, train.labels)
    coloured, truth = _coloured(trained, data.test), _truth(data.test)
    passes = summary["updates"] / updates_per_epoch(read_config(run), data.train)
    return {
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "test_loss": summary["test_loss"],
        "test_accuracy": summary["test_accuracy"],
        "psnr": metrics.psnr(coloured, truth),
        "delta_e": metrics.delta_e(coloured, truth),
        "colourfulness": _colourfulness(coloured),
        "seconds": summary["seconds"],
        "seconds_per_epoch": summary["seconds"] / passes,
    }


def _coloured(trained: TrainedNet, test: Pictures) -> Rgb:
    """Every pixel in its likeliest colour."""
    parts = [predict_labels(trained.net, test.take(slice(i, i + BATCH)).grey) for i in range(0, len(test), BATCH)]
    return labels_to_rgb(np.concatenate(parts), trained.palette)


def _truth(test: Pictures) -> Rgb:
    return np.ascontiguousarray(test.rgb.transpose(0, 2, 3, 1))


def _colourfulness(pictures: Rgb) -> float:
    return float(np.mean([metrics.colourfulness(picture) for picture in pictures]))
