"""The answers from tiny real runs: every number can be looked up, and what is said follows from the numbers."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chromabox.assignment.analysis.gradients import LayerGradient
from chromabox.assignment.analysis.net_analysis import Examined, Ground, examine, ground_of
from chromabox.assignment.analysis.predictions import ByDistance
from chromabox.assignment.analysis.statistics import Difference
from chromabox.assignment.sections.explanations import blur, dullness, skip_reasons, stride_reasons, vanishes
from chromabox.assignment.sections.numbers import difference_text, improved
from chromabox.assignment.sections.results import (
    pooling_results,
    skip_curves,
    skip_results,
    strided_curves,
    strided_results,
)
from chromabox.colour.training.recipes import NetName, recipe_for
from chromabox.colour.training.train import TrainConfig, train
from chromabox.engine.runtime_options import ExecutionOptions
from chromabox.errors import UsageError
from chromabox.experiments.runs import Found, find_runs, summary_of
from chromabox.report.document.model import Document, Figure, Missing, Number, Section, Table, Text

BUILDERS = (pooling_results, strided_curves, strided_results, skip_curves, skip_results)
NETS: tuple[NetName, ...] = ("pool-upsample", "conv-transpose", "unet")
OPTIONS = ExecutionOptions(precision="float32", compiled="no", channels_last="no", threads=1, device="cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three nets with two seeds, an epoch on thirty small pictures each."""
    folder = tmp_path_factory.mktemp("runs")
    random = np.random.default_rng(0)
    for index in range(30):
        pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(2, 0).repeat(2, 1)
        (folder / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).resize((32, 32)).save(folder / "photos" / f"{index:02d}.png")
    for net in NETS:
        for seed in (0, 1):
            config = TrainConfig(
                net=net, recipe_name="course", recipe=recipe_for("course", net, epochs=1), seed=seed, size=16,
                data=str(folder / "photos"), palette="horse24", settings={"num_filters": 4},
            )  # fmt: skip
            run = folder / "nets" / f"{net}-course-seed{seed}"
            train(config, run, options=OPTIONS, say=lambda line: None)
    return folder / "nets"


@pytest.fixture(scope="module")
def found(runs: Path) -> Found:
    return find_runs([runs])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("figures") / "made"


@pytest.fixture(scope="module")
def sections(found: Found, folder: Path) -> list[Section]:
    folder.mkdir()
    return [builder(found, folder) for builder in BUILDERS]


def numbers(sections: list[Section]) -> Iterator[Number]:
    for _, _, number in Document("", (), sections, (), {}).numbers():
        yield number


def said(blocks: object) -> str:
    return "\n".join(str(block) for block in blocks if isinstance(block, Text))


def test_every_question_is_answered(sections: list[Section]) -> None:
    assert [section.key for section in sections] == ["A.2", "B.2", "B.3", "C.2", "C.3"]
    for section in sections:
        assert section.title
        assert section.question
        assert not any(isinstance(block, Missing) for block in section.blocks)
        assert any(isinstance(block, Text) for block in section.blocks)
        figures = [block for block in section.blocks if isinstance(block, Figure)]
        assert figures
        for figure in figures:
            with Image.open(figure.path) as image:
                image.verify()
            assert figure.path.stat().st_size < 300_000


def test_numbers_can_be_looked_up_where_they_say(sections: list[Section], folder: Path) -> None:
    recorded = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    looked_up = 0
    for number in numbers(sections):
        assert number.source
        name, _, place = number.source.partition(": ")
        if name != "results.json" or "," in place:
            continue
        value = recorded
        for key in place.split(" > "):
            value = value[int(key) if isinstance(value, list) else key]
        looked_up += 1
        if value is None:
            assert not np.isfinite(number.value)
        else:
            assert any(abs(number.value) == pytest.approx(abs(scale * value)) for scale in (1, 100))
    assert looked_up > 100
    assert recorded["examined"]["test pictures"] == 500


def test_means_and_spreads_are_those_of_the_summaries(sections: list[Section], runs: Path) -> None:
    table = next(block for block in sections[2].blocks if isinstance(block, Table))
    for row, net in zip(table.rows, NETS, strict=False):
        accuracies = [100 * summary_of(runs / f"{net}-course-seed{seed}")["test_accuracy"] for seed in (0, 1)]
        assert row[0] == net
        assert isinstance(row[4], Number)
        assert row[4].value == pytest.approx(np.mean(accuracies))
        assert row[4].spread == pytest.approx(np.std(accuracies, ddof=1))
        # The published numbers are of other data.
        assert list(row[5:]) == ["–", "–"]


def test_answers_are_the_same_again(sections: list[Section], found: Found, tmp_path: Path) -> None:
    assert said(strided_results(found, tmp_path).blocks) == said(sections[2].blocks)


@pytest.mark.parametrize(
    ("builder", "there", "missing"),
    [
        (pooling_results, (), "`pool-upsample`"),
        (strided_curves, ("pool-upsample",), "`conv-transpose`"),
        (strided_results, ("conv-transpose",), "`pool-upsample`"),
        (skip_curves, ("conv-transpose",), "`unet`"),
        (skip_results, ("pool-upsample",), "`conv-transpose` and `unet`"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(found: Found, tmp_path: Path, builder, there: tuple, missing: str) -> None:
    section = builder(Found(colour={net: found.colour[net] for net in there}), tmp_path)
    [block] = section.blocks
    assert isinstance(block, Missing)
    assert block.what == f"finished runs of {missing}"
    assert block.command.startswith("chromabox compare --nets ")
    assert list(tmp_path.iterdir()) == []


def test_one_seed_has_its_interval_from_pictures(found: Found, tmp_path: Path) -> None:
    alone = Found(colour={net: runs[:1] for net, runs in found.colour.items()})
    text = said(skip_results(alone, tmp_path).blocks)
    assert "paired bootstrap over 3 test pictures" in text
    assert "Welch" not in text


def test_runs_that_cannot_be_averaged_are_refused(found: Found, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(found.colour["unet"][0], copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "seed": 7, "size": 64}))
    other = Found(colour={"unet": [found.colour["unet"][0], copy]})
    with pytest.raises(UsageError, match="cannot be averaged"):
        skip_curves(other, tmp_path)


def test_a_run_made_anew_is_looked_into_anew(found: Found, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(found.colour["conv-transpose"][0], run)
    before = examine(run)
    assert examine(run) is before
    shutil.rmtree(run)
    shutil.copytree(found.colour["conv-transpose"][1], run)
    (run / "summary.json").write_bytes((run / "summary.json").read_bytes())
    after = examine(run)
    assert not np.array_equal(after.answers.confidence, before.answers.confidence)


@pytest.fixture(scope="module")
def nets(found: Found) -> list[Examined]:
    return [examine(found.colour[net][0]) for net in NETS]


@pytest.fixture(scope="module")
def ground(found: Found) -> Ground:
    return ground_of(found.colour["unet"][0])


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the figures, where only what is said is of interest."""
    for name in ("compared.draw_by_distance", "skips.draw_gradients"):
        monkeypatch.setattr(f"chromabox.assignment.sections.{name}", lambda *given: None)


def reading(one: Examined, **changes: dict[str, float]) -> Examined:
    """The same net, from which a probe reads something else."""
    return replace(
        one, recovered={name: replace(found, **changes.get(name, {})) for name, found in one.recovered.items()}
    )


@pytest.mark.usefixtures("undrawn")
def test_strides_that_keep_no_more_are_said_to_keep_no_more(
    nets: list[Examined], ground: Ground, tmp_path: Path
) -> None:
    pool = reading(nets[0], quarter={"grey_detail": 0.5})
    for kept, words in ((0.8, "This is borne out"), (0.5, "This is not borne out"), (0.2, "This is not borne out")):
        strided = reading(nets[1], quarter={"grey_detail": kept})
        text = said(stride_reasons(pool, strided, ground, tmp_path, better=True))
        assert words in text
        assert f"50.0 % of the variance of grey's fine detail, from `conv-transpose`'s {100 * kept:.1f} %" in text
    assert "no gain" in said(stride_reasons(pool, strided, ground, tmp_path, better=False))


@pytest.mark.usefixtures("undrawn")
def test_the_gain_near_edges_is_judged_by_its_interval(nets: list[Examined], ground: Ground, tmp_path: Path) -> None:
    near = ground.distances < 1
    shape = near.shape
    wrong = replace(nets[0], answers=replace(nets[0].answers, right=np.zeros(shape, bool)))

    def text(right: np.ndarray) -> str:
        strided = replace(nets[1], answers=replace(nets[1].answers, right=right))
        distances = np.where(near, 0.0, 7.0)
        return said(stride_reasons(wrong, strided, replace(ground, distances=distances), tmp_path, better=True))

    assert "gains most where there is fine detail" in text(near)
    assert "not where the edges are" in text(~near)
    assert "do not tell where" in text(np.ones(shape, bool))


@pytest.mark.usefixtures("undrawn")
def test_vanishing_gradients_are_found_where_they_are(nets: list[Examined], ground: Ground, tmp_path: Path) -> None:
    _, plain, skipping = nets
    flat = {layer: LayerGradient(0.1, 1.0) for layer in plain.start}
    steep = {layer: LayerGradient(10.0**-power, 1.0) for layer, power in zip(flat, (4, 3, 2, 1, 0), strict=True)}
    healthy, ill = replace(plain, start=flat, end=flat), replace(plain, start=steep, end=flat)
    assert not vanishes(healthy)
    assert vanishes(ill)
    assert vanishes(replace(plain, start=flat, end={**flat, "block1": LayerGradient(0.0, 1.0)}))
    text = said(skip_reasons(healthy, skipping, ground, tmp_path, better=True, others=()))
    assert "Here nothing vanishes" in text
    assert "Vanishing gradients do not explain it" in text
    text = said(skip_reasons(ill, skipping, ground, tmp_path, better=True, others=()))
    assert "Here they do vanish" in text
    assert "10,000" in text
    assert "do not explain it" not in text


@pytest.mark.usefixtures("undrawn")
def test_what_skips_bring_back_is_judged(nets: list[Examined], ground: Ground, tmp_path: Path) -> None:
    _, plain, skipping = nets

    def text(before: Examined, after: Examined) -> str:
        return said(skip_reasons(before, after, ground, tmp_path, better=True, others=()))

    lost = reading(plain, quarter={"table_accuracy": 0.3, "grey_detail": 0.9, "chroma": 0.1})
    lost = reading(lost, half={"table_accuracy": 0.5})
    kept = reading(lost, half={"table_accuracy": 0.3})
    assert "This is borne out" in text(lost, skipping)
    assert "This is not borne out" in text(kept, skipping)
    for detail, chroma, words in (
        (0.5, 0.3, "Both is so"),
        (0.5, 0.1, "Only the first is so"),
        (0.9, 0.3, "Only the second is so"),
        (0.9, 0.1, "Neither is so"),
    ):
        assert words in text(lost, reading(skipping, quarter={"grey_detail": detail, "chroma": chroma}))


@pytest.mark.usefixtures("undrawn")
def test_the_skips_that_are_needed_are_named(nets: list[Examined], ground: Ground, tmp_path: Path) -> None:
    _, plain, skipping = nets
    for half, grey, words in (
        (0.1, 0.5, "comes by the skip at half resolution"),
        (0.5, 0.1, "comes by the skip of the input"),
        (0.2, 0.1, "most on the skip of the input"),
        (0.5, 0.5, "hardly uses its skips"),
    ):
        changed = {
            **skipping.skips,
            "none intact": {"loss": 1.0, "accuracy": 0.5},
            "half shuffled": {"loss": 2.0, "accuracy": half},
            "input shuffled": {"loss": 2.0, "accuracy": grey},
        }
        other = replace(skipping, skips=changed)
        assert words in said(skip_reasons(plain, other, ground, tmp_path, better=True, others=()))


def test_blur_and_dullness_are_judged(nets: list[Examined], ground: Ground) -> None:
    pool = nets[0]
    for energy, correlation, words in (
        (0.5, 0.99, "The pictures are blurred"),
        (1.0, 0.5, "partly not the true one"),
        (1.0, 0.95, "keep the fine detail"),
    ):
        assert words in str(blur(replace(pool, detail=replace(pool.detail, energy=energy, correlation=correlation))))
    bands = replace(pool, by_distance=ByDistance(np.array([0.2, 0.6]), np.array([0.5, 0.5])))
    assert "without its detail" in str(blur(bands))
    assert "without its detail" not in str(
        blur(replace(bands, by_distance=ByDistance(np.array([0.7, 0.6]), np.array([0.5, 0.5]))))
    )
    for said_vivid, expected, words in (
        (0.2, 0.4, ("are too dull", "nearly as often", "seldom sure enough")),
        (0.2, 0.2, ("are too dull", "not as often")),
        (0.4, 0.4, ("are not too dull", "nearly as often")),
    ):
        vividness = replace(pool.vividness, true=0.4, said=said_vivid, expected=expected)
        text = str(dullness(replace(pool, vividness=vividness), ground))
        assert all(word in text for word in words)
        assert ("seldom sure enough" in text) == ("seldom sure enough" in words)


def changes(accuracy: tuple[float, float], loss: tuple[float, float]) -> dict[str, Difference]:
    return {
        name: Difference(sum(interval) / 2, *interval, "a test", "made up")
        for name, interval in (("accuracy", accuracy), ("loss", loss))
    }


@pytest.mark.parametrize(
    ("accuracy", "loss", "words", "better"),
    [
        ((1, 3), (-0.3, -0.1), "`unet`'s accuracy is better and its loss is better.", True),
        ((-3, -1), (0.1, 0.3), "`unet`'s accuracy is worse and its loss is worse.", False),
        ((-1, 1), (-0.3, -0.1), "`unet`'s loss is better; for accuracy the interval holds 0.", True),
        ((1, 3), (-0.1, 0.3), "`unet`'s accuracy is better; for loss the interval holds 0.", False),
        ((-1, 1), (-0.1, 0.3), "cannot tell the two nets apart", False),
    ],
)
def test_a_net_that_is_worse_is_called_worse(
    tmp_path: Path, accuracy: tuple, loss: tuple, words: str, better: bool
) -> None:
    found = changes(tuple(map(float, accuracy)), tuple(map(float, loss)))
    text = str(difference_text(tmp_path, "conv-transpose", "unet", found))
    assert text.endswith(words) or words in text
    assert improved(found) is better
