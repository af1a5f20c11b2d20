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
from chromabox.assignment.analysis.net_analysis import AnalysisData, NetAnalysis, analyse, load_analysis_data
from chromabox.assignment.analysis.predictions import AccuracyByEdgeDistance
from chromabox.assignment.analysis.statistics import ConfidenceInterval
from chromabox.assignment.sections.explanations import (
    blur_text,
    dullness_text,
    has_vanishing_gradients,
    skip_explanation_blocks,
    stride_explanation_blocks,
)
from chromabox.assignment.sections.numbers import difference_text, is_improvement
from chromabox.assignment.sections.results import (
    conv_transpose_curves,
    conv_transpose_results,
    pool_upsample_results,
    unet_curves,
    unet_results,
)
from chromabox.colour.training.recipes import PaletteModelName, make_recipe
from chromabox.colour.training.train import TrainConfig, train
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.errors import UsageError
from chromabox.experiments.runs import RunIndex, find_runs, read_summary
from chromabox.report.document.model import Document, Figure, MissingRun, Number, Section, Table, Text

BUILDERS = (pool_upsample_results, conv_transpose_curves, conv_transpose_results, unet_curves, unet_results)
NETS: tuple[PaletteModelName, ...] = ("pool-upsample", "conv-transpose", "unet")
OPTIONS = RuntimeOptions(precision="float32", compile="off", channels_last="off", threads=1, device="cpu")


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
                model=net, recipe_name="course", recipe=make_recipe("course", net, epochs=1), seed=seed, size=16,
                data=str(folder / "photos"), palette="horse24", model_args={"num_filters": 4},
            )  # fmt: skip
            run = folder / "nets" / f"{net}-course-seed{seed}"
            train(config, run, options=OPTIONS, log=lambda line: None)
    return folder / "nets"


@pytest.fixture(scope="module")
def found(runs: Path) -> RunIndex:
    return find_runs([runs])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("figures") / "made"


@pytest.fixture(scope="module")
def sections(found: RunIndex, folder: Path) -> list[Section]:
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
        assert not any(isinstance(block, MissingRun) for block in section.blocks)
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
        accuracies = [100 * read_summary(runs / f"{net}-course-seed{seed}")["test_accuracy"] for seed in (0, 1)]
        assert row[0] == net
        assert isinstance(row[4], Number)
        assert row[4].value == pytest.approx(np.mean(accuracies))
        assert row[4].std == pytest.approx(np.std(accuracies, ddof=1))
        # The published numbers are of other data.
        assert list(row[5:]) == ["–", "–"]


def test_answers_are_the_same_again(sections: list[Section], found: RunIndex, tmp_path: Path) -> None:
    assert said(conv_transpose_results(found, tmp_path).blocks) == said(sections[2].blocks)


@pytest.mark.parametrize(
    ("builder", "there", "missing"),
    [
        (pool_upsample_results, (), "`pool-upsample`"),
        (conv_transpose_curves, ("pool-upsample",), "`conv-transpose`"),
        (conv_transpose_results, ("conv-transpose",), "`pool-upsample`"),
        (unet_curves, ("conv-transpose",), "`unet`"),
        (unet_results, ("pool-upsample",), "`conv-transpose` and `unet`"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(found: RunIndex, tmp_path: Path, builder, there: tuple, missing: str) -> None:
    section = builder(RunIndex(colour={net: found.colour[net] for net in there}), tmp_path)
    [block] = section.blocks
    assert isinstance(block, MissingRun)
    assert block.description == f"finished runs of {missing}"
    assert block.command.startswith("chromabox compare --nets ")
    assert list(tmp_path.iterdir()) == []


def test_one_seed_has_its_interval_from_pictures(found: RunIndex, tmp_path: Path) -> None:
    alone = RunIndex(colour={net: runs[:1] for net, runs in found.colour.items()})
    text = said(unet_results(alone, tmp_path).blocks)
    assert "paired bootstrap over 3 test images" in text
    assert "Welch" not in text


def test_runs_that_cannot_be_averaged_are_refused(found: RunIndex, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(found.colour["unet"][0], copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "seed": 7, "size": 64}))
    other = RunIndex(colour={"unet": [found.colour["unet"][0], copy]})
    with pytest.raises(UsageError, match="cannot be averaged"):
        unet_curves(other, tmp_path)


def test_a_run_made_anew_is_looked_into_anew(found: RunIndex, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(found.colour["conv-transpose"][0], run)
    before = analyse(run)
    assert analyse(run) is before
    shutil.rmtree(run)
    shutil.copytree(found.colour["conv-transpose"][1], run)
    (run / "summary.json").write_bytes((run / "summary.json").read_bytes())
    after = analyse(run)
    assert not np.array_equal(after.predictions.confidence, before.predictions.confidence)


@pytest.fixture(scope="module")
def nets(found: RunIndex) -> list[NetAnalysis]:
    return [analyse(found.colour[net][0]) for net in NETS]


@pytest.fixture(scope="module")
def ground(found: RunIndex) -> AnalysisData:
    return load_analysis_data(found.colour["unet"][0])


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the figures, where only what is said is of interest."""
    for name in ("comparison.plot_accuracy_by_edge_distance", "explanations.plot_gradients"):
        monkeypatch.setattr(f"chromabox.assignment.sections.{name}", lambda *given: None)


def reading(one: NetAnalysis, **changes: dict[str, float]) -> NetAnalysis:
    """The same net, from which a probe reads something else."""
    return replace(
        one, probe_scores={name: replace(found, **changes.get(name, {})) for name, found in one.probe_scores.items()}
    )


@pytest.mark.usefixtures("undrawn")
def test_strides_that_keep_no_more_are_said_to_keep_no_more(
    nets: list[NetAnalysis], ground: AnalysisData, tmp_path: Path
) -> None:
    pool = reading(nets[0], quarter={"grey_detail": 0.5})
    for kept, words in ((0.8, "This is borne out"), (0.5, "This is not borne out"), (0.2, "This is not borne out")):
        strided = reading(nets[1], quarter={"grey_detail": kept})
        text = said(stride_explanation_blocks(pool, strided, ground, tmp_path, is_better=True))
        assert words in text
        assert f"50.0 % of the variance of grey's fine detail, from `conv-transpose`'s {100 * kept:.1f} %" in text
    assert "no gain" in said(stride_explanation_blocks(pool, strided, ground, tmp_path, is_better=False))


@pytest.mark.usefixtures("undrawn")
def test_the_gain_near_edges_is_judged_by_its_interval(
    nets: list[NetAnalysis], ground: AnalysisData, tmp_path: Path
) -> None:
    near = ground.edge_distances < 1
    shape = near.shape
    wrong = replace(nets[0], predictions=replace(nets[0].predictions, is_correct=np.zeros(shape, bool)))

    def text(right: np.ndarray) -> str:
        strided = replace(nets[1], predictions=replace(nets[1].predictions, is_correct=right))
        distances = np.where(near, 0.0, 7.0)
        return said(
            stride_explanation_blocks(
                wrong, strided, replace(ground, edge_distances=distances), tmp_path, is_better=True
            )
        )

    assert "gains most where there is fine detail" in text(near)
    assert "not where the edges are" in text(~near)
    assert "do not tell where" in text(np.ones(shape, bool))


@pytest.mark.usefixtures("undrawn")
def test_vanishing_gradients_are_found_where_they_are(
    nets: list[NetAnalysis], ground: AnalysisData, tmp_path: Path
) -> None:
    _, plain, skipping = nets
    flat = {layer: LayerGradient(0.1, 1.0) for layer in plain.initial_gradients}
    steep = {layer: LayerGradient(10.0**-power, 1.0) for layer, power in zip(flat, (4, 3, 2, 1, 0), strict=True)}
    healthy, ill = (
        replace(plain, initial_gradients=flat, final_gradients=flat),
        replace(plain, initial_gradients=steep, final_gradients=flat),
    )
    assert not has_vanishing_gradients(healthy)
    assert has_vanishing_gradients(ill)
    assert has_vanishing_gradients(
        replace(plain, initial_gradients=flat, final_gradients={**flat, "block1": LayerGradient(0.0, 1.0)})
    )
    text = said(skip_explanation_blocks(healthy, skipping, ground, tmp_path, is_better=True, other_analyses=()))
    assert "Here nothing vanishes" in text
    assert "Vanishing gradients do not explain it" in text
    text = said(skip_explanation_blocks(ill, skipping, ground, tmp_path, is_better=True, other_analyses=()))
    assert "Here they do vanish" in text
    assert "10,000" in text
    assert "do not explain it" not in text


@pytest.mark.usefixtures("undrawn")
def test_what_skips_bring_back_is_judged(nets: list[NetAnalysis], ground: AnalysisData, tmp_path: Path) -> None:
    _, plain, skipping = nets

    def text(before: NetAnalysis, after: NetAnalysis) -> str:
        return said(skip_explanation_blocks(before, after, ground, tmp_path, is_better=True, other_analyses=()))

    lost = reading(plain, quarter={"lookup_table_accuracy": 0.3, "grey_detail": 0.9, "chroma": 0.1})
    lost = reading(lost, half={"lookup_table_accuracy": 0.5})
    kept = reading(lost, half={"lookup_table_accuracy": 0.3})
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
def test_the_skips_that_are_needed_are_named(nets: list[NetAnalysis], ground: AnalysisData, tmp_path: Path) -> None:
    _, plain, skipping = nets
    for half, grey, words in (
        (0.1, 0.5, "comes by the skip at half resolution"),
        (0.5, 0.1, "comes by the skip of the input"),
        (0.2, 0.1, "most on the skip of the input"),
        (0.5, 0.5, "hardly uses its skips"),
    ):
        changed = {
            **skipping.skip_ablations,
            "none intact": {"loss": 1.0, "accuracy": 0.5},
            "half shuffled": {"loss": 2.0, "accuracy": half},
            "input shuffled": {"loss": 2.0, "accuracy": grey},
        }
        other = replace(skipping, skip_ablations=changed)
        assert words in said(skip_explanation_blocks(plain, other, ground, tmp_path, is_better=True, other_analyses=()))


def test_blur_and_dullness_are_judged(nets: list[NetAnalysis], ground: AnalysisData) -> None:
    pool = nets[0]
    for energy, correlation, words in (
        (0.5, 0.99, "The pictures are blurred"),
        (1.0, 0.5, "partly not the true one"),
        (1.0, 0.95, "keep the fine detail"),
    ):
        assert words in str(
            blur_text(
                replace(pool, high_frequencies=replace(pool.high_frequencies, energy=energy, correlation=correlation))
            )
        )
    bands = replace(pool, accuracy_by_edge_distance=AccuracyByEdgeDistance(np.array([0.2, 0.6]), np.array([0.5, 0.5])))
    assert "without its detail" in str(blur_text(bands))
    assert "without its detail" not in str(
        blur_text(
            replace(bands, accuracy_by_edge_distance=AccuracyByEdgeDistance(np.array([0.7, 0.6]), np.array([0.5, 0.5])))
        )
    )
    for said_vivid, expected, words in (
        (0.2, 0.4, ("are too dull", "nearly as often", "seldom sure enough")),
        (0.2, 0.2, ("are too dull", "not as often")),
        (0.4, 0.4, ("are not too dull", "nearly as often")),
    ):
        vividness = replace(
            pool.vivid_stats, true_fraction=0.4, predicted_fraction=said_vivid, mean_probability=expected
        )
        text = str(dullness_text(replace(pool, vivid_stats=vividness), ground))
        assert all(word in text for word in words)
        assert ("seldom sure enough" in text) == ("seldom sure enough" in words)


def changes(accuracy: tuple[float, float], loss: tuple[float, float]) -> dict[str, ConfidenceInterval]:
    return {
        name: ConfidenceInterval(sum(interval) / 2, *interval, "a test", "made up")
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
    assert is_improvement(found) is better
