"""Question B.5: the effect of the batch size on losses and images, with equal epochs and with equal optimizer steps."""

import shlex
from pathlib import Path

import numpy as np

from chromabox.assignment.analysis.statistics import mean_rank_correlation
from chromabox.assignment.sections.numbers import int_number
from chromabox.colour.training.train import read_config
from chromabox.engine.logger import read_metrics
from chromabox.experiments.runs import RunIndex
from chromabox.experiments.sweep_results import SweepResult, read_sweep
from chromabox.io.atomic import atomic_write
from chromabox.report.document.model import Block, Figure, MissingRun, Number, Section, Source, Table, Text

#: The batch sizes of the assignment.
SWEEP_COMMAND = "chromabox sweep conv-transpose --over batch-size=32,64,128,256,512 --seeds 0 1 --recipe course"

#: The last fifth of the epochs is used to test whether the loss is still decreasing.
LATE_FRACTION = 5
#: A rank correlation below this is not called a trend.
MIN_CORRELATION = 0.7

#: Columns of a table: heading, format specification and scale of every metric.
METRIC_COLUMNS = {
    "train_loss": ("train loss", ".4f", 1.0),
    "test_loss": ("test loss", ".4f", 1.0),
    "test_accuracy": ("accuracy (%)", ".2f", 100.0),
    "psnr": ("PSNR (dB)", ".2f", 1.0),
    "delta_e": ("ΔE2000", ".2f", 1.0),
    "colourfulness": ("colourfulness", ".1f", 1.0),
    "seconds_per_epoch": ("s per epoch", ".2f", 1.0),
}
#: The two comparisons, by their names in ``sweep.json``.
EQUAL_EPOCHS, EQUAL_STEPS = "equal_epochs", "equal_steps"


def batch_size_section(run_index: RunIndex, folder: Path) -> Section:
    """Build section B.5 from all sweeps over batch sizes, followed by other sweeps; figures go to ``folder``."""
    sweeps = [read_sweep(path) for path in run_index.sweeps]
    answer: list[Block] = []
    others: list[Block] = []
    for index, sweep in enumerate(sweeps):
        if sweep.parameter == "batch-size":
            answer += _batch_size_blocks(sweep, folder, f"batch-sizes-{index}")
        else:
            others += _other_sweep_blocks(sweep, folder, f"sweep-{index}")
    blocks = [*(answer or [MissingRun("a finished sweep over batch sizes", SWEEP_COMMAND)]), *others]
    question = (
        "How does the batch size affect the training and validation losses and the final images if every batch size is "
        "trained for the same number of epochs?"
    )
    return Section("B.5", "Batch sizes", question, blocks)


def _batch_size_blocks(sweep: SweepResult, folder: Path, name: str) -> list[Block]:
    """Return the answer based on one sweep."""
    curves = (
        "Losses against epochs (left) and against optimizer steps (right, logarithmic). Solid: test images, with a "
        "band over the seeds; dashed: training batches. Diamonds mark the ends of the runs with equal numbers of steps"
    )
    samples = (
        "The first test images: greyscale, ground truth, and the output of the model of each batch size (first seed)"
    )
    small, large = (end["seconds_per_epoch"] for end in _ends(sweep).values())
    # A single seed gives no estimate of the variance.
    second = _sweep_command(sweep, (sweep.seeds[0], sweep.seeds[0] + 1))
    missing_seed = [MissingRun("a second seed", second)] if len(sweep.seeds) == 1 else []
    return [
        _setting_text(sweep),
        _sweep_table(sweep, EQUAL_EPOCHS, f"`{sweep.model}` with equal numbers of epochs"),
        _claim_text(
            sweep,
            EQUAL_EPOCHS,
            "The claim that larger batches have a higher validation loss after the same number of epochs",
        ),
        _copy_figure(sweep.curves_path, folder / f"{name}-curves.png", curves, _sweep_command(sweep)),
        _sweep_table(sweep, EQUAL_STEPS, f"`{sweep.model}` with equal numbers of optimizer steps"),
        _claim_text(
            sweep, EQUAL_STEPS, "The claim that they also have a higher loss after the same number of optimizer steps"
        ),
        _explanation_text(sweep),
        *_late_decrease_blocks(sweep),
        _image_quality_text(sweep),
        _copy_figure(sweep.samples_path, folder / f"{name}-sheet.png", samples, _sweep_command(sweep)),
        Text(
            "An epoch, including the evaluation after it, took {small} s with the smallest and {large} s with the "
            "largest batch size, a ratio of {ratio}. Large batches were therefore {relation} than small batches on "
            "this machine.",
            small=small,
            large=large,
            ratio=Number(small.value / large.value, f"{small.source} over {large.source}", ".2f"),
            relation="faster" if small.value > large.value else "slower",
        ),
        *missing_seed,
    ]


def _sweep_command(sweep: SweepResult, seeds: tuple[int, ...] = ()) -> str:
    """Return the command that runs this sweep, optionally with other seeds."""
    values = ",".join(str(row.value) for row in sweep.equal_epochs)
    args = ["chromabox", "sweep", sweep.model, "--over", f"{sweep.parameter}={values}", "--seeds"]
    args += [*map(str, seeds or sweep.seeds), "--recipe", sweep.recipe]
    args += ["--epochs", str(sweep.equal_epochs[0].epochs), "--data", sweep.data]
    if sweep.equal_steps:
        args += ["--steps", str(sweep.equal_steps[0].steps)]
    return shlex.join([*args, "-o", str(sweep.folder)])


def _row_numbers(sweep: SweepResult, comparison: str, index: int) -> dict[str, Number]:
    """Return value, steps and metrics of a row: means over the seeds, with standard deviations for several seeds."""
    row = getattr(sweep, comparison)[index]
    source = f"{sweep.folder}/sweep.json: {comparison} > {row.value} > "
    numbers = {
        "value": Number(float(row.value), f"{source}value", ",.6g"),
        "steps": Number(float(row.steps), f"{source}steps", ",.0f"),
    }
    for name, (_, spec, scale) in METRIC_COLUMNS.items():
        stats = row.metrics[name]
        std = None if stats.std is None else scale * stats.std
        numbers[name] = Number(scale * stats.mean, f"{source}metrics > {name}", spec, std)
    return numbers


def _ends(sweep: SweepResult, comparison: str = EQUAL_EPOCHS) -> dict[str, dict[str, Number]]:
    """Return the numbers of the smallest and the largest value, for templates."""
    return {"first": _row_numbers(sweep, comparison, 0), "last": _row_numbers(sweep, comparison, -1)}


def _correlation(sweep: SweepResult, comparison: str, metric: str) -> Number:
    """Return the rank correlation between the values and a metric."""
    values = np.array([row.metrics[metric].values for row in getattr(sweep, comparison)]).T
    source = f"Spearman's rank correlation of {metric} in {sweep.folder}/sweep.json: {comparison}"
    return Number(mean_rank_correlation(values), source, ".2f")


def _direction(sweep: SweepResult, comparison: str, metric: str) -> str:
    """Describe how a metric changes with increasing values: "increases", "decreases" or no clear trend."""
    correlation = _correlation(sweep, comparison, metric).value
    if abs(correlation) < MIN_CORRELATION:
        return "shows no clear trend"
    return "increases" if correlation > 0 else "decreases"


def _sweep_table(sweep: SweepResult, comparison: str, caption: str) -> Table:
    """Return a table with a row for each value; the time is included only for equal epochs."""
    columns = [name for name in METRIC_COLUMNS if comparison == EQUAL_EPOCHS or name != "seconds_per_epoch"]
    rows = [_row_numbers(sweep, comparison, index) for index in range(len(getattr(sweep, comparison)))]
    spread = " (± is the sample standard deviation over the seeds)" if len(sweep.seeds) > 1 else ""
    headings = [sweep.parameter.replace("-", " "), "steps", *(METRIC_COLUMNS[name][0] for name in columns)]
    return Table(f"{caption}{spread}", headings, [[row[name] for name in ("value", "steps", *columns)] for row in rows])


def _setting_text(sweep: SweepResult) -> Text:
    return Text(
        "`{sweep.model}` was trained with the `{sweep.recipe}` recipe on `{sweep.data}` (palette `{sweep.palette}`) "
        "for {sweep.equal_epochs.0.epochs:,.0f} epochs, with {count} batch sizes from {first.value} to {last.value} "
        "and {seeds} {noun} per batch size; all other settings were equal. The validation images are the test images "
        "of the dataset. All losses are those of the trained model; the training loss is measured on as many training "
        "images as there are test images.",
        sweep=Source(sweep, f"{sweep.folder}/sweep.json: "),
        count=int_number(len(sweep.equal_epochs), f"{sweep.folder}/sweep.json: equal_epochs, number of rows"),
        seeds=int_number(len(sweep.seeds), f"{sweep.folder}/sweep.json: seeds"),
        noun="seeds" if len(sweep.seeds) > 1 else "seed",
        **_ends(sweep),
    )


def _claim_text(sweep: SweepResult, comparison: str, subject: str) -> Text:
    """Report whether the test loss increases with the values; ``subject`` is the claim, as a noun phrase."""
    correlation = _correlation(sweep, comparison, "test_loss")
    caveat = ""
    if len(getattr(sweep, comparison)) < 3:
        caveat += "; of two values it is always 1 or −1"
    if len(sweep.seeds) == 1:
        caveat += "; a single seed does not show whether the differences exceed random variation"
    return Text(
        "{subject} {verdict}. From {parameter} {first.value} to {last.value}, the test loss changes from "
        "{first.test_loss} to {last.test_loss}. The rank correlation of {parameter} and loss is {correlation} "
        "(Spearman, mean over the seeds; 1 means a strictly increasing loss){caveat}. The training loss {direction}; "
        "it changes from {first.train_loss} to {last.train_loss}.",
        subject=subject,
        verdict="holds" if correlation.value >= MIN_CORRELATION else "does not hold",
        parameter=sweep.parameter.replace("-", " "),
        correlation=correlation,
        caveat=caveat,
        direction=_direction(sweep, comparison, "train_loss"),
        **_ends(sweep, comparison),
    )


def _explanation_text(sweep: SweepResult) -> Text:
    """Explain the results of both comparisons."""
    direction = _direction(sweep, EQUAL_STEPS, "test_loss")
    if _direction(sweep, EQUAL_EPOCHS, "test_loss") != "increases":
        reason = "These runs show no increase of the loss with the batch size, so there is none to explain."
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
    for comparison in (EQUAL_EPOCHS, EQUAL_STEPS):
        low, high = (end["test_loss"] for end in _ends(sweep, comparison).values())
        gaps[comparison] = Number(high.value - low.value, f"{high.source} minus {low.source}", "+.4f")
    return Text(
        "{reason} An epoch is a fixed number of images, so larger batches mean fewer steps: {first.steps} in total "
        "with batch size {first.value}, and {last.steps} with batch size {last.value}. From the smallest to the "
        "largest batch size, the loss changes by {gap.equal_epochs} with equal epochs and by {gap.equal_steps} with "
        "{equal.steps} steps each.",
        reason=reason,
        gap=gaps,
        equal=_row_numbers(sweep, EQUAL_STEPS, 0),
        **_ends(sweep),
    )


def _late_decrease_blocks(sweep: SweepResult) -> list[Block]:
    """State whether large batches were still improving at the end, if the learning rate is constant until then."""
    rows, schedule = sweep.equal_epochs, read_config(sweep.folder / sweep.equal_epochs[0].runs[0]).recipe.schedule
    late = rows[0].epochs // LATE_FRACTION
    if late == 0 or schedule != "constant":
        return []
    decreases = {}
    for name, row in (("small", rows[0]), ("large", rows[-1])):
        losses = [[record["test_loss"] for record in read_metrics(sweep.folder / run)] for run in row.runs]
        decrease = float(np.mean([values[-1 - late] - values[-1] for values in losses]))
        source = (
            f"test_loss of the last {late} epochs in metrics.jsonl of {sweep.folder}/{row.runs[0]} and its other seeds"
        )
        decreases[name] = Number(decrease, source, "+.4f")
    if decreases["large"].value > max(decreases["small"].value, 0):
        conclusion = "The training with large batches had therefore not converged at the last epoch."
    else:
        conclusion = "The ends of the curves therefore do not show that large batches needed more training."
    return [
        Text(
            "Over the last {late} epochs, with the same constant learning rate, the decrease of the test loss was "
            "{small} with batch size {first.value} and {large} with batch size {last.value}. {conclusion}",
            decreases,
            late=int_number(late, f"{sweep.folder}/sweep.json: equal_epochs > epochs, 1/{LATE_FRACTION} of them"),
            conclusion=conclusion,
            **_ends(sweep),
        )
    ]


def _image_quality_text(sweep: SweepResult) -> Text:
    """Describe how image quality depends on the batch size with equal epochs."""
    verdicts = {"increases": "become worse", "decreases": "become better"}
    return Text(
        "With larger batches and equal numbers of epochs, the images {verdict}. Their mean colour difference ΔE2000 to "
        "the ground truth is {first.delta_e} with the smallest and {last.delta_e} with the largest batch size. The "
        "PSNR is {first.psnr} dB with the smallest and {last.psnr} dB with the largest batch size; it is "
        "{sweep.grey_psnr:.2f} dB for the greyscale images. The colourfulness {direction}: it is {first.colourfulness} "
        "with the smallest and {last.colourfulness} with the largest batch size, and {sweep.truth_colourfulness:.1f} "
        "for the ground truth.",
        verdict=verdicts.get(_direction(sweep, EQUAL_EPOCHS, "delta_e"), "do not change clearly"),
        direction=_direction(sweep, EQUAL_EPOCHS, "colourfulness"),
        sweep=Source(sweep, f"{sweep.folder}/sweep.json: "),
        **_ends(sweep),
    )


def _other_sweep_blocks(sweep: SweepResult, folder: Path, name: str) -> list[Block]:
    """Report a sweep over another parameter: its table, its curves, and the best value.

    The best value has the lowest test loss, or the lowest ΔE2000 if the losses are not comparable.
    """
    parameter = sweep.parameter.replace("-", " ")
    varies_palette = sweep.parameter == "colours"
    metric, label = ("delta_e", "ΔE2000") if varies_palette else ("test_loss", "test loss")
    best = int(np.argmin([row.metrics[metric].mean for row in sweep.equal_epochs]))
    remark = (
        "Losses and accuracies are not comparable between palettes of different sizes, because classification with "
        "more colours is harder; the images are comparable. "
    )
    curves = f"Test loss (solid), training loss (dashed) and test accuracy, by {parameter}"
    caption = f"`{sweep.model}` with the `{sweep.recipe}` recipe on `{sweep.data}`, by {parameter}"
    return [
        _sweep_table(sweep, EQUAL_EPOCHS, caption),
        Text(
            f"{remark if varies_palette else ''}The lowest {label}, {{best.{metric}}}, is obtained with {parameter} "
            f"{{best.value}}; with increasing values, the {label} {_direction(sweep, EQUAL_EPOCHS, metric)}.",
            best=_row_numbers(sweep, EQUAL_EPOCHS, best),
        ),
        _copy_figure(sweep.curves_path, folder / f"{name}-curves.png", curves, _sweep_command(sweep)),
    ]


def _copy_figure(source: Path, target: Path, caption: str, command: str) -> Block:
    """Copy a figure of the sweep to the figures of the report; return a :class:`MissingRun` if it does not exist."""
    if not source.is_file():
        return MissingRun(f"the figure `{source}`", command)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as temporary:
        temporary.write_bytes(source.read_bytes())
    return Figure(target, caption)
