"""Question B.5: the effect of the batch size on losses and images for a fixed number of epochs or steps."""

from pathlib import Path
from typing import Literal

import numpy as np

from chromabox.assignment.analysis.statistics import mean_rank_correlation
from chromabox.assignment.sections.numbers import answers, int_number
from chromabox.experiments.runs import RunIndex
from chromabox.experiments.sweep_results import SweepResult, read_sweep
from chromabox.report.document.model import Block, Figure, MissingRun, Number, Source, Table, Text

#: Command that trains the runs for this question, with the batch sizes of the assignment.
SWEEP_COMMAND = "chromabox sweep conv-transpose --over batch-size=32,64,128,256,512 --seeds 0 1 --recipe course"

#: A change is called a trend if the absolute value of its rank correlation is at least this.
MIN_CORRELATION = 0.7

#: Heading, format specification and scale factor of the table column of each metric.
METRIC_COLUMNS = {
    "train_loss": ("train loss", ".4f", 1.0),
    "test_loss": ("test loss", ".4f", 1.0),
    "test_accuracy": ("accuracy (%)", ".2f", 100.0),
    "psnr": ("PSNR (dB)", ".2f", 1.0),
    "delta_e": ("ΔE2000", ".2f", 1.0),
    "colourfulness": ("colourfulness", ".1f", 1.0),
    "seconds_per_epoch": ("s per epoch", ".2f", 1.0),
}


class SweepComparison:
    """Results of a sweep with equal numbers of epochs or of optimizer steps, as numbers with their sources.

    Each row in ``rows`` contains the value of the parameter, the number of steps and the metrics. The metrics are means
    over the seeds, with standard deviations if there are several seeds. ``ends`` contains the rows with the smallest
    value (``first``) and with the largest value (``last``).
    """

    def __init__(self, sweep: SweepResult, name: Literal["equal_epochs", "equal_steps"]) -> None:
        self.sweep, self.name, self.rows = sweep, name, []
        self.results = sweep.equal_epochs if name == "equal_epochs" else sweep.equal_steps
        for row in self.results:
            source = f"{sweep.folder}/sweep.json: {name} > {row.value} > "
            numbers = {
                "value": Number(float(row.value), f"{source}value", ",.6g"),
                "steps": Number(float(row.steps), f"{source}steps", ",.0f"),
            }
            for metric, (_, spec, scale) in METRIC_COLUMNS.items():
                stats = row.metrics[metric]
                std = None if stats.std is None else scale * stats.std
                numbers[metric] = Number(scale * stats.mean, f"{source}metrics > {metric}", spec, std)
            self.rows.append(numbers)
        self.ends = {"first": self.rows[0], "last": self.rows[-1]}

    def correlation(self, metric: str) -> Number:
        """Return Spearman's rank correlation between the parameter and a metric, averaged over the seeds."""
        values = np.array([row.metrics[metric].values for row in self.results]).T
        source = f"Spearman's rank correlation of {metric} in {self.sweep.folder}/sweep.json: {self.name}"
        return Number(mean_rank_correlation(values), source, ".2f")

    def direction(self, metric: str) -> str:
        """Describe how a metric changes as the parameter increases.

        Return "increases", "decreases" or "shows no clear trend".
        """
        correlation = self.correlation(metric).value
        if abs(correlation) < MIN_CORRELATION:
            return "shows no clear trend"
        return "increases" if correlation > 0 else "decreases"

    def table(self, caption: str) -> Table:
        """Return a table with a row for each value. The time per epoch is shown only for equal epochs."""
        columns = [name for name in METRIC_COLUMNS if self.name == "equal_epochs" or name != "seconds_per_epoch"]
        spread = " (± is the sample standard deviation over the seeds)" if len(self.sweep.seeds) > 1 else ""
        headings = [self.sweep.parameter.replace("-", " "), "steps", *(METRIC_COLUMNS[name][0] for name in columns)]
        rows = [[row[name] for name in ("value", "steps", *columns)] for row in self.rows]
        return Table(f"{caption}{spread}", headings, rows)

    def claim_text(self, claim: str) -> Text:
        """Report whether it is true that larger batches ``claim``, for example "have a higher loss"."""
        correlation = self.correlation("test_loss")
        caveat = " A single seed does not show whether the differences exceed random variation."
        return Text(
            "The claim that larger batches {claim} {verdict}. From batch size {first.value} to {last.value}, the test "
            "loss changes from {first.test_loss} to {last.test_loss}. The rank correlation between batch size and loss "
            "is {correlation} (Spearman, mean over the seeds; 1 means a strictly increasing loss).{caveat} The "
            "training loss {direction}; it changes from {first.train_loss} to {last.train_loss}.",
            claim=claim,
            verdict="holds" if correlation.value >= MIN_CORRELATION else "does not hold",
            correlation=correlation,
            caveat=caveat if len(self.sweep.seeds) == 1 else "",
            direction=self.direction("train_loss"),
            **self.ends,
        )


@answers(
    "B.5",
    "Batch sizes",
    "How does the batch size affect the training and validation losses and the final images if every batch size is "
    "trained for the same number of epochs?",
)
def batch_size_section(run_index: RunIndex, folder: Path) -> list[Block]:
    """Answer B.5 from all sweeps over batch sizes, then show the results of the other sweeps."""
    answer: list[Block] = []
    others: list[Block] = []
    for sweep in map(read_sweep, run_index.sweeps):
        if sweep.parameter == "batch-size" and sweep.equal_steps:
            answer += _batch_size_blocks(sweep)
        else:
            others += _other_sweep_blocks(sweep)
    return [*(answer or [MissingRun("a finished sweep over batch sizes", SWEEP_COMMAND)]), *others]


def _batch_size_blocks(sweep: SweepResult) -> list[Block]:
    epochs, steps = SweepComparison(sweep, "equal_epochs"), SweepComparison(sweep, "equal_steps")
    source = Source(sweep, f"{sweep.folder}/sweep.json: ")
    verdicts = {"increases": "become worse", "decreases": "become better"}
    return [
        Text(
            "`{sweep.model}` was trained with the `{sweep.recipe}` recipe on `{sweep.data}` (palette "
            "`{sweep.palette}`) for {sweep.equal_epochs.0.epochs:,.0f} epochs, with {count} batch sizes from "
            "{first.value} to {last.value} and {seeds} {noun} per batch size. All other settings were equal. The "
            "validation images are the test images of the dataset. All losses are those of the trained model; the "
            "training loss is measured on as many training images as there are test images.",
            sweep=source,
            count=int_number(len(epochs.rows), f"{source.name}equal_epochs, number of rows"),
            seeds=int_number(len(sweep.seeds), f"{source.name}seeds"),
            noun="seeds" if len(sweep.seeds) > 1 else "seed",
            **epochs.ends,
        ),
        epochs.table(f"Results of `{sweep.model}` with equal numbers of epochs"),
        epochs.claim_text("have a higher validation loss after the same number of epochs"),
        _figure(
            sweep,
            sweep.curves_path,
            "Losses against epochs (left) and against optimizer steps (right, logarithmic). Solid lines: test images, "
            "with a band from the minimum to the maximum over the seeds. Dashed lines: training batches. Diamonds mark "
            "the ends of the runs with equal numbers of steps",
        ),
        steps.table(f"Results of `{sweep.model}` with equal numbers of optimizer steps"),
        steps.claim_text("also have a higher loss after the same number of optimizer steps"),
        _explanation_text(epochs, steps),
        Text(
            "With larger batches and equal numbers of epochs, the images {verdict}. Their mean colour difference "
            "(ΔE2000) from the ground truth is {first.delta_e} with the smallest and {last.delta_e} with the largest "
            "batch size. The PSNR is {first.psnr} dB with the smallest and {last.psnr} dB with the largest batch size; "
            "the greyscale images have a PSNR of {sweep.grey_psnr:.2f} dB. The colourfulness {direction}: it is "
            "{first.colourfulness} with the smallest and {last.colourfulness} with the largest batch size, and "
            "{sweep.truth_colourfulness:.1f} for the ground truth.",
            verdict=verdicts.get(epochs.direction("delta_e"), "do not change clearly"),
            direction=epochs.direction("colourfulness"),
            sweep=source,
            **epochs.ends,
        ),
        _figure(
            sweep,
            sweep.samples_path,
            "The first test images: greyscale, ground truth, and the output of the model of each batch size (first "
            "seed)",
        ),
    ]


def _figure(sweep: SweepResult, path: Path, caption: str) -> Figure | MissingRun:
    """Return a figure of a sweep, or the command that draws it if the file does not exist."""
    if path.is_file():
        return Figure(path, caption)
    values = ",".join(str(row.value) for row in sweep.equal_epochs)
    settings = f"--over {sweep.parameter}={values} --seeds {' '.join(map(str, sweep.seeds))} --recipe {sweep.recipe}"
    return MissingRun(f"the figure {path}", f"chromabox sweep {sweep.model} {settings} -o {sweep.folder}")


def _explanation_text(epochs: SweepComparison, steps: SweepComparison) -> Text:
    """Explain the results of both comparisons."""
    direction = steps.direction("test_loss")
    if epochs.direction("test_loss") != "increases":
        reason = "In these runs, the loss does not increase with the batch size, so there is nothing to explain."
    elif direction == "increases":
        reason = (
            "The smaller number of optimizer steps is not the only reason: with equal numbers of steps, the loss still "
            "increases with the batch size."
        )
    else:
        averaging = ", because each step averages the gradient over more images" if direction == "decreases" else ""
        reason = (
            f"The number of optimizer steps is the reason: with equal numbers of steps, the loss {direction} with the "
            f"batch size{averaging}. With equal numbers of epochs, large batches are worse because the model is "
            "trained for fewer steps."
        )
    gaps = {}
    for comparison in (epochs, steps):
        low, high = (end["test_loss"] for end in comparison.ends.values())
        gaps[comparison.name] = Number(high.value - low.value, f"{high.source} minus {low.source}", "+.4f")
    return Text(
        "{reason} An epoch contains a fixed number of images, so larger batches mean fewer steps: {first.steps} in "
        "total with batch size {first.value}, and {last.steps} with batch size {last.value}. From the smallest to the "
        "largest batch size, the loss changes by {gap.equal_epochs} with equal numbers of epochs and by "
        "{gap.equal_steps} with {equal.steps} steps for every batch size.",
        reason=reason,
        gap=gaps,
        equal=steps.rows[0],
        **epochs.ends,
    )


def _other_sweep_blocks(sweep: SweepResult) -> list[Block]:
    """Report a sweep over another parameter, and the value with the lowest test loss.

    Palettes of different sizes are compared by ΔE2000, because their losses are not comparable.
    """
    epochs, parameter = SweepComparison(sweep, "equal_epochs"), sweep.parameter.replace("-", " ")
    metric, label, remark = "test_loss", "test loss", ""
    if sweep.parameter == "colours":
        metric, label = "delta_e", "ΔE2000"
        remark = (
            "Losses and accuracies are not comparable between palettes of different sizes, because classification with "
            "more colours is harder. The images are comparable. "
        )
    return [
        epochs.table(f"Results of `{sweep.model}` with the `{sweep.recipe}` recipe on `{sweep.data}`, by {parameter}"),
        Text(
            f"{remark}The lowest {label}, {{best.{metric}}}, is obtained with {parameter} {{best.value}}. With "
            f"increasing values, the {label} {epochs.direction(metric)}.",
            best=min(epochs.rows, key=lambda row: row[metric].value),
        ),
        _figure(
            sweep, sweep.curves_path, f"Test loss (solid), training loss (dashed) and test accuracy, by {parameter}"
        ),
    ]
