"""Tests of questions D.1 and D.2 from small real runs: the statements must follow from the files of the runs."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from sympy import Function, exp, lambdify, symbols
from torch import Tensor
from torch.nn import functional as F

from chromabox.assignment.analysis.detector_analysis import (
    LayerWeightChange,
    open_run,
    verify_class_loss,
    weight_changes,
)
from chromabox.assignment.sections.class_loss import class_loss_blocks, class_loss_section, total_loss_blocks
from chromabox.assignment.sections.freezing import freezing_section, frozen_verdict
from chromabox.detect.models.architecture import DARKNET, ULTRALYTICS_9_0, Variant
from chromabox.detect.training.config import FinetuneConfig
from chromabox.detect.training.finetune import finetune
from chromabox.detect.training.loss import DetectionLoss
from chromabox.detect.training.recipes import make_finetune_recipe
from chromabox.detect.weights.load import save_detector
from chromabox.engine.autotune import RuntimeConfig
from chromabox.engine.checkpoint import load_checkpoint, save_checkpoint
from chromabox.experiments.runs import RunIndex
from chromabox.report.document.model import Document, Figure, Formula, MissingRun, Number, Section, Table, Text
from detection_fixtures import make_yolo_dataset
from detector_fixtures import make_small_detector

BOX = "0 0.5 0.5 0.4 0.6\n1 0.3 0.4 0.2 0.2\n"


def _train(folder: Path, variant: Variant = DARKNET, recipe: str = "default", freeze: int = 3) -> Path:
    """Fine-tune a small detector on a few images for two epochs and return the run folder."""
    labels = {f"train/{name}": BOX for name in "abcd"} | {f"val/{name}": BOX for name in "xyz"}
    data = make_yolo_dataset(folder / "set", labels, ("dog", "hedgehog"))
    save_detector(folder / "small.safetensors", make_small_detector(variant))
    config = FinetuneConfig(
        data=str(data),
        weights=str(folder / "small.safetensors"),
        recipe=make_finetune_recipe(recipe, epochs=2, batch_size=2),
        freeze=freeze,
        size=64,
        num_cached_views=1,
        runtime=RuntimeConfig(),
    )
    finetune(config, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _train(tmp_path_factory.mktemp("darknet"))


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the course recipe and the other decoding."""
    return _train(tmp_path_factory.mktemp("course"), ULTRALYTICS_9_0, "course", freeze=2)


def _read_text(section: Section) -> str:
    return " ".join(str(block) for block in section.blocks if isinstance(block, Text))


def _find_tables(section: Section) -> Iterator[Table]:
    return (block for block in section.blocks if isinstance(block, Table))


def test_missing_run_names_the_command(tmp_path: Path) -> None:
    for builder, key in ((freezing_section, "D.1"), (class_loss_section, "D.2")):
        section = builder(RunIndex(), tmp_path)
        assert section.key == key
        [block] = section.blocks
        assert isinstance(block, MissingRun)
        assert block.command.startswith("chromabox finetune ")


def test_frozen_layers_are_described_and_unchanged(run: Path, tmp_path: Path) -> None:
    section = freezing_section(RunIndex(detectors=[run]), tmp_path)
    text = _read_text(section)
    assert "The first 3 of its 7 layers are frozen, fewer than the 5 layers of its backbone" in text
    assert "all parameters and statistics are bitwise identical" in text
    assert "all other layers have changed" in text
    [table] = _find_tables(section)
    frozen, trained = table.rows
    assert [str(cell) for cell in frozen[2:]] == ["0", "0"]
    assert all(cell.value > 0 for cell in trained[1:] if isinstance(cell, Number))
    # Counted from the architecture: 3 convolutions of 8 filters on 3, 8 and 8 channels, each with γ and β.
    assert isinstance(frozen[1], Number)
    assert frozen[1].value == 8 * 3 * 9 + 2 * 8 * 8 * 9 + 3 * 16
    recorded = json.loads((tmp_path / "results.json").read_text())["frozen layers"]["run"]["frozen"]
    assert recorded["largest"] == recorded["statistics"] == 0
    [figure] = [block for block in section.blocks if isinstance(block, Figure)]
    with Image.open(figure.path) as image:
        assert image.width > 1000


def test_several_runs_are_in_one_table(run: Path, course: Path, tmp_path: Path) -> None:
    *_, table = _find_tables(freezing_section(RunIndex(detectors=[run, course]), tmp_path))
    assert [str(row[3]) for row in table.rows] == ["3", "2"]


def test_updated_statistics_are_attributed_to_the_recipe(course: Path, tmp_path: Path) -> None:
    text = _read_text(freezing_section(RunIndex(detectors=[course]), tmp_path))
    assert "In this run, the statistics are still updated" in text
    assert "The frozen parameters have not changed, but the BatchNorm statistics have, as this recipe intends" in text
    assert "cannot be cached, because their statistics change" in text


def test_changed_frozen_layer_is_reported_as_an_error(run: Path, tmp_path: Path) -> None:
    modified = shutil.copytree(run, tmp_path / "modified")
    state, metadata = load_checkpoint(modified / "best.safetensors")
    state["net"]["layers.1.convolution.weight"][0, 0, 0, 0] += 1e-6
    save_checkpoint(modified / "best.safetensors", state, metadata)
    assert [change.layer for change in weight_changes(modified) if change.max_change and change.layer < 3] == [1]
    assert "which is an error in the program" in _read_text(freezing_section(RunIndex(detectors=[modified]), tmp_path))


@pytest.mark.parametrize(
    ("frozen", "statistics", "trained", "update_bn_stats", "expected"),
    [
        (0.0, 0.0, 1.0, False, "all other layers have changed"),
        (0.0, 0.0, 0.0, False, "some of the other layers have not changed"),
        (0.0, 1.0, 1.0, True, "as this recipe intends"),
        (0.0, 1.0, 1.0, False, "which is an error in the program"),
        (1.0, 0.0, 1.0, True, "Parameters of frozen layers have changed"),
    ],
)
def test_verdict_follows_from_the_changes(
    frozen: float, statistics: float, trained: float, update_bn_stats: bool, expected: str
) -> None:
    changes = [
        LayerWeightChange(0, 9, frozen, frozen, statistics),
        LayerWeightChange(1, 9, trained, trained, trained),
    ]
    assert expected in frozen_verdict(changes, 1, update_bn_stats=update_bn_stats)
    assert "No layer was frozen" in frozen_verdict(changes, 0, update_bn_stats=update_bn_stats)


@pytest.mark.parametrize("weight", [1.0, 3.0])
@pytest.mark.parametrize("fixture", ["run", "course"])
def test_class_term_matches_its_definition(fixture: str, weight: float, request: pytest.FixtureRequest) -> None:
    check = verify_class_loss(open_run(request.getfixturevalue(fixture)), weight)
    assert check["num_positions"] > 0
    assert check["expected"] > 0
    assert check["actual"] == pytest.approx(check["expected"], rel=1e-12)
    assert check["max_gradient_difference"] <= 1e-12 * check["max_gradient"]
    assert check["max_gradient"] > 0


def test_wrong_class_term_is_detected(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unweighted_class_loss(self: DetectionLoss, predicted: Tensor, matched_targets: Tensor) -> Tensor:
        """Compute the class term without the weight of positive targets."""
        one_hot = F.one_hot(matched_targets[:, 1].long(), self.num_classes).to(predicted)
        return F.binary_cross_entropy_with_logits(predicted[:, 5:], one_hot, reduction="none")

    assert "the code implements the formula" in _read_text(class_loss_section(RunIndex(detectors=[run]), tmp_path))
    monkeypatch.setattr(DetectionLoss, "class_loss", unweighted_class_loss)
    assert "more than rounding error" in _read_text(class_loss_section(RunIndex(detectors=[run]), tmp_path))


@pytest.mark.parametrize("weight", [0.5, 1.0, 3.0])
def test_formula_matches_pytorch(weight: float) -> None:
    loss = DetectionLoss(make_small_detector().architecture, DARKNET, 3, size=64)
    [first, _] = [block for block in class_loss_blocks(loss) if isinstance(block, Formula)]
    x, y, positive_weight = symbols("x y cls_pw")
    formula = first.expression.replace(Function("σ"), lambda value: 1 / (1 + exp(-value)))
    values = torch.linspace(-5, 5, 11, dtype=torch.float64)
    for target in (0.0, 1.0):
        expected = F.binary_cross_entropy_with_logits(
            values, torch.full_like(values, target), reduction="none", pos_weight=torch.tensor(weight)
        )
        evaluate = lambdify((x, y, positive_weight), formula)
        assert [evaluate(value, target, weight) for value in values.tolist()] == pytest.approx(expected.tolist())


def test_total_loss_has_the_weights_of_the_loss() -> None:
    detector = make_small_detector(ULTRALYTICS_9_0)
    loss = DetectionLoss(detector.architecture, detector.variant, 3, size=320, recipe="default")
    [formula] = [block for block in total_loss_blocks(loss) if isinstance(block, Formula)]
    weights = {str(term): formula.expression.coeff(term) for term in formula.expression.free_symbols}
    # One head: 3 times the weights 0.05, 1 and 0.5, for half of 640 pixels and 3 of 80 classes.
    assert {name: float(value) for name, value in weights.items()} == pytest.approx(
        {"S_box": 0.15, "S_object": 0.75, "S_class": 1.5 * 3 / 80}
    )


def test_results_are_those_of_the_summary(run: Path, tmp_path: Path) -> None:
    section = class_loss_section(RunIndex(detectors=[run]), tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    averages, classes = _find_tables(section)
    assert [cell.value for cell in averages.rows[0] if isinstance(cell, Number)] == pytest.approx(
        [100 * summary["before"]["ap50"], 100 * summary["after"]["ap50"], 100 * summary["difference"]["ap50"]["value"]]
    )
    assert sorted(str(row[0]) for row in classes.rows) == ["dog", "hedgehog"]
    figures = [block.path.name for block in section.blocks if isinstance(block, Figure)]
    assert figures == ["terms-run.png", "pictures-run.png"]
    assert all((tmp_path / name).stat().st_size < 300_000 for name in figures)
    document = Document("", [], [section], [], {})
    assert all(number.source for _, _, number in document.numbers())


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ([0.01, 0.1], "AP50 has increased significantly"),
        ([-0.1, -0.01], "AP50 has decreased significantly"),
        ([-0.1, 0.1], "the change in AP50 is not significant"),
    ],
)
def test_conclusion_follows_from_the_intervals(interval: list[float], expected: str, run: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(run, tmp_path / "copy")
    summary = json.loads((copied / "summary.json").read_text())
    summary["difference"]["ap50"]["interval"] = interval
    summary["retained"] = {"data": "coco128", "ap50_before": 0.5, "ap50_after": None}
    (copied / "summary.json").write_text(json.dumps(summary))
    text = _read_text(class_loss_section(RunIndex(detectors=[copied]), tmp_path))
    assert expected in text
    assert "On `coco128`, the AP50 of the original classes changes from 50.0 % to – %" in text


def test_missing_images_are_reported_and_other_blocks_remain(run: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(run, tmp_path / "moved")
    config = json.loads((moved / "config.json").read_text())
    config["data"] = str(tmp_path / "nowhere")
    (moved / "config.json").write_text(json.dumps(config))
    section = class_loss_section(RunIndex(detectors=[moved]), tmp_path)
    [missing] = [block for block in section.blocks if isinstance(block, MissingRun)]
    assert "nowhere" in missing.description
    assert len(list(_find_tables(section))) == 2
