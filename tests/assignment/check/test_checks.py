"""Checks of correct and incorrect variants of the three models; each error must be detected and described.

Everything runs in this process; child processes are tested in test_runner.py.
"""

import io
import json
import sys
from functools import cache
from pathlib import Path

import pytest

from chromabox.assignment.check.checks import NetReport
from chromabox.assignment.check.runner import parse_report
from chromabox.assignment.check.worker import CLASSES, inspect_file

STUDENTS = Path(__file__).parent / "students"


@pytest.fixture(autouse=True)
def _restore_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "student", raising=False)


@cache
def check_in_process(path: Path) -> dict[str, NetReport]:
    """Check the classes of a file as a child process and its parent would."""
    output = io.StringIO()
    inspect_file({"file": str(path), "nets": list(CLASSES)}, output)
    state = json.loads(output.getvalue().splitlines()[-1])
    assert state["done"]
    return {report.model: report for report in map(parse_report, state["reports"])}


def failed_checks(report: NetReport) -> dict[str, str]:
    """Return the messages of the failed checks by name."""
    return {check.name: check.message for check in report.checks if check.passed is False}


def test_other_implementations_of_the_same_models_match() -> None:
    for model, report in check_in_process(STUDENTS / "right_functional.py").items():
        assert failed_checks(report) == {}, model
        assert {line.status for line in report.diff} == {"equal"}
        assert len(report.checks) == (13 if model == "unet" else 12)
        notes = [check for check in report.checks if check.passed is None]
        assert [check.name for check in notes] == ([] if model == "pool-upsample" else ["other sizes"])
        assert len(report.hints) == len(notes)


def test_missing_batch_norm_is_reported() -> None:
    report = check_in_process(STUDENTS / "wrong_layers.py")["pool-upsample"]
    failed = failed_checks(report)
    assert failed["layers"] == "block 2: BatchNorm2d missing"
    assert failed["BatchNorm"] == "number of BatchNorm2d layers: 3 instead of 4"
    # BatchNorm2d(64) has 64 weights and 64 biases.
    assert failed["parameters"] == f"{49_728 - 128:,} instead of 49,728"
    assert failed["same function (eval)"] == (
        "only 22 of the 26 reference tensors fit the model, so its function differs"
    )
    assert report.hints == ["block 2: add the BatchNorm2d with output shape [2, 64, 8, 8]."]


def test_missing_padding_is_reported() -> None:
    # (16 − 3)/2 + 1 = 7 pixels, doubled twice 28.
    report = check_in_process(STUDENTS / "wrong_layers.py")["conv-transpose"]
    assert failed_checks(report) == {
        "shapes": "input [2, 1, 32, 32], output [2, 24, 28, 28] instead of [2, 24, 32, 32]",
        "layers": "block 2: Conv2d padding 0 instead of 1",
    }
    assert report.hints == ["block 2: Conv2d (self.all.3) padding 0 instead of 1."]


def test_skip_connection_from_before_batch_norm_is_reported() -> None:
    report = check_in_process(STUDENTS / "wrong_layers.py")["unet"]
    message = (
        "input of block 4: concatenation receives the output of block 3 and the output of block 1's Conv2d instead of "
        "the output of block 3 and the output of block 1"
    )
    failed = failed_checks(report)
    assert failed["layers"] == failed.get("skip connections", message) == message
    assert failed.keys() >= {"same function (eval)", "same function (train)"}


def test_missing_last_convolution_is_reported() -> None:
    report = check_in_process(STUDENTS / "wrong_ends.py")["pool-upsample"]
    failed = failed_checks(report)
    assert failed["layers"] == "last layer: Conv2d missing"
    assert failed["logits"] == "the model ends with ReLU instead of a convolution"
    assert failed["gradient"] == "missing, zero or non-finite gradient for five.weight, five.bias"
    assert "parameters" not in failed
    assert "self.five is created in __init__ but not used in forward." in report.hints


def test_additional_softmax_is_reported() -> None:
    report = check_in_process(STUDENTS / "wrong_ends.py")["conv-transpose"]
    failed = failed_checks(report)
    assert failed["layers"] == "last layer: softmax not in figure 1"
    assert failed["logits"] == "the last convolution is followed by softmax; figure 1 ends with this convolution"
    assert any("cross-entropy expects logits" in hint for hint in report.hints)


def test_missing_skip_connection_and_unused_block_are_reported() -> None:
    report = check_in_process(STUDENTS / "wrong_ends.py")["unet"]
    failed = failed_checks(report)
    assert failed["skip connections"] == (
        "input of block 4: concatenation receives the output of block 1 and the output of block 1 instead of the "
        "output of block 3 and the output of block 1; input of last layer: concatenation missing"
    )
    # The last convolution has 3 × 3 fewer weights for each of 24 colours.
    assert failed["parameters"] == f"{56_856 - 9 * 24:,} instead of 56,856"
    assert "missing, zero or non-finite gradient for two.0.weight" in failed["gradient"]


def test_pooling_after_relu_is_reported_as_a_different_order() -> None:
    report = check_in_process(STUDENTS / "wrong_order.py")["pool-upsample"]
    failed = failed_checks(report)
    assert failed["layers"].startswith(
        "block 1: BatchNorm2d out of order: in figure 1 it directly follows the MaxPool2d of block 1"
    )
    assert failed.keys() == {"layers", "same function (eval)", "same function (train)"}
    assert [line.status for line in report.diff].count("moved") == 8


def test_constant_sizes_are_reported() -> None:
    report = check_in_process(STUDENTS / "wrong_order.py")["conv-transpose"]
    failed = failed_checks(report)
    assert failed.keys() == {"other sizes"}
    for size in ("num_filters 8", "num_colours 10", "num_in_channels 3", "kernel 1", "kernel 5"):
        assert size in failed["other sizes"]
        assert any(hint.startswith(f"With {size}: the class may contain a constant") for hint in report.hints)


def test_shared_layer_and_final_relu_are_reported() -> None:
    report = check_in_process(STUDENTS / "wrong_order.py")["unet"]
    failed = failed_checks(report)
    assert failed["layers"] == "block 2: BatchNorm2d momentum 0.5 instead of 0.1; last layer: ReLU not in figure 1"
    assert failed["parameters"] == f"{56_856 - 64:,} instead of 56,856"
    assert "Used more than once: self.norm; figure 1 has a separate layer for every use." in report.hints
    assert any(hint.startswith("Remove the ReLU at the end") for hint in report.hints)


def test_error_in_forward_is_reported_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    path = STUDENTS / "wrong_raising.py"
    report = check_in_process(path)["pool-upsample"]
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "self.three(self.two" in text)
    failed = failed_checks(report)
    assert failed["shapes"].startswith("forward pass of PoolUpsampleNet: raised RuntimeError: Given groups=1")
    assert failed["shapes"].endswith(f"(line {line} of wrong_raising.py)")
    assert failed["layers"] == "the forward pass fails; correct operations before the failure: 8"
    assert [one.message for one in report.diff[8:]] == ["not reached"] * 9
    assert report.hints == []


def test_missing_sizes_and_batch_dependence_are_reported() -> None:
    failed = failed_checks(check_in_process(STUDENTS / "wrong_raising.py")["conv-transpose"])
    assert failed["constructor"].startswith(
        "ConvTransposeNet(): kernel, num_filters, num_colours, num_in_channels cannot"
    )
    assert failed["batch independence"].startswith("in evaluation mode, the logits of an image change by up to")


def test_forward_without_return_value_is_reported() -> None:
    failed = failed_checks(check_in_process(STUDENTS / "wrong_raising.py")["unet"])
    assert failed["shapes"].startswith("input [2, 1, 32, 32], output NoneType instead of")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.py", "class UNet(:", "mine.py cannot be read as Python: invalid syntax (mine.py, line 1)"),
        ("mine.py", "(" * 9999, "mine.py cannot be read as Python: too many nested parentheses (mine.py, line 1)"),
        ("mine.ipynb", "{}", "mine.ipynb cannot be read as Python: expected a notebook in nbformat 4"),
    ],
)
def test_unreadable_file_gives_one_message(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    output = io.StringIO()
    inspect_file({"file": str(tmp_path / name), "nets": list(CLASSES)}, output)
    assert json.loads(output.getvalue().splitlines()[-1])["failed"] == message


HEADER = "import torch\nfrom torch import nn\nfrom chromabox.colour.models import baselines\n"
ARGUMENTS = "kernel, num_in_channels, num_filters, num_colours"


def check_unet(folder: Path, body: str, *, base: str = "baselines.UNet") -> NetReport:
    """Check a class UNet with that body."""
    path = folder / "mine.py"
    path.write_text(f"{HEADER}class UNet({base}):\n" + "".join(f"    {line}\n" for line in body.splitlines()))
    return check_in_process(path)["unet"]


def test_detached_block_has_no_gradient(tmp_path: Path) -> None:
    body = (
        "def forward(self, x):\n    half = self.block1(x).detach()\n"
        "    again = torch.cat([self.block3(self.block2(half)), half], 1)\n"
        "    return self.last(torch.cat([self.block4(again), x], 1))"
    )
    assert failed_checks(check_unet(tmp_path, body)) == {
        "gradient": "missing, zero or non-finite gradient for "
        "block1.0.weight, block1.0.bias, block1.1.weight, block1.1.bias"
    }


def test_other_layers_with_the_same_function_are_reported(tmp_path: Path) -> None:
    body = (
        "def forward(self, x):\n    half = self.block1(x)\n"
        "    again = torch.cat([self.block3(self.block2(half)), half], 1)\n"
        "    return self.last(torch.cat([self.block4(again), x], 1)) * 1.0"
    )
    report = check_unet(tmp_path, body)
    assert failed_checks(report).keys() == {"layers", "logits"}
    assert report.hints[-1].startswith("The class computes the same function as figure 1, but with other layers")


def test_dropout_is_reported(tmp_path: Path) -> None:
    report = check_unet(tmp_path, "def forward(self, x):\n    return super().forward(nn.functional.dropout(x, 0.5))")
    assert failed_checks(report)["layers"].startswith("block 1: Dropout not in figure 1")


@pytest.mark.parametrize(
    ("body", "base", "message"),
    [
        (
            f"def __init__(self, {ARGUMENTS}):\n    self.a = nn.ReLU()",
            "nn.Module",
            "constructing UNet: raised AttributeError",
        ),
        (f"def __init__(self, {ARGUMENTS}, depth):\n    pass", "nn.Module", "constructing UNet: raised TypeError"),
        ("pass", "object", "constructing UNet: raised TypeError: UNet is not a subclass of nn.Module"),
        ("pass", "NoSuchBase", "constructing UNet: raised NameError: UNet could not be defined"),
    ],
)
def test_failing_constructor_gives_one_message(tmp_path: Path, body: str, base: str, message: str) -> None:
    report = check_unet(tmp_path, body, base=base)
    assert list(failed_checks(report)) == ["constructor"]
    assert failed_checks(report)["constructor"].startswith(message)
    assert len(report.checks) == 1


def test_class_names_are_matched_without_case_and_underscores(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(HEADER + "class Pool_UpSampleNet(baselines.PoolUpsampleNet): pass\n")
    assert check_in_process(tmp_path / "mine.py")["pool-upsample"].class_name == "Pool_UpSampleNet"


def test_non_finite_settings_are_converted_for_json(tmp_path: Path) -> None:
    body = f"def __init__(self, {ARGUMENTS}):\n    super().__init__({ARGUMENTS})\n"
    body += "    self.block1[1].momentum = float('inf')"
    report = check_unet(tmp_path, body)
    assert "momentum inf instead of 0.1" in failed_checks(report)["layers"]
    json.dumps([line.actual.settings for line in report.diff if line.actual], allow_nan=False)
