"""The answer on batch sizes, from sweeps whose numbers are made up: what it says must follow from them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chromabox.assignment.sections.batch_sizes import SWEEP_COMMAND, batch_size_section
from chromabox.colour.training.recipes import make_recipe
from chromabox.colour.training.train import TrainConfig
from chromabox.engine.autotune import RuntimeConfig
from chromabox.errors import UsageError
from chromabox.experiments.runs import RunIndex, find_runs
from chromabox.experiments.sweep_results import METRICS, SeedStats, SweepResult, SweepRow, write_sweep
from chromabox.report.document.model import Document, Figure, MissingRun, Number, Section, Table, Text

VALUES = (32, 64, 128, 256)
RISING = np.array([[1.1, 1.2, 1.3, 1.4], [1.11, 1.21, 1.31, 1.41]])
EPOCHS = 25


def made_up(
    folder: Path,
    equal_epochs: np.ndarray,
    equal_steps: np.ndarray | None,
    *,
    over: str = "batch-size",
    values: Sequence[float] = VALUES,
    quality: np.ndarray | None = None,
    late: Sequence[float] = (0.01, 0.1),
    schedule: str = "constant",
) -> SweepResult:
    """A sweep with these losses by seed and value on disk; ``late``: how much the ends' losses fall at last."""
    seeds = tuple(range(len(equal_epochs)))
    updates = [round(EPOCHS * 5000 / value) for value in values]

    def rows(losses: np.ndarray, infix: str, counts: Sequence[int]) -> tuple[SweepRow, ...]:
        return tuple(
            SweepRow(
                value,
                tuple(Path(f"{over}-{value}{infix}-seed{seed}") for seed in seeds),
                49728,
                EPOCHS,
                count,
                updates[index] // EPOCHS,
                {name: SeedStats(tuple(number(name, losses, index))) for name in METRICS},
            )
            for index, (value, count) in enumerate(zip(values, counts, strict=True))
        )

    def number(name: str, losses: np.ndarray, index: int) -> list[float]:
        found = {"test_loss": losses, "train_loss": losses - 0.05}
        picked = losses if quality is None else quality
        found |= {"delta_e": 8 + picked, "psnr": 25 - picked, "colourfulness": 30 - 10 * picked}
        found |= {"seconds_per_epoch": np.array([[2.0 - 0.2 * place for place in range(len(values))]] * len(seeds))}
        return found.get(name, np.full_like(losses, 0.5))[:, index].tolist()

    steps = () if equal_steps is None else rows(equal_steps, f"-steps{updates[-1]}", [updates[-1]] * len(values))
    sweep = SweepResult(
        *(folder, "conv-transpose", "course", "cifar10:horse", "course", over, seeds, 22.7, 34.6),
        rows(equal_epochs, "", updates),
        steps,
    )
    recipe = replace(make_recipe("course", "conv-transpose"), schedule=schedule)
    config = TrainConfig(
        model="conv-transpose", recipe_name="course", recipe=recipe, data="x", palette="y", runtime=RuntimeConfig()
    )
    for row, fall in zip((sweep.equal_epochs[0], sweep.equal_epochs[-1]), late, strict=True):
        for run in row.runs:
            (folder / run).mkdir(parents=True)
            (folder / run / "config.json").write_text(json.dumps({**asdict(config), "versions": {}}))
            losses = [2.0] * (EPOCHS - 5) + [2.0 - fall * place / 5 for place in range(1, 6)]
            lines = [json.dumps({"epoch": index + 1, "test_loss": loss}) for index, loss in enumerate(losses)]
            (folder / run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    for path in (sweep.curves_path, sweep.samples_path):
        Image.new("RGB", (40, 20), "white").save(path)
    write_sweep(sweep)
    return sweep


def section_of(*sweeps: SweepResult) -> Section:
    return batch_size_section(RunIndex(sweeps=[sweep.folder for sweep in sweeps]), sweeps[0].folder / "figures")


def texts(section: Section) -> list[str]:
    return [str(block) for block in section.blocks if isinstance(block, Text)]


def the_text(section: Section, begins: str) -> Text:
    [found] = [block for block in section.blocks if isinstance(block, Text) and str(block).startswith(begins)]
    return found


def test_a_plain_case_is_told_as_it_is(tmp_path: Path) -> None:
    sweep = made_up(tmp_path / "sweep", RISING, RISING[:, ::-1])
    section = section_of(sweep)
    assert (section.key, bool(section.question)) == ("B.5", True)
    claim = the_text(section, "That larger batches end with a higher validation loss")
    assert "holds, at every step and by more than the spread over the seeds." in str(claim)
    assert {name: number.value for name, number in claim.numbers.items() if name in ("up", "steps", "clearly")} == {
        "up": 3,
        "steps": 3,
        "clearly": 3,
    }
    assert claim.numbers["first"].value == pytest.approx(1.105)
    assert claim.numbers["last"].value == pytest.approx(1.405)
    assert claim.numbers["last"].std == pytest.approx(0.01 / 2**0.5)
    assert "rises; it goes from 1.0550" in str(claim)
    # One order of all 4! · 4! rises that much.
    assert claim.numbers["chance"].value == pytest.approx(1 / 576)
    assert "which is less than 0.05" in str(claim)
    assert "That they also do so after equally many updates does not hold." in "".join(texts(section))
    why = the_text(section, "It is the number of updates that matters")
    assert "the loss falls as the batches grow" in str(why)
    assert (why.numbers["most"].value, why.numbers["fewest"].value) == (3906, 488)
    assert why.numbers["gap"].value == pytest.approx(0.3)
    assert why.numbers["rest"].value == pytest.approx(-0.3)
    assert not [block for block in section.blocks if isinstance(block, MissingRun)]


def test_every_number_says_where_it_is_from(tmp_path: Path) -> None:
    section = section_of(made_up(tmp_path / "sweep", RISING, RISING))
    numbers = [number for _, _, number in Document("", [], [section], [], {}).numbers()]
    assert len(numbers) > 100
    assert all(str(tmp_path / "sweep") in number.source or "LEVEL" in number.source for number in numbers)


def test_the_tables_hold_the_numbers(tmp_path: Path) -> None:
    section = section_of(made_up(tmp_path / "sweep", RISING, RISING[:, ::-1]))
    epochs, steps = [block for block in section.blocks if isinstance(block, Table)]
    assert epochs.columns[:4] == ["batch size", "updates", "train loss", "test loss"]
    assert [str(row[0]) for row in epochs.rows] == ["32", "64", "128", "256"]
    assert [str(row[1]) for row in epochs.rows] == ["3,906", "1,953", "977", "488"]
    assert [str(row[1]) for row in steps.rows] == ["488"] * 4
    for table, losses in ((epochs, RISING), (steps, RISING[:, ::-1])):
        for row, mean in zip(table.rows, losses.mean(0), strict=True):
            assert isinstance(row[3], Number)
            assert row[3].value == pytest.approx(mean)
            assert row[3].std == pytest.approx(0.01 / 2**0.5)
    accuracy = epochs.rows[0][epochs.columns.index("accuracy %")]
    assert isinstance(accuracy, Number)
    assert accuracy.value == 50
    assert "s an epoch" in epochs.columns
    assert "s an epoch" not in steps.columns


# (equal epochs, equal steps, claim at equal epochs, explanation)
VERDICTS = [
    (RISING, RISING, "holds, at every step", "Fewer updates are not the whole reason"),
    (RISING, RISING[:, ::-1], "holds, at every step", "It is the number of updates that matters"),
    (RISING, np.array([[1, 3, 2, 1.0], [2, 1, 1.5, 3]]), "holds, at every step", "these runs show no rise with"),
    (RISING[:, ::-1], RISING, "does not hold", "These runs show no rise of the loss"),
    # The third is lower than the second for both seeds: two of three steps rise.
    (RISING[:, [0, 2, 1, 3]], RISING, "holds on the whole, though not at every step", "Fewer updates"),
    # A spread of 0.14 about steps of 0.1.
    (np.add(RISING, [[0], [0.2]]), RISING, "holds at every step, though not at all of them by more than", "Fewer"),
    (np.array([[1, 2, 1.5, 1.2], [1, 1.1, 2.4, 1.3]]), RISING, "is not confirmed", "These runs show no rise"),
]


@pytest.mark.parametrize("case", VERDICTS)
def test_the_verdict_follows_from_the_losses(tmp_path: Path, case: tuple) -> None:
    epochs, steps, verdict, why = case
    section = section_of(made_up(tmp_path / "sweep", epochs, steps))
    assert verdict in str(the_text(section, "That larger batches end with a higher validation loss"))
    assert any(why in text for text in texts(section))


def test_two_values_have_no_order_beyond_their_step(tmp_path: Path) -> None:
    sweep = made_up(tmp_path / "sweep", RISING[:, :2], RISING[:, :2] + [[0], [1.0]], values=VALUES[:2])
    section = section_of(sweep)
    assert "holds, at every step" in str(the_text(section, "That larger batches end"))
    assert "rank correlation" not in "".join(texts(section))
    assert "is not confirmed" in str(the_text(section, "That they also do so"))


def test_a_single_seed_is_said_to_be_one(tmp_path: Path) -> None:
    five = np.array([[1.0, 1.1, 1.2, 1.3, 1.4]])
    section = section_of(made_up(tmp_path / "sweep", five, five, values=(32, 64, 128, 256, 512)))
    claim = str(the_text(section, "That larger batches end"))
    assert "holds at every step." in claim
    assert "a single seed cannot tell" in claim
    assert "1 seed each" in texts(section)[0]
    [missing] = [block for block in section.blocks if isinstance(block, MissingRun)]
    assert "--seeds 0 1 --recipe course" in missing.command
    # Of three values a perfect order is no rare thing: one of six.
    three = section_of(made_up(tmp_path / "three", five[:, :3], five[:, :3], values=(32, 64, 128)))
    assert "is not confirmed" in str(the_text(three, "That larger batches end"))


@pytest.mark.parametrize(
    ("late", "schedule", "said"),
    [
        ((0.01, 0.1), "constant", "the large batches were not done learning"),
        ((0.1, 0.01), "constant", "it is not seen"),
        ((-0.1, -0.01), "constant", "it is not seen"),
        ((0.01, 0.1), "linear", None),
    ],
)
def test_whether_the_loss_was_still_falling(tmp_path: Path, late: tuple, schedule: str, said: str | None) -> None:
    section = section_of(made_up(tmp_path / "sweep", RISING, RISING, late=late, schedule=schedule))
    found = [block for block in section.blocks if isinstance(block, Text) and str(block).startswith("Over the last 5")]
    assert len(found) == (said is not None)
    if said is not None:
        assert said in str(found[0])
        assert found[0].numbers["small"].value == pytest.approx(late[0])
        assert found[0].numbers["large"].value == pytest.approx(late[1])


@pytest.mark.parametrize(
    ("quality", "pictures", "colourful"),
    [
        (RISING, "the pictures become worse", "Colourfulness falls: 18.9"),
        (RISING[:, ::-1], "the pictures become better", "Colourfulness rises: 15.9"),
        (np.array([[1, 3, 2, 1.0], [2, 1, 1.5, 3]]), "neither better nor worse by more than chance", "has no order"),
    ],
)
def test_the_pictures_are_judged_by_their_own_numbers(
    tmp_path: Path, quality: np.ndarray, pictures: str, colourful: str
) -> None:
    section = section_of(made_up(tmp_path / "sweep", RISING, RISING, quality=quality))
    text = the_text(section, "With larger batches and equally many epochs")
    assert pictures in str(text)
    assert colourful in str(text)
    assert "have 22.70 dB" in str(text)
    assert "34.6 in the true pictures" in str(text)


def test_the_time_is_compared(tmp_path: Path) -> None:
    text = the_text(section_of(made_up(tmp_path / "sweep", RISING, RISING)), "An epoch took")
    assert text.numbers["ratio"].value == pytest.approx(2.0 / 1.4)
    assert "large batches were faster" in str(text)


def test_figures_are_copied_beside_the_write_up(tmp_path: Path) -> None:
    sweep = made_up(tmp_path / "sweep", RISING, RISING)
    figures = [block for block in section_of(sweep).blocks if isinstance(block, Figure)]
    assert [figure.path.name for figure in figures] == ["batch-sizes-0-curves.png", "batch-sizes-0-sheet.png"]
    for figure, original in zip(figures, (sweep.curves_path, sweep.samples_path), strict=True):
        assert figure.path.parent == sweep.folder / "figures"
        assert figure.path.read_bytes() == original.read_bytes()
    sweep.samples_path.unlink()
    [missing] = [block for block in section_of(sweep).blocks if isinstance(block, MissingRun)]
    assert missing.description == f"the figure `{sweep.samples_path}`"
    values = "32,64,128,256"
    assert missing.command == (
        f"chromabox sweep conv-transpose --over batch-size={values} --seeds 0 1 --recipe course --epochs 25 "
        f"--data cifar10:horse --steps 488 -o {sweep.folder}"
    )


def test_without_a_sweep_the_command_is_told(tmp_path: Path) -> None:
    assert batch_size_section(RunIndex(), tmp_path).blocks == [
        MissingRun("a finished sweep over batch sizes", SWEEP_COMMAND)
    ]


def test_other_sweeps_follow(tmp_path: Path) -> None:
    other = made_up(tmp_path / "kernels", RISING[:, [1, 0, 2, 3]], None, over="kernel", values=(1, 3, 5, 7))
    section = section_of(other)
    assert isinstance(section.blocks[0], MissingRun)
    [table] = [block for block in section.blocks if isinstance(block, Table)]
    assert table.columns[0] == "kernel"
    text = the_text(section, "The test loss is lowest, 1.1050")
    assert "at kernel 3; with greater values it rises." in str(text)
    both = section_of(made_up(tmp_path / "sweep", RISING, RISING), other)
    assert [isinstance(block, Table) for block in both.blocks].count(True) == 3
    assert not any(isinstance(block, MissingRun) for block in both.blocks)


def test_losses_of_palettes_of_different_sizes_are_not_compared(tmp_path: Path) -> None:
    sweep = made_up(tmp_path / "sweep", RISING, None, over="colours", values=(8, 16, 32, 64), quality=RISING[:, ::-1])
    text = the_text(section_of(sweep), "Losses and accuracies of palettes of different sizes")
    assert "ΔE2000 is lowest" in str(text)
    assert text.numbers["best"].value == 64
    assert str(text).endswith("with greater values it falls.")


def test_a_sweep_on_disk_is_found(tmp_path: Path) -> None:
    sweep = made_up(tmp_path / "runs" / "sweep", RISING, RISING)
    section = batch_size_section(find_runs([tmp_path / "runs"]), tmp_path / "figures")
    assert len(texts(section)) == len(texts(section_of(sweep)))


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"measured": {}, "equal_epochs": [{}], "equal_steps": []}'])
def test_a_broken_sweep_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(UsageError, match=r"sweep\.json: invalid sweep result"):
        batch_size_section(RunIndex(sweeps=[tmp_path]), tmp_path)
