"""Tests of questions A.1, B.1 and C.1. Expected numbers: shapes of figure 1 and weights counted by hand."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from chromabox.assignment.sections.networks import conv_transpose_section, pool_upsample_section, unet_section
from chromabox.colour.models import baselines
from chromabox.experiments.runs import RunIndex
from chromabox.report.document.model import Code, Number, Section, Table, Text

SECTIONS = [
    (pool_upsample_section, "PoolUpsampleNet"),
    (conv_transpose_section, "ConvTransposeNet"),
    (unet_section, "UNet"),
]


def build(builder: Callable[[RunIndex, Path], Section]) -> SimpleNamespace:
    """Build a section and return it with its texts, code and tables."""
    section = builder(RunIndex(), Path("nowhere"))
    blocks = {kind: [block for block in section.blocks if isinstance(block, kind)] for kind in (Text, Code, Table)}
    return SimpleNamespace(section=section, texts=list(map(str, blocks[Text])), code=blocks[Code], tables=blocks[Table])


def cell_texts(table: Table) -> list[list[str]]:
    return [[str(cell) for cell in row] for row in table.rows]


@pytest.mark.parametrize(
    ("builder", "key"), [(pool_upsample_section, "A.1"), (conv_transpose_section, "B.1"), (unet_section, "C.1")]
)
def test_sections_have_code_and_a_table(builder: Callable[[RunIndex, Path], Section], key: str) -> None:
    parts = build(builder)
    assert parts.section.key == key
    assert len(parts.code) == 1
    assert [table.columns[0] for table in parts.tables] == ["operation"]


def test_printed_code_is_complete() -> None:
    """Executed with only the names that the text mentions as not shown, the code builds the same models."""
    namespace = {"torch": torch, "nn": nn, "check_conv_args": lambda *_: None, "GreyBatch": None, "Logits": None}
    for builder, name in SECTIONS:
        exec(build(builder).code[0].source, namespace)
        model = namespace[name](5, 2, 6, 7)
        expected = getattr(baselines, name)(5, 2, 6, 7)
        assert [parameter.shape for parameter in model.parameters()] == [
            parameter.shape for parameter in expected.parameters()
        ]
        assert model(torch.rand(1, 2, 16, 16)).shape == (1, 7, 16, 16)


def test_layer_table_matches_figure_1a() -> None:
    rows = cell_texts(build(pool_upsample_section).tables[0])
    sizes = {row[0]: tuple(map(int, row[2:5])) for row in rows[:-1]}
    assert sizes["block 1: Conv2d"] == (32, 32, 32)
    assert sizes["block 1: ReLU"] == (32, 16, 16)
    assert sizes["block 2: ReLU"] == (64, 8, 8)
    assert sizes["block 3: ReLU"] == (32, 16, 16)
    assert sizes["block 4: ReLU"] == sizes["last layer: Conv2d"] == (24, 32, 32)
    kernels = 9 * (1 * 32 + 32 * 64 + 64 * 32 + 32 * 24 + 24 * 24)
    biases, norms = 32 + 64 + 32 + 24 + 24, 2 * (32 + 64 + 32 + 24)
    assert rows[-1][-1] == f"{kernels + biases + norms:,}"
    assert f"{kernels:,} weights and {biases} biases of convolutions, and {norms} scales" in " ".join(
        build(pool_upsample_section).texts
    )
    assert rows[0][1] == "kernel 3, stride 1, padding 1"


def test_unet_text_gives_the_cost_of_the_skip_connections() -> None:
    parts = build(unet_section)
    assert "with two concatenations" in parts.texts[0]
    assert "Block 4 therefore has 64 input channels instead of 32, and the last convolution has 25:" in parts.texts[0]
    assert "25: the 24 channels of block 4 and the greyscale channel." in parts.texts[0]
    # 32 more input channels for block 4 and one more for the last convolution, each with 24 output channels.
    assert f"input channels add {9 * (32 * 24 + 1 * 24):,} parameters" in parts.texts[0]
    assert ["input of last layer: concatenation", "", "25", "32", "32", "0"] in cell_texts(parts.tables[0])


def test_numbers_have_a_source() -> None:
    for builder, _ in SECTIONS:
        numbers = [cell for row in build(builder).tables[0].rows for cell in row if isinstance(cell, Number)]
        assert all("recorded" in number.source for number in numbers)
        assert len(numbers) > 50
