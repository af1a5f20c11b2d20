"""Tests of the answers from tiny real runs: every number has a source, and the statements follow from the numbers."""

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
from chromabox.assignment.analysis.pixels import AccuracyByEdgeDistance
from chromabox.assignment.analysis.statistics import ConfidenceInterval
from chromabox.assignment.sections.explanations import (
    blur_text,
    dullness_text,
    explain_skips,
    explain_strides,
    has_vanishing_gradients,
)
from chromabox.assignment.sections.numbers import difference_text, is_improvement, published_blocks
from chromabox.assignment.sections.results import (
    conv_transpose_curves,
    conv_transpose_results,
    pool_upsample_results,
    unet_curves,
    unet_results,
)
from chromabox.colour.training.recipes import PaletteModelName, make_recipe
from chromabox.colour.training.train import TrainConfig, train
from chromabox.engine.options import RuntimeOptions
from chromabox.engine.runs import RunDir
from chromabox.errors import UsageError
from chromabox.experiments.compare import PUBLISHED_RESULTS
from chromabox.experiments.runs import RunIndex, find_runs
from chromabox.report.document.model import Document, Figure, MissingRun, Number, Section, Table, Text

BUILDERS = (pool_upsample_results, conv_transpose_curves, conv_transpose_results, unet_curves, unet_results)
MODELS: tuple[PaletteModelName, ...] = ("pool-upsample", "conv-transpose", "unet")
OPTIONS = RuntimeOptions(precision="float32", compile="off", channels_last="off", threads=1, device="cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models with two seeds each, trained for one epoch on thirty small images."""
    folder = tmp_path_factory.mktemp("runs")
    random = np.random.default_rng(0)
    for index in range(30):
        pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(2, 0).repeat(2, 1)
        (folder / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).resize((32, 32)).save(folder / "photos" / f"{index:02d}.png")
    for model in MODELS:
        for seed in (0, 1):
            config = TrainConfig(
                model=model, recipe_name="course", recipe=make_recipe("course", model, epochs=1), seed=seed, size=16,
                data=str(folder / "photos"), palette="horse24", model_args={"num_filters": 4},
            )  # fmt: skip
            run = folder / "nets" / f"{model}-course-seed{seed}"
            train(config, run, options=OPTIONS)
    return folder / "nets"


@pytest.fixture(scope="module")
def run_index(runs: Path) -> RunIndex:
    return find_runs([runs])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("figures") / "made"


@pytest.fixture(scope="module")
def sections(run_index: RunIndex, folder: Path) -> list[Section]:
    folder.mkdir()
    return [builder(run_index, folder) for builder in BUILDERS]


def numbers(sections: list[Section]) -> Iterator[Number]:
    for _, _, number in Document("", (), sections, (), {}).numbers():
        yield number


def read_text(blocks: object) -> str:
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


def test_numbers_match_their_sources_in_results_json(sections: list[Section], folder: Path) -> None:
    recorded = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    num_checked = 0
    for number in numbers(sections):
        assert number.source
        name, _, keys = number.source.partition(": ")
        if name != "results.json" or "," in keys:
            continue
        value = recorded
        for key in keys.split(" > "):
            value = value[int(key) if isinstance(value, list) else key]
        num_checked += 1
        if value is None:
            assert not np.isfinite(number.value)
        else:
            assert any(abs(number.value) == pytest.approx(abs(scale * value)) for scale in (1, 100))
    assert num_checked > 100
    assert recorded["examined"]["test pictures"] == 500


def test_means_and_deviations_match_the_summaries(sections: list[Section], runs: Path) -> None:
    table = next(block for block in sections[2].blocks if isinstance(block, Table))
    for row, model in zip(table.rows, MODELS, strict=False):
        accuracies = [100 * RunDir(runs / f"{model}-course-seed{seed}").summary()["test_accuracy"] for seed in (0, 1)]
        assert row[0] == model
        assert isinstance(row[4], Number)
        assert row[4].value == pytest.approx(np.mean(accuracies))
        assert row[4].std == pytest.approx(np.std(accuracies, ddof=1))
        # The published results use another dataset.
        assert list(row[5:]) == ["–", "–"]


def test_answers_are_deterministic(sections: list[Section], run_index: RunIndex, tmp_path: Path) -> None:
    assert read_text(conv_transpose_results(run_index, tmp_path).blocks) == read_text(sections[2].blocks)


@pytest.mark.parametrize(
    ("builder", "available", "missing"),
    [
        (pool_upsample_results, (), "`pool-upsample`"),
        (conv_transpose_curves, ("pool-upsample",), "`conv-transpose`"),
        (conv_transpose_results, ("conv-transpose",), "`pool-upsample`"),
        (unet_curves, ("conv-transpose",), "`unet`"),
        (unet_results, ("pool-upsample",), "`conv-transpose` and `unet`"),
    ],
)  # fmt: skip
def test_missing_runs_are_reported(
    run_index: RunIndex, tmp_path: Path, builder, available: tuple, missing: str
) -> None:
    section = builder(RunIndex(colour={model: run_index.colour[model] for model in available}), tmp_path)
    [block] = section.blocks
    assert isinstance(block, MissingRun)
    assert block.description == f"finished runs of {missing}"
    assert block.command.startswith("chromabox compare --models ")
    assert list(tmp_path.iterdir()) == []


def test_interval_of_one_seed_is_over_images(run_index: RunIndex, tmp_path: Path) -> None:
    one_seed = RunIndex(colour={model: runs[:1] for model, runs in run_index.colour.items()})
    text = read_text(unet_results(one_seed, tmp_path).blocks)
    assert "paired bootstrap over 3 test images" in text
    assert "Welch" not in text


def test_runs_that_cannot_be_averaged_are_rejected(run_index: RunIndex, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_index.colour["unet"][0], copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "seed": 7, "size": 64}))
    other = RunIndex(colour={"unet": [run_index.colour["unet"][0], copy]})
    with pytest.raises(UsageError, match="cannot be averaged"):
        unet_curves(other, tmp_path)


def test_new_run_in_the_same_folder_is_analysed_again(run_index: RunIndex, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_index.colour["conv-transpose"][0], run)
    before = analyse(run)
    assert analyse(run) is before
    shutil.rmtree(run)
    shutil.copytree(run_index.colour["conv-transpose"][1], run)
    (run / "summary.json").write_bytes((run / "summary.json").read_bytes())
    after = analyse(run)
    assert not np.array_equal(after.predictions.confidence, before.predictions.confidence)


@pytest.fixture(scope="module")
def analyses(run_index: RunIndex) -> list[NetAnalysis]:
    return [analyse(run_index.colour[model][0]) for model in MODELS]


@pytest.fixture(scope="module")
def data(run_index: RunIndex) -> AnalysisData:
    return load_analysis_data(run_index.colour["unet"][0])


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the figures where only the text is of interest."""
    for name in ("explanations.plot_accuracy_by_edge_distance", "explanations.plot_gradients"):
        monkeypatch.setattr(f"chromabox.assignment.sections.{name}", lambda *args: None)


def with_probe_scores(analysis: NetAnalysis, **changes: dict[str, float]) -> NetAnalysis:
    """Return the analysis with other probe scores."""
    scores = {name: score | changes.get(name, {}) for name, score in analysis.probe_scores.items()}
    return replace(analysis, probe_scores=scores)


@pytest.mark.usefixtures("no_figures")
def test_verdict_on_detail_kept_by_strides(analyses: list[NetAnalysis], data: AnalysisData, tmp_path: Path) -> None:
    pool = with_probe_scores(analyses[0], quarter={"grey_detail": 0.5})
    for kept, verdict in ((0.8, "This is confirmed"), (0.5, "This is not confirmed"), (0.2, "This is not confirmed")):
        strided = with_probe_scores(analyses[1], quarter={"grey_detail": kept})
        text = read_text(explain_strides(pool, strided, data, tmp_path, is_better=True))
        assert verdict in text
        assert "explains 50.0 % of the variance of the fine detail" in text
        assert f"on that of `conv-transpose` explains {100 * kept:.1f} %" in text
    assert "no gain" in read_text(explain_strides(pool, strided, data, tmp_path, is_better=False))


@pytest.mark.usefixtures("no_figures")
def test_verdict_on_the_gain_near_edges_follows_from_the_interval(
    analyses: list[NetAnalysis], data: AnalysisData, tmp_path: Path
) -> None:
    near = data.edge_distances < 1
    shape = near.shape
    all_wrong = replace(analyses[0], predictions=replace(analyses[0].predictions, is_correct=np.zeros(shape, bool)))

    def text(is_correct: np.ndarray) -> str:
        strided = replace(analyses[1], predictions=replace(analyses[1].predictions, is_correct=is_correct))
        distances = np.where(near, 0.0, 7.0)
        return read_text(
            explain_strides(all_wrong, strided, replace(data, edge_distances=distances), tmp_path, is_better=True)
        )

    assert "largest where the image has fine detail" in text(near)
    assert "not concentrated on edges" in text(~near)
    assert "do not show where" in text(np.ones(shape, bool))


@pytest.mark.usefixtures("no_figures")
def test_vanishing_gradients_are_detected(analyses: list[NetAnalysis], data: AnalysisData, tmp_path: Path) -> None:
    _, without_skips, with_skips = analyses
    flat = {layer: LayerGradient(0.1, 1.0) for layer in without_skips.initial_gradients}
    steep = {layer: LayerGradient(10.0**-power, 1.0) for layer, power in zip(flat, (4, 3, 2, 1, 0), strict=True)}
    constant, vanishing = (
        replace(without_skips, initial_gradients=flat, final_gradients=flat),
        replace(without_skips, initial_gradients=steep, final_gradients=flat),
    )
    assert not has_vanishing_gradients(constant)
    assert has_vanishing_gradients(vanishing)
    assert has_vanishing_gradients(
        replace(without_skips, initial_gradients=flat, final_gradients={**flat, "block1": LayerGradient(0.0, 1.0)})
    )
    text = read_text(explain_skips(constant, with_skips, data, tmp_path, is_better=True, other_analyses=()))
    assert "No vanishing gradients were observed" in text
    assert "Vanishing gradients do not explain the gain" in text
    text = read_text(explain_skips(vanishing, with_skips, data, tmp_path, is_better=True, other_analyses=()))
    assert "Vanishing gradients were observed" in text
    assert "10,000" in text
    assert "do not explain the gain" not in text


@pytest.mark.usefixtures("no_figures")
def test_verdicts_on_restored_detail_and_hue(analyses: list[NetAnalysis], data: AnalysisData, tmp_path: Path) -> None:
    _, without_skips, with_skips = analyses

    def text(before: NetAnalysis, after: NetAnalysis) -> str:
        return read_text(explain_skips(before, after, data, tmp_path, is_better=True, other_analyses=()))

    lost = with_probe_scores(without_skips, quarter={"lookup_table_accuracy": 0.3, "grey_detail": 0.9, "chroma": 0.1})
    lost = with_probe_scores(lost, half={"lookup_table_accuracy": 0.5})
    kept = with_probe_scores(lost, half={"lookup_table_accuracy": 0.3})
    assert "This is confirmed" in text(lost, with_skips)
    assert "This is not confirmed" in text(kept, with_skips)
    for detail, chroma, verdict in (
        (0.5, 0.3, "Both predictions hold"),
        (0.5, 0.1, "Only the first prediction holds"),
        (0.9, 0.3, "Only the second prediction holds"),
        (0.9, 0.1, "Neither prediction holds"),
    ):
        assert verdict in text(lost, with_probe_scores(with_skips, quarter={"grey_detail": detail, "chroma": chroma}))


@pytest.mark.usefixtures("no_figures")
def test_used_skip_connections_are_named(analyses: list[NetAnalysis], data: AnalysisData, tmp_path: Path) -> None:
    _, without_skips, with_skips = analyses
    for half, grey, expected in (
        (0.1, 0.5, "relies on the half-resolution skip connection and"),
        (0.5, 0.1, "relies on the input skip connection and"),
        (0.2, 0.1, "mainly on the input skip connection"),
        (0.5, 0.5, "hardly uses its skip connections"),
    ):
        ablations = {
            **with_skips.skip_ablations,
            "none intact": {"loss": 1.0, "accuracy": 0.5},
            "half shuffled": {"loss": 2.0, "accuracy": half},
            "input shuffled": {"loss": 2.0, "accuracy": grey},
        }
        other = replace(with_skips, skip_ablations=ablations)
        assert expected in read_text(
            explain_skips(without_skips, other, data, tmp_path, is_better=True, other_analyses=())
        )


def test_verdicts_on_blur_and_dullness(analyses: list[NetAnalysis]) -> None:
    pool = analyses[0]
    for energy, correlation, verdict in (
        (0.5, 0.99, "The images are blurred"),
        (1.0, 0.5, "but part of it is wrong"),
        (1.0, 0.95, "preserve the fine detail"),
    ):
        assert verdict in str(blur_text(replace(pool, high_frequencies={"energy": energy, "correlation": correlation})))
    bands = replace(pool, accuracy_by_edge_distance=AccuracyByEdgeDistance(np.array([0.2, 0.6]), np.array([0.5, 0.5])))
    assert "without fine detail" in str(blur_text(bands))
    assert "without fine detail" not in str(
        blur_text(
            replace(bands, accuracy_by_edge_distance=AccuracyByEdgeDistance(np.array([0.7, 0.6]), np.array([0.5, 0.5])))
        )
    )
    for predicted, expected, phrases in (
        (0.2, 0.4, ("are too dull", "which is close to", "seldom confident enough")),
        (0.2, 0.2, ("are too dull", "which is not close to")),
        (0.4, 0.4, ("are not too dull", "which is close to")),
    ):
        vivid_stats = pool.vivid_stats | {
            "true_fraction": 0.4,
            "predicted_fraction": predicted,
            "mean_probability": expected,
        }
        text = str(dullness_text(replace(pool, vivid_stats=vivid_stats)))
        assert all(phrase in text for phrase in phrases)
        assert ("seldom confident enough" in text) == ("seldom confident enough" in phrases)


def make_intervals(accuracy: tuple[float, float], loss: tuple[float, float]) -> dict[str, ConfidenceInterval]:
    return {
        name: ConfidenceInterval(sum(interval) / 2, *interval, "a test", "made up")
        for name, interval in (("accuracy", accuracy), ("loss", loss))
    }


@pytest.mark.parametrize(
    ("accuracy", "loss", "verdict", "is_better"),
    [
        ((1, 3), (-0.3, -0.1), "The accuracy is better and the loss is better with `unet`.", True),
        ((-3, -1), (0.1, 0.3), "The accuracy is worse and the loss is worse with `unet`.", False),
        ((-1, 1), (-0.3, -0.1), "The loss is better with `unet`; the interval of the accuracy contains 0.", True),
        ((1, 3), (-0.1, 0.3), "The accuracy is better with `unet`; the interval of the loss contains 0.", False),
        ((-1, 1), (-0.1, 0.3), "show no significant difference between the two models", False),
    ],
)
def test_verdict_on_the_difference_follows_from_the_intervals(
    tmp_path: Path, accuracy: tuple, loss: tuple, verdict: str, is_better: bool
) -> None:
    intervals = make_intervals(tuple(map(float, accuracy)), tuple(map(float, loss)))
    text = str(difference_text(tmp_path, "conv-transpose", "unet", intervals))
    assert text.endswith(verdict) or verdict in text
    assert is_improvement(intervals) is is_better


@pytest.mark.parametrize(
    ("shift", "data", "expected"),
    [
        (-0.2, "cifar10:horse", ["below"]),
        (-0.04, "cifar10:horse", ["within"]),
        (0.04, "cifar10:horse", ["within"]),
        (9.0, "cifar10:horse", ["above"]),
        (0.0, "cifar10:cat", []),
    ],
)
def test_accuracy_is_compared_with_the_published_range(
    tmp_path: Path, shift: float, data: str, expected: list[str]
) -> None:
    """Shifts, in percentage points, are relative to the lower bound, which has one decimal."""
    low, high = PUBLISHED_RESULTS["unet"].accuracy
    summary = {"recipe": "course", "data": data, "palette": "course", "test_accuracy": (low + shift) / 100}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    texts = [str(block) for block in published_blocks("unet", [tmp_path])]
    published = f"the published range of {low:.1f} % to {high:.1f} %"
    assert texts == [
        f"The accuracy of `unet`, {low + shift:.2f} %, is {position} {published}." for position in expected
    ]
