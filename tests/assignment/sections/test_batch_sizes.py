"""Tests of the answer on batch sizes, from sweeps with invented numbers: the statements must follow from them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chromabox.assignment.sections.batch_sizes import SWEEP_COMMAND, batch_size_section
from chromabox.errors import UsageError
from chromabox.experiments.runs import RunIndex, find_runs
from chromabox.experiments.sweep_results import METRICS, SeedStats, SweepResult, SweepRow, write_sweep
from chromabox.report.document.model import Document, Figure, MissingRun, Number, Section, Table, Text

VALUES = (32, 64, 128, 256)
INCREASING = np.array([[1.1, 1.2, 1.3, 1.4], [1.11, 1.21, 1.31, 1.41]])
EPOCHS = 25


def make_sweep(
    folder: Path,
    equal_epochs: np.ndarray,
    equal_steps: np.ndarray | None,
    *,
    parameter: str = "batch-size",
    values: Sequence[float] = VALUES,
    quality: np.ndarray | None = None,
) -> SweepResult:
    """Write a sweep with these losses [seeds, values] to disk."""
    seeds = tuple(range(len(equal_epochs)))
    steps = [round(EPOCHS * 5000 / value) for value in values]

    def rows(losses: np.ndarray, infix: str, counts: Sequence[int]) -> tuple[SweepRow, ...]:
        return tuple(
            SweepRow(
                value,
                tuple(Path(f"{parameter}-{value}{infix}-seed{seed}") for seed in seeds),
                49728,
                EPOCHS,
                count,
                steps[index] // EPOCHS,
                {name: SeedStats(tuple(metric_values(name, losses, index))) for name in METRICS},
            )
            for index, (value, count) in enumerate(zip(values, counts, strict=True))
        )

    def metric_values(name: str, losses: np.ndarray, index: int) -> list[float]:
        metrics = {"test_loss": losses, "train_loss": losses - 0.05}
        error = losses if quality is None else quality
        metrics |= {"delta_e": 8 + error, "psnr": 25 - error, "colourfulness": 30 - 10 * error}
        metrics |= {"seconds_per_epoch": np.array([[2.0 - 0.2 * i for i in range(len(values))]] * len(seeds))}
        return metrics.get(name, np.full_like(losses, 0.5))[:, index].tolist()

    equal_steps_rows = () if equal_steps is None else rows(equal_steps, f"-steps{steps[-1]}", [steps[-1]] * len(values))
    sweep = SweepResult(
        *(folder, "conv-transpose", "course", "cifar10:horse", "course", parameter, seeds, 22.7, 34.6),
        rows(equal_epochs, "", steps),
        equal_steps_rows,
    )
    folder.mkdir(parents=True)
    for path in (sweep.curves_path, sweep.samples_path):
        Image.new("RGB", (40, 20), "white").save(path)
    write_sweep(sweep)
    return sweep


def build_section(*sweeps: SweepResult) -> Section:
    return batch_size_section(RunIndex(sweeps=[sweep.folder for sweep in sweeps]), sweeps[0].folder / "figures")


def read_texts(section: Section) -> list[str]:
    return [str(block) for block in section.blocks if isinstance(block, Text)]


def find_text(section: Section, start: str) -> Text:
    [text] = [block for block in section.blocks if isinstance(block, Text) and str(block).startswith(start)]
    return text


def test_texts_and_numbers_of_monotonic_losses(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "sweep", INCREASING, INCREASING[:, ::-1])
    section = build_section(sweep)
    assert (section.key, bool(section.question)) == ("B.5", True)
    claim = find_text(section, "The claim that larger batches have a higher validation loss")
    assert "after the same number of epochs holds." in str(claim)
    assert claim.numbers["correlation"].value == 1
    assert claim.numbers["first.test_loss"].value == pytest.approx(1.105)
    assert claim.numbers["last.test_loss"].value == pytest.approx(1.405)
    assert claim.numbers["last.test_loss"].std == pytest.approx(0.01 / 2**0.5)
    assert "increases; it changes from 1.0550" in str(claim)
    assert "also have a higher loss after the same number of optimizer steps does not hold." in "".join(
        read_texts(section)
    )
    reason = find_text(section, "The number of optimizer steps is the reason")
    assert "the loss decreases with the batch size" in str(reason)
    assert (reason.numbers["first.steps"].value, reason.numbers["last.steps"].value) == (3906, 488)
    assert reason.numbers["gap.equal_epochs"].value == pytest.approx(0.3)
    assert reason.numbers["gap.equal_steps"].value == pytest.approx(-0.3)
    assert not [block for block in section.blocks if isinstance(block, MissingRun)]


def test_every_number_has_a_source(tmp_path: Path) -> None:
    section = build_section(make_sweep(tmp_path / "sweep", INCREASING, INCREASING))
    numbers = [number for _, _, number in Document("", [], [section], [], {}).numbers()]
    assert len(numbers) > 100
    assert all(str(tmp_path / "sweep") in number.source for number in numbers)


def test_tables_contain_the_numbers_of_the_sweep(tmp_path: Path) -> None:
    section = build_section(make_sweep(tmp_path / "sweep", INCREASING, INCREASING[:, ::-1]))
    epochs, steps = [block for block in section.blocks if isinstance(block, Table)]
    assert epochs.columns[:4] == ["batch size", "steps", "train loss", "test loss"]
    assert [str(row[0]) for row in epochs.rows] == ["32", "64", "128", "256"]
    assert [str(row[1]) for row in epochs.rows] == ["3,906", "1,953", "977", "488"]
    assert [str(row[1]) for row in steps.rows] == ["488"] * 4
    for table, losses in ((epochs, INCREASING), (steps, INCREASING[:, ::-1])):
        for row, mean in zip(table.rows, losses.mean(0), strict=True):
            assert isinstance(row[3], Number)
            assert row[3].value == pytest.approx(mean)
            assert row[3].std == pytest.approx(0.01 / 2**0.5)
    accuracy = epochs.rows[0][epochs.columns.index("accuracy (%)")]
    assert isinstance(accuracy, Number)
    assert accuracy.value == 50
    assert "s per epoch" in epochs.columns
    assert "s per epoch" not in steps.columns


# (equal epochs, equal steps, claim at equal epochs and its correlation, explanation)
VERDICTS = [
    (INCREASING, INCREASING, "epochs holds.", 1.0, "is not the only reason"),
    (INCREASING, INCREASING[:, ::-1], "epochs holds.", 1.0, "The number of optimizer steps is the reason"),
    (
        INCREASING,
        np.array([[1, 3, 2, 1.0], [2, 1, 1.5, 3]]),
        "epochs holds.",
        1.0,
        "the loss shows no clear trend with the batch size",
    ),
    (INCREASING[:, ::-1], INCREASING, "epochs does not hold.", -1.0, "In these runs, the loss does not increase"),
    # The third is lower than the second for both seeds: 1 − 6 Σ d² / (n (n² − 1)) = 1 − 6 · 2 / 60.
    (INCREASING[:, [0, 2, 1, 3]], INCREASING, "epochs holds.", 0.8, "not the only reason"),
    # Σ d² is 8 for the first seed and 2 for the second.
    (
        np.array([[1, 2, 1.5, 1.2], [1, 1.1, 2.4, 1.3]]),
        INCREASING,
        "epochs does not hold.",
        0.5,
        "In these runs, the loss does not increase",
    ),
]


@pytest.mark.parametrize("case", VERDICTS)
def test_verdict_follows_from_the_losses(tmp_path: Path, case: tuple) -> None:
    epochs, steps, verdict, correlation, reason = case
    section = build_section(make_sweep(tmp_path / "sweep", epochs, steps))
    claim = find_text(section, "The claim that larger batches have a higher validation loss")
    assert verdict in str(claim)
    assert claim.numbers["correlation"].value == pytest.approx(correlation)
    assert any(reason in text for text in read_texts(section))


def test_single_seed_is_reported_as_a_limitation(tmp_path: Path) -> None:
    five = np.array([[1.0, 1.1, 1.2, 1.3, 1.4]])
    section = build_section(make_sweep(tmp_path / "sweep", five, five, values=(32, 64, 128, 256, 512)))
    claim = str(find_text(section, "The claim that larger batches have"))
    assert "after the same number of epochs holds." in claim
    assert "A single seed does not show" in claim
    assert "1 seed per batch size" in read_texts(section)[0]


@pytest.mark.parametrize(
    ("quality", "images", "colourfulness"),
    [
        (INCREASING, "the images become worse", "The colourfulness decreases: it is 18.9"),
        (INCREASING[:, ::-1], "the images become better", "The colourfulness increases: it is 15.9"),
        (
            np.array([[1, 3, 2, 1.0], [2, 1, 1.5, 3]]),
            "the images do not change clearly",
            "The colourfulness shows no clear trend",
        ),
    ],
)
def test_image_quality_text_follows_from_its_metrics(
    tmp_path: Path, quality: np.ndarray, images: str, colourfulness: str
) -> None:
    section = build_section(make_sweep(tmp_path / "sweep", INCREASING, INCREASING, quality=quality))
    text = find_text(section, "With larger batches and equal numbers of epochs")
    assert images in str(text)
    assert colourfulness in str(text)
    assert "the greyscale images have a PSNR of 22.70 dB" in str(text)
    assert "34.6 for the ground truth" in str(text)


def test_figures_of_the_sweep_are_shown(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "sweep", INCREASING, INCREASING)
    figures = [block for block in build_section(sweep).blocks if isinstance(block, Figure)]
    assert [figure.path for figure in figures] == [sweep.curves_path, sweep.samples_path]
    sweep.curves_path.unlink()
    missing = [block for block in build_section(sweep).blocks if isinstance(block, MissingRun)]
    assert [block.description for block in missing] == [f"the figure {sweep.curves_path}"]
    assert missing[0].command.startswith(f"chromabox sweep {sweep.model} --over batch-size=")


def test_missing_sweep_names_the_command(tmp_path: Path) -> None:
    assert batch_size_section(RunIndex(), tmp_path).blocks == [
        MissingRun("a finished sweep over batch sizes", SWEEP_COMMAND)
    ]


def test_other_sweeps_follow_the_answer(tmp_path: Path) -> None:
    other = make_sweep(tmp_path / "kernels", INCREASING[:, [1, 0, 2, 3]], None, parameter="kernel", values=(1, 3, 5, 7))
    section = build_section(other)
    assert isinstance(section.blocks[0], MissingRun)
    [table] = [block for block in section.blocks if isinstance(block, Table)]
    assert table.columns[0] == "kernel"
    text = find_text(section, "The lowest test loss, 1.1050")
    assert "with kernel 3. With increasing values, the test loss increases." in str(text)
    both = build_section(make_sweep(tmp_path / "sweep", INCREASING, INCREASING), other)
    assert [isinstance(block, Table) for block in both.blocks].count(True) == 3
    assert not any(isinstance(block, MissingRun) for block in both.blocks)


def test_palettes_of_different_sizes_are_compared_by_colour_difference(tmp_path: Path) -> None:
    sweep = make_sweep(
        tmp_path / "sweep", INCREASING, None, parameter="colours", values=(8, 16, 32, 64), quality=INCREASING[:, ::-1]
    )
    text = find_text(build_section(sweep), "Losses and accuracies are not comparable between palettes")
    assert "The lowest ΔE2000" in str(text)
    assert text.numbers["best.value"].value == 64
    assert str(text).endswith("With increasing values, the ΔE2000 decreases.")


def test_sweep_on_disk_is_found(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "runs" / "sweep", INCREASING, INCREASING)
    section = batch_size_section(find_runs([tmp_path / "runs"]), tmp_path / "figures")
    assert len(read_texts(section)) == len(read_texts(build_section(sweep)))


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"measured": {}, "equal_epochs": [{}], "equal_steps": []}'])
def test_invalid_sweep_file_is_rejected(tmp_path: Path, content: str) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(UsageError, match=r"sweep\.json: invalid sweep result"):
        batch_size_section(RunIndex(sweeps=[tmp_path]), tmp_path)
