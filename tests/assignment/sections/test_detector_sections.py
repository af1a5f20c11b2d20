"""D.1 and D.2 from small real runs: what is said follows from the files, and says so where it is otherwise."""

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
from chromabox.detect.models.darknet import DARKNET, ULTRALYTICS_9_0, Variant
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


def _trained(folder: Path, kind: Variant = DARKNET, recipe: str = "default", freeze: int = 3) -> Path:
    """A run of an epoch on a few pictures."""
    labels = {f"train/{name}": BOX for name in "abcd"} | {f"val/{name}": BOX for name in "xyz"}
    data = make_yolo_dataset(folder / "set", labels, ("dog", "hedgehog"))
    save_detector(folder / "small.safetensors", make_small_detector(kind))
    config = FinetuneConfig(
        data=str(data),
        weights=str(folder / "small.safetensors"),
        recipe=make_finetune_recipe(recipe, epochs=2, batch_size=2),
        freeze=freeze,
        size=64,
        num_cached_views=1,
        runtime=RuntimeConfig(),
    )
    finetune(config, folder / "run", log=lambda line: None)
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _trained(tmp_path_factory.mktemp("darknet"))


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By the course's recipe and with the other way to decode."""
    return _trained(tmp_path_factory.mktemp("course"), ULTRALYTICS_9_0, "course", freeze=2)


def _words(section: Section) -> str:
    return " ".join(str(block) for block in section.blocks if isinstance(block, Text))


def _tables(section: Section) -> Iterator[Table]:
    return (block for block in section.blocks if isinstance(block, Table))


def test_without_a_run_it_says_what_makes_one(tmp_path: Path) -> None:
    for builder, key in ((freezing_section, "D.1"), (class_loss_section, "D.2")):
        section = builder(RunIndex(), tmp_path)
        assert section.key == key
        [block] = section.blocks
        assert isinstance(block, MissingRun)
        assert block.command.startswith("chromabox finetune ")


def test_what_was_frozen_and_stood_still(run: Path, tmp_path: Path) -> None:
    section = freezing_section(RunIndex(detectors=[run]), tmp_path)
    words = _words(section)
    assert "Its first 3 of 7 layers are frozen, fewer than the 5 of its backbone" in words
    assert "not a single bit differs" in words
    assert "all other layers have moved" in words
    [table] = _tables(section)
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


def test_several_runs_stand_side_by_side(run: Path, course: Path, tmp_path: Path) -> None:
    *_, table = _tables(freezing_section(RunIndex(detectors=[run, course]), tmp_path))
    assert [str(row[3]) for row in table.rows] == ["3", "2"]


def test_moving_statistics_are_found_and_called_the_recipe_s(course: Path, tmp_path: Path) -> None:
    words = _words(freezing_section(RunIndex(detectors=[course]), tmp_path))
    assert "This run leaves them moving" in words
    assert "No parameter of a frozen layer differs, but their statistics have moved, as this recipe leaves" in words
    assert "cannot be kept, since their statistics move" in words


def test_a_frozen_layer_that_moved_is_an_error_and_called_one(run: Path, tmp_path: Path) -> None:
    spoilt = shutil.copytree(run, tmp_path / "spoilt")
    state, description = load_checkpoint(spoilt / "best.safetensors")
    state["net"]["layers.1.convolution.weight"][0, 0, 0, 0] += 1e-6
    save_checkpoint(spoilt / "best.safetensors", state, description)
    assert [one.layer for one in weight_changes(spoilt) if one.max_change and one.layer < 3] == [1]
    assert "which is an error of the program" in _words(freezing_section(RunIndex(detectors=[spoilt]), tmp_path))


@pytest.mark.parametrize(
    ("largest", "statistics", "others", "moving", "said"),
    [
        (0.0, 0.0, 1.0, False, "all other layers have moved"),
        (0.0, 0.0, 0.0, False, "not all of the other layers have moved"),
        (0.0, 1.0, 1.0, True, "as this recipe leaves them to"),
        (0.0, 1.0, 1.0, False, "which is an error of the program"),
        (1.0, 0.0, 1.0, True, "It was not: parameters of frozen layers have moved"),
    ],
)
def test_the_verdict_follows_from_the_changes(
    largest: float, statistics: float, others: float, moving: bool, said: str
) -> None:
    changes = [LayerWeightChange(0, 9, largest, largest, statistics), LayerWeightChange(1, 9, others, others, others)]
    assert said in frozen_verdict(changes, 1, update_bn_stats=moving)
    assert "Nothing was frozen" in frozen_verdict(changes, 0, update_bn_stats=moving)


@pytest.mark.parametrize("weight", [1.0, 3.0])
@pytest.mark.parametrize("which", ["run", "course"])
def test_the_class_term_is_its_definition(which: str, weight: float, request: pytest.FixtureRequest) -> None:
    found = verify_class_loss(open_run(request.getfixturevalue(which)), weight)
    assert found.num_positions > 0
    assert found.expected > 0
    assert found.actual == pytest.approx(found.expected, rel=1e-12)
    assert found.max_gradient_difference <= 1e-12 * found.max_gradient
    assert found.max_gradient > 0


def test_a_wrong_class_term_is_noticed(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(self: DetectionLoss, chosen: Tensor, wanted: Tensor) -> Tensor:
        """Without the weight of positives."""
        goal = F.one_hot(wanted[:, 1].long(), self.num_classes).to(chosen)
        return F.binary_cross_entropy_with_logits(chosen[:, 5:], goal, reduction="none")

    assert "the code is the formula" in _words(class_loss_section(RunIndex(detectors=[run]), tmp_path))
    monkeypatch.setattr(DetectionLoss, "class_loss", forgetful)
    assert "That is more than rounding" in _words(class_loss_section(RunIndex(detectors=[run]), tmp_path))


@pytest.mark.parametrize("weight", [0.5, 1.0, 3.0])
def test_the_formula_is_pytorch_s_function(weight: float) -> None:
    loss = DetectionLoss(make_small_detector().architecture, DARKNET, 3, size=64)
    [first, _] = [block for block in class_loss_blocks(loss) if isinstance(block, Formula)]
    x, y, share = symbols("x y cls_pw")
    formula = first.expression.replace(Function("σ"), lambda value: 1 / (1 + exp(-value)))
    values = torch.linspace(-5, 5, 11, dtype=torch.float64)
    for goal in (0.0, 1.0):
        expected = F.binary_cross_entropy_with_logits(
            values, torch.full_like(values, goal), reduction="none", pos_weight=torch.tensor(weight)
        )
        written = lambdify((x, y, share), formula)
        assert [written(one, goal, weight) for one in values.tolist()] == pytest.approx(expected.tolist())


def test_the_terms_are_weighed_as_the_loss_weighs_them() -> None:
    trained = make_small_detector(ULTRALYTICS_9_0)
    loss = DetectionLoss(trained.architecture, trained.variant, 3, size=320, recipe="default")
    [formula] = [block for block in total_loss_blocks(loss) if isinstance(block, Formula)]
    parts = {str(one): formula.expression.coeff(one) for one in formula.expression.free_symbols}
    # One head: 3 times 0.05, 1 and 0.5, for half of 640 pixels and 3 of 80 classes.
    assert {name: float(value) for name, value in parts.items()} == pytest.approx(
        {"S_box": 0.15, "S_object": 0.75, "S_class": 1.5 * 3 / 80}
    )


def test_before_and_after_are_the_summary_s(run: Path, tmp_path: Path) -> None:
    section = class_loss_section(RunIndex(detectors=[run]), tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    terms, averages, classes = _tables(section)
    assert [row[0] for row in terms.rows] == ["box", "objectness", "class", "loss"]
    assert [cell.value for cell in averages.rows[0] if isinstance(cell, Number)] == pytest.approx(
        [100 * summary["before"]["ap50"], 100 * summary["after"]["ap50"], 100 * summary["difference"]["ap50"]["value"]]
    )
    assert sorted(str(row[0]) for row in classes.rows) == ["dog", "hedgehog"]
    pictures = [block.path.name for block in section.blocks if isinstance(block, Figure)]
    assert pictures == ["terms-run.png", "pictures-run.png"]
    assert all((tmp_path / name).stat().st_size < 300_000 for name in pictures)
    document = Document("", [], [section], [], {})
    assert all(number.source for _, _, number in document.numbers())


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ([0.01, 0.1], "AP50 has become better"),
        ([-0.1, -0.01], "AP50 has become worse"),
        ([-0.1, 0.1], "the change of AP50 cannot be told from chance"),
    ],
)
def test_what_may_be_concluded_follows_from_the_intervals(
    interval: list[float], said: str, run: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(run, tmp_path / "copy")
    summary = json.loads((copied / "summary.json").read_text())
    summary["difference"]["ap50"]["interval"] = interval
    summary["retained"] = {"data": "coco128", "ap50_before": 0.5, "ap50_after": None}
    (copied / "summary.json").write_text(json.dumps(summary))
    words = _words(class_loss_section(RunIndex(detectors=[copied]), tmp_path))
    assert said in words
    assert "On `coco128` AP50 of the classes known before goes from 50.0 to – %" in words


def test_where_the_pictures_are_gone_the_rest_is_there(run: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(run, tmp_path / "moved")
    config = json.loads((moved / "config.json").read_text())
    config["data"] = str(tmp_path / "nowhere")
    (moved / "config.json").write_text(json.dumps(config))
    section = class_loss_section(RunIndex(detectors=[moved]), tmp_path)
    [missing] = [block for block in section.blocks if isinstance(block, MissingRun)]
    assert "nowhere" in missing.description
    assert len(list(_tables(section))) == 3
