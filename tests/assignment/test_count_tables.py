"""Counts by name, run and file, and their printed form.

Expected values: the assignment's numbers by hand; the numbers that Darknet prints for its detectors (a multiplication
and an addition count as two operations, in units of 10⁹); SymPy parsing a printed formula.
"""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sympy import Expr, Rational, expand, sympify
from torch import nn

from chromabox.assignment.count import NC, NF, SYMBOLS, CountOptions, H, K, W
from chromabox.assignment.count_tables import (
    count_by_name,
    describe_options,
    format_formula,
    print_counts,
    print_paddings,
)
from chromabox.colour.models import build_model
from chromabox.colour.palette.io import load_palette
from chromabox.colour.weights.checkpoint import load_model, model_metadata
from chromabox.detect.models.architecture import yolov3, yolov3_tiny
from chromabox.detect.weights.load import save_detector
from chromabox.engine.checkpoint import save_checkpoint
from chromabox.errors import ChromaboxError, UsageError
from detector_fixtures import make_small_detector


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Create the run folder of a UNet with 4 filters and kernels of 5."""
    settings = {"kernel": 5, "num_filters": 4, "num_colours": 24}
    state = {"net": build_model("unet", **settings).state_dict()}
    save_checkpoint(
        tmp_path / "run" / "best.safetensors", state, model_metadata("unet", settings, load_palette("cifar24"))
    )
    return tmp_path / "run"


def test_run_and_checkpoint_are_counted_with_their_settings(run: Path) -> None:
    by_name = count_by_name("unet", kernel=5, num_filters=4)
    for path in (run, run / "best.safetensors"):
        report = count_by_name(str(path))
        assert report.title == f"unet of {path}"
        assert report.values == by_name.values
        assert report.total() == by_name.total()
    # 25·(NIC·NF + 4NF² + 2NF·NC + (NC + NIC)·NC) with NIC = 1, NF = 4, NC = 24.
    assert by_name.total().evaluate(by_name.values)[0] == 25 * (4 + 64 + 192 + 25 * 24)


# "BFLOPs" that Darknet prints and its web page lists, for 416 × 416.
@pytest.mark.parametrize(
    ("name", "architecture", "printed"), [("yolov3", yolov3(), "65.86"), ("yolov3-tiny", yolov3_tiny(), "5.56")]
)
def test_operations_and_weights_of_detectors_equal_those_of_darknet(
    name: str, architecture: object, printed: str
) -> None:
    count = count_by_name(name)
    _, _, connections = count.total().evaluate(count.values)
    assert count.values == {H: 416, W: 416}
    assert int(2 * connections / 1e7) / 100 == float(printed)
    # The weights file also contains two running statistics for every two weights of BatchNorm.
    norms = sum(layer.weights for layer in count.layers if layer.category == "norm")
    assert count.total(CountOptions(biases=True, batch_norm=True)).weights + 2 * norms == architecture.num_weights


def test_detector_file_is_counted_at_its_input_size(tmp_path: Path) -> None:
    detector = make_small_detector()
    save_detector(tmp_path / "best.safetensors", detector)
    for path in (tmp_path, tmp_path / "best.safetensors"):
        count = count_by_name(str(path))
        assert count.values == {H: 64, W: 64}
        convolutions = [layer for layer in detector.model.modules() if isinstance(layer, nn.Conv2d)]
        assert count.total().weights == sum(layer.weight.numel() for layer in convolutions)
    assert count_by_name(str(tmp_path), size=96).values[H] == 96


def test_photo_is_the_bundled_model() -> None:
    count = count_by_name("photo")
    model = load_model().network
    total = count.total(CountOptions(True, True, True))
    assert total.evaluate(count.values)[0] == sum(parameter.numel() for parameter in model.parameters())
    assert count_by_name("photo", num_colours=10).values[NC] == 10


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("vgg", {}, "model 'vgg': no such run folder or file; .*one of pool-upsample, conv-transpose, .*yolov3-tiny"),
        ("yolov3-tiny", {"kernel": 3}, "kernel: only for colourisation models given by name .*yolov3-tiny has fixed"),
        ("yolov3-tiny", {"size": 400}, "size is 400×400: .*multiples of 32"),
        ("colournet", {"num_filters": 3}, "invalid options"),
        ("RUN", {"num_colours": 3}, "num_colours: only for colourisation models given by name"),
        ("RUN", {"size": 31}, "size is 31×31"),
        ("EMPTY", {}, "contains no best.safetensors"),
    ],
)
def test_invalid_models_and_settings_are_rejected(
    run: Path, tmp_path: Path, model: str, settings: dict[str, int], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    paths = {"RUN": str(run), "EMPTY": str(tmp_path / "empty")}
    with pytest.raises(UsageError, match=message):
        count_by_name(paths.get(model, model), **settings)


def test_corrupt_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "net.safetensors").write_bytes(b"nothing")
    with pytest.raises(ChromaboxError, match=r"net\.safetensors"):
        count_by_name(str(tmp_path / "net.safetensors"))


def parse_formula(text: str) -> Expr:
    """Parse a printed formula with SymPy."""
    for index, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹"):
        text = text.replace(digit, f"**{index}")
    return sympify(text.replace("·", "*").replace(",", ""), {str(symbol): symbol for symbol in SYMBOLS})


TERMS = st.tuples(st.fractions(-2000, 2000, max_denominator=64), *[st.integers(0, 3)] * 4)


@given(st.lists(TERMS, max_size=5))
def test_printed_formulas_parse_to_the_same_expression(terms: list) -> None:
    expression = sum(
        (Rational(c.numerator, c.denominator) * K**a * H**b * NF**d * NC**e for c, a, b, d, e in terms), start=NF * 0
    )
    assert expand(parse_formula(format_formula(expression)) - expression) == 0


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (K**2 * (4 * NF**2 + NF * NC), "k²·NF·(4·NF + NC)"),
        (1600 * NF + 1280 * NC, "1,600·NF + 1,280·NC"),
        (H * W * NF / 16, "1/16·H·W·NF"),
        (K**2 * (NF**2 + NC) + 12 * NF + 4 * NC, "k²·(NF² + NC) + 12·NF + 4·NC"),
        (NF * 0, "0"),
    ],
)
def test_formulas_as_plain_text(expression: Expr, text: str) -> None:
    assert format_formula(expression) == text


def test_printed_counts_contain_formulas_both_sizes_and_all_layers(capsys: pytest.CaptureFixture[str]) -> None:
    print_counts(count_by_name("pool-upsample"))
    out = capsys.readouterr().out
    assert "weights of kernels (not biases, BatchNorm); outputs of convolutions and linear layers" in out
    for part in (
        *("k²·(NIC·NF + 4·NF² + NF·NC + NC²)", "1,600·NF + 1,280·NC", "6,400·NF + 5,120·NC"),
        *("k²·(1,024·NIC·NF + 640·NF² + 256·NF·NC + 1,024·NC²)", "NIC = 1, NF = 32, NC = 24, k = 3"),
        *("32 × 32", "64 × 64", "49,248", "81,920", "327,680", "13,271,040", "53,084,160"),
    ):
        assert part in out
    last = [line for line in out.splitlines() if line.startswith("│ last ")]
    assert ["k²·NC²" in last[0], "5,308,416" in last[1], len(last)] == [True, True, 2]


def test_printed_counts_of_detectors_have_no_model_settings(capsys: pytest.CaptureFixture[str]) -> None:
    count = count_by_name("yolov3-tiny", size=32)
    print_counts(count, CountOptions(activations=True))
    out = capsys.readouterr().out
    assert "32,157/2·H·W" in out
    assert "MaxPoolLayer" in out
    assert "NF" not in out


def test_description_of_the_counted_quantities() -> None:
    description = describe_options(CountOptions(True, True, True))
    assert description == (
        "weights of kernels, biases, BatchNorm; outputs of convolutions and linear layers, BatchNorm, pooling, "
        "upsampling and activations"
    )
    assert describe_options(CountOptions(biases=True)).startswith("weights of kernels, biases (not BatchNorm); ")


def test_printed_paddings_of_all_layers(capsys: pytest.CaptureFixture[str]) -> None:
    print_paddings([4, 5], stride=2, dilation=1)
    lines = capsys.readouterr().out.splitlines()
    four, five = (next(index for index, line in enumerate(lines) if f"kernel {k}, stride 2" in line) for k in (4, 5))
    assert four < five

    def row(start: int, name: str) -> str:
        return next(line for line in lines[start:] if name in line)

    assert [cell.strip() for cell in row(four, "transposed").split("│")[2:4]] == ["8 → 16 → 32", "1 and 0"]
    assert [cell.strip() for cell in row(five, "transposed").split("│")[2:4]] == ["8 → 16 → 32", "2 and 1"]
    assert [cell.strip() for cell in row(five, "first two").split("│")[2:4]] == ["32 → 16 → 8", "2"]
    assert [cell.strip() for cell in row(four, "last").split("│")[2:4]] == ["32 → 32", "no padding keeps the shapes"]
    print_paddings([2], stride=2, dilation=3)
    assert "1 and 0 or 2 and 2" in capsys.readouterr().out


def test_nothing_is_printed_if_one_kernel_is_invalid(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="kernel is 0"):
        print_paddings([3, 0], stride=2, dilation=1)
    assert capsys.readouterr().out == ""


def test_counting_a_detector_does_not_allocate_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large tensor on the CPU would fail the assertion."""
    original = torch.empty

    def empty(*sizes: object, **options: object) -> torch.Tensor:
        tensor = original(*sizes, **options)
        assert tensor.numel() < 1e6 or tensor.is_meta
        return tensor

    monkeypatch.setattr(torch, "empty", empty)
    count_by_name("yolov3-tiny", size=32)
