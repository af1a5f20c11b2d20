"""Our own variants of the three nets, right and wrong ones, judged; each wrong one must be caught and named.

Run in this process: what children and their ends do has tests in test_self_check.py.
"""

import io
import json
import sys
from functools import cache
from pathlib import Path

import pytest

from chromabox.assignment.check.checks import NetReport, Observations, run_checks
from chromabox.assignment.check.worker import CLASSES, EventWriter, inspect_file

STUDENTS = Path(__file__).parent / "students"


@pytest.fixture(autouse=True)
def _own_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "student", raising=False)


@cache
def judged(path: Path) -> dict[str, NetReport]:
    """What a child would tell of the file, judged."""
    told = io.StringIO()
    inspect_file({"file": str(path), "nets": list(CLASSES)}, EventWriter(told))
    facts: dict[str, Observations] = {}
    for line in told.getvalue().splitlines():
        event = json.loads(line)
        for net, name in event.get("nets", {}).items():
            facts[net] = Observations(name)
        if "value" in event:
            facts[event["net"]].values[event["fact"]] = event["value"]
        elif "failed" in event:
            facts[event["net"]].failures[event["fact"]] = event["failed"]
    return {net: run_checks(net, own) for net, own in facts.items()}


def failed(check: NetReport) -> dict[str, str]:
    """The answers that are wrong, by their questions."""
    return {one.name: one.message for one in check.checks if one.passed is False}


def test_other_styles_of_the_same_nets_match() -> None:
    for net, check in judged(STUDENTS / "right_functional.py").items():
        assert failed(check) == {}, net
        assert {line.status for line in check.diff} == {"equal"}
        assert len(check.checks) == (13 if net == "unet" else 12)
        kernels = [one for one in check.checks if one.passed is None]
        assert [one.name for one in kernels] == ([] if net == "pool-upsample" else ["other sizes"])
        assert len(check.hints) == len(kernels)


def test_a_batch_norm_too_few() -> None:
    check = judged(STUDENTS / "wrong_layers.py")["pool-upsample"]
    wrong = failed(check)
    assert wrong["layers"] == "block 2: BatchNorm2d missing"
    assert wrong["BatchNorm"] == "3 BatchNorm2d layers at work instead of 4"
    # BatchNorm2d(64) has 64 factors and 64 shifts.
    assert wrong["parameters"] == f"{49_728 - 128:,} instead of 49,728"
    assert wrong["same function (eval)"] == "only 22 of our 26 tensors have a place in it, so it computes another"
    assert check.hints == ["block 2: add the BatchNorm2d that makes [2, 64, 8, 8]."]


def test_a_padding_too_few() -> None:
    # (16 − 3)/2 + 1 = 7 pixels, doubled twice 28.
    check = judged(STUDENTS / "wrong_layers.py")["conv-transpose"]
    assert failed(check) == {
        "shapes": "[2, 1, 32, 32] in gives [2, 24, 28, 28] out; the figure gives [2, 24, 32, 32]",
        "layers": "block 2: Conv2d padding 0 instead of 1",
    }
    assert check.hints == ["block 2: Conv2d (self.all.3) padding 0 instead of 1."]


def test_a_skip_from_before_batch_norm() -> None:
    check = judged(STUDENTS / "wrong_layers.py")["unet"]
    said = (
        "into block 4: concatenation takes block 3's output and what block 1's Conv2d makes instead of block 3's "
        "output and block 1's output"
    )
    wrong = failed(check)
    assert wrong["layers"] == wrong.get("skip connections", said) == said
    assert wrong.keys() >= {"same function (eval)", "same function (train)"}


def test_a_last_convolution_forgotten() -> None:
    check = judged(STUDENTS / "wrong_ends.py")["pool-upsample"]
    wrong = failed(check)
    assert wrong["layers"] == "last layer: Conv2d missing"
    assert wrong["raw scores"] == "the net ends with ReLU, not with a convolution"
    assert wrong["gradient"] == "does not reach five.weight, five.bias"
    assert "parameters" not in wrong
    assert "self.five is made in __init__ and takes no part in forward." in check.hints


def test_a_softmax_too_many() -> None:
    check = judged(STUDENTS / "wrong_ends.py")["conv-transpose"]
    wrong = failed(check)
    assert wrong["layers"] == "last layer: softmax not in the figure"
    assert wrong["raw scores"] == "behind the last convolution comes softmax; the figure ends with the convolution"
    assert any("cross-entropy takes raw scores" in hint for hint in check.hints)


def test_a_skip_forgotten_and_a_block_that_goes_nowhere() -> None:
    check = judged(STUDENTS / "wrong_ends.py")["unet"]
    wrong = failed(check)
    assert wrong["skip connections"] == (
        "into block 4: concatenation takes block 1's output and block 1's output instead of block 3's output and "
        "block 1's output; into last layer: concatenation missing"
    )
    # The last convolution has 3 × 3 weights fewer for each of 24 colours.
    assert wrong["parameters"] == f"{56_856 - 9 * 24:,} instead of 56,856"
    assert "does not reach two.0.weight" in wrong["gradient"]
    assert any(hint.startswith("Computed and then not used: Conv2d (self.two.0)") for hint in check.hints)


def test_pooling_after_relu_is_another_order() -> None:
    check = judged(STUDENTS / "wrong_order.py")["pool-upsample"]
    wrong = failed(check)
    assert wrong["layers"].startswith(
        "block 1: BatchNorm2d out of order: in the figure it comes right after block 1's MaxPool2d"
    )
    assert wrong.keys() == {"layers", "same function (eval)", "same function (train)"}
    assert [line.status for line in check.diff].count("moved") == 8


def test_sizes_typed_in() -> None:
    check = judged(STUDENTS / "wrong_order.py")["conv-transpose"]
    wrong = failed(check)
    assert wrong.keys() == {"other sizes"}
    for size in ("num_filters 8", "num_colours 10", "num_in_channels 3", "kernel 1", "kernel 5"):
        assert size in wrong["other sizes"]
        assert any(hint.startswith(f"With {size}: is a number typed") for hint in check.hints)


def test_a_shared_layer_and_a_last_relu() -> None:
    check = judged(STUDENTS / "wrong_order.py")["unet"]
    wrong = failed(check)
    assert wrong["layers"] == "block 2: BatchNorm2d momentum 0.5 instead of 0.1; last layer: ReLU not in the figure"
    assert wrong["parameters"] == f"{56_856 - 64:,} instead of 56,856"
    assert "Used more than once: self.norm; the figure has a layer of its own each time." in check.hints
    assert any(hint.startswith("No ReLU at the end") for hint in check.hints)


def test_a_forward_that_fails_is_told_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    path = STUDENTS / "wrong_raising.py"
    check = judged(path)["pool-upsample"]
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "self.three(self.two" in text)
    wrong = failed(check)
    assert wrong["shapes"].startswith("PoolUpsampleNet's forward raised RuntimeError: Given groups=1")
    assert wrong["shapes"].endswith(f"(line {line} of wrong_raising.py)")
    assert wrong["layers"] == "the first 8 steps are the figure's, then forward fails"
    assert [one.message for one in check.diff[8:]] == ["not reached"] * 9
    assert check.hints == []


def test_a_net_without_sizes_that_looks_at_its_batch() -> None:
    wrong = failed(judged(STUDENTS / "wrong_raising.py")["conv-transpose"])
    assert wrong["constructor"].startswith(
        "ConvTransposeNet(): kernel, num_filters, num_colours, num_in_channels cannot"
    )
    assert wrong["batch independence"].startswith("in evaluation a picture's scores change by up to")


def test_a_forward_that_returns_nothing() -> None:
    wrong = failed(judged(STUDENTS / "wrong_raising.py")["unet"])
    assert wrong["shapes"].startswith("[2, 1, 32, 32] in gives NoneType out")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("mine.py", "class UNet(:", "mine.py cannot be read as Python: invalid syntax (mine.py, line 1)"),
        ("mine.py", "(" * 9999, "mine.py cannot be read as Python: too many nested parentheses (mine.py, line 1)"),
        ("mine.ipynb", "{}", "mine.ipynb cannot be read as Python: it is no notebook of format 4"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    told = io.StringIO()
    inspect_file({"file": str(tmp_path / name), "nets": list(CLASSES)}, EventWriter(told))
    assert json.loads(told.getvalue().splitlines()[-1]) == {"failed": said}


HEAD = "import torch\nfrom torch import nn\nfrom chromabox.colour.models import baselines as nets\n"
ARGUMENTS = "kernel, num_in_channels, num_filters, num_colours"


def written(folder: Path, body: str, *, base: str = "nets.UNet") -> NetReport:
    """A UNet of that class body."""
    path = folder / "mine.py"
    path.write_text(f"{HEAD}class UNet({base}):\n" + "".join(f"    {line}\n" for line in body.splitlines()))
    return judged(path)["unet"]


def test_a_detached_block_gets_no_gradient(tmp_path: Path) -> None:
    body = (
        "def forward(self, x):\n    half = self.block1(x).detach()\n"
        "    again = torch.cat([self.block3(self.block2(half)), half], 1)\n"
        "    return self.last(torch.cat([self.block4(again), x], 1))"
    )
    assert failed(written(tmp_path, body)) == {
        "gradient": "does not reach block1.0.weight, block1.0.bias, block1.1.weight, block1.1.bias"
    }


def test_other_means_to_the_same_function_are_told(tmp_path: Path) -> None:
    body = (
        "def forward(self, x):\n    half = self.block1(x)\n"
        "    again = torch.cat([self.block3(self.block2(half)), half], 1)\n"
        "    return self.last(torch.cat([self.block4(again), x], 1)) * 1.0"
    )
    check = written(tmp_path, body)
    assert failed(check).keys() == {"layers", "raw scores"}
    assert check.hints[-1].startswith("It computes the figure's function by other means")


def test_dropout_is_seen(tmp_path: Path) -> None:
    check = written(tmp_path, "def forward(self, x):\n    return super().forward(nn.functional.dropout(x, 0.5))")
    assert failed(check)["layers"].startswith("block 1: Dropout not in the figure")


@pytest.mark.parametrize(
    ("body", "base", "said"),
    [
        (f"def __init__(self, {ARGUMENTS}):\n    self.a = nn.ReLU()", "nn.Module", "making UNet raised AttributeError"),
        (f"def __init__(self, {ARGUMENTS}, depth):\n    pass", "nn.Module", "making UNet raised TypeError"),
        ("pass", "object", "making UNet raised TypeError: UNet is no subclass of nn.Module"),
        ("pass", "NoSuchBase", "making UNet raised NameError: UNet could not be defined"),
    ],
)
def test_a_net_that_cannot_be_made_is_one_sentence(tmp_path: Path, body: str, base: str, said: str) -> None:
    check = written(tmp_path, body, base=base)
    assert list(failed(check)) == ["constructor"]
    assert failed(check)["constructor"].startswith(said)
    assert len(check.checks) == 1


def test_names_are_forgiven_their_case(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(HEAD + "class Pool_UpSampleNet(nets.PoolUpsampleNet): pass\n")
    assert judged(tmp_path / "mine.py")["pool-upsample"].class_name == "Pool_UpSampleNet"


def test_numbers_that_json_does_not_have_stay_out(tmp_path: Path) -> None:
    body = f"def __init__(self, {ARGUMENTS}):\n    super().__init__({ARGUMENTS})\n"
    body += "    self.block1[1].momentum = float('inf')"
    check = written(tmp_path, body)
    assert "momentum inf instead of 0.1" in failed(check)["layers"]
    json.dumps([line.actual.settings for line in check.diff if line.actual], allow_nan=False)
