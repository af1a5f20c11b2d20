"""Parts A.1, B.1 and C.1. Expected numbers: figure 1's shapes, and weights counted by hand from them."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from chromabox.assignment.sections.networks import conv_transpose_section, pool_upsample_section, unet_section
from chromabox.colour.models import baselines as nets
from chromabox.experiments.runs import RunIndex
from chromabox.report.document.model import Code, Number, Section, Table, Text

SECTIONS = [
    (pool_upsample_section, "PoolUpsampleNet"),
    (conv_transpose_section, "ConvTransposeNet"),
    (unet_section, "UNet"),
]


def built(builder: Callable[[RunIndex, Path], Section]) -> SimpleNamespace:
    """A section's texts, code, tables."""
    section = builder(RunIndex(), Path("nowhere"))
    parts = {kind: [one for one in section.blocks if isinstance(one, kind)] for kind in (Text, Code, Table)}
    return SimpleNamespace(section=section, texts=list(map(str, parts[Text])), code=parts[Code], tables=parts[Table])


def printed(table: Table) -> list[list[str]]:
    return [[str(cell) for cell in row] for row in table.rows]


@pytest.mark.parametrize(
    ("builder", "key"), [(pool_upsample_section, "A.1"), (conv_transpose_section, "B.1"), (unet_section, "C.1")]
)
def test_sections_have_their_parts(builder: Callable[[RunIndex, Path], Section], key: str) -> None:
    made = built(builder)
    assert made.section.key == key
    assert len(made.code) == 1
    assert [table.columns[0] for table in made.tables] == ["step", "question"]


def test_the_printed_code_is_whole() -> None:
    """Run in a room of its own, with only what the text names as not shown, it makes the same nets."""
    room = {"torch": torch, "nn": nn, "check_conv_args": lambda *_: None, "GreyBatch": None, "Logits": None}
    for builder, name in SECTIONS:
        exec(built(builder).code[0].source, room)
        made = room[name](5, 2, 6, 7)
        assert [one.shape for one in made.parameters()] == [
            one.shape for one in getattr(nets, name)(5, 2, 6, 7).parameters()
        ]
        assert made(torch.rand(1, 2, 16, 16)).shape == (1, 7, 16, 16)


def test_pool_s_table_is_figure_1a() -> None:
    rows = printed(built(pool_upsample_section).tables[0])
    sizes = {row[0]: tuple(map(int, row[2:5])) for row in rows[:-1]}
    assert sizes["block 1: Conv2d"] == (32, 32, 32)
    assert sizes["block 1: ReLU"] == (32, 16, 16)
    assert sizes["block 2: ReLU"] == (64, 8, 8)
    assert sizes["block 3: ReLU"] == (32, 16, 16)
    assert sizes["block 4: ReLU"] == sizes["last layer: Conv2d"] == (24, 32, 32)
    kernels = 9 * (1 * 32 + 32 * 64 + 64 * 32 + 32 * 24 + 24 * 24)
    biases, norms = 32 + 64 + 32 + 24 + 24, 2 * (32 + 64 + 32 + 24)
    assert rows[-1][-1] == f"{kernels + biases + norms:,}"
    assert f"{kernels:,} weights and {biases} biases of convolutions, {norms} factors" in " ".join(
        built(pool_upsample_section).texts
    )
    assert rows[0][1] == "kernel 3, stride 1, padding 1"


def test_unet_s_text_tells_what_the_skips_cost() -> None:
    made = built(unet_section)
    assert "with 2 concatenations" in made.texts[0]
    assert "block 4 is given 64 channels instead of 32, and the last convolution 25: the 24 of block 4" in made.texts[0]
    # 32 more channels into block 4, one more into the last convolution, each to 24 colours.
    assert f"cost {9 * (32 * 24 + 1 * 24):,} parameters" in made.texts[0]
    assert ["into last layer: concatenation", "", "25", "32", "32", "0"] in printed(made.tables[0])


@pytest.mark.parametrize(
    ("builder", "questions"), [(pool_upsample_section, 12), (conv_transpose_section, 12), (unet_section, 13)]
)
def test_the_self_check_passes(builder: Callable[[RunIndex, Path], Section], questions: int) -> None:
    made = built(builder)
    assert f"{questions} of {questions} answers" in " ".join(made.texts)
    assert [row[0][0] for row in made.tables[1].rows] == ["✓"] * questions
    assert "5 of the 5 blocks, the last convolution among them, end in the shape of the figure." in made.texts
    assert "Tried with the kernels 1 to 9: 9 of 9 give a score for every pixel." in made.texts


def test_numbers_know_where_they_come_from() -> None:
    for builder, _ in SECTIONS:
        numbers = [cell for row in built(builder).tables[0].rows for cell in row if isinstance(cell, Number)]
        assert all("recorded" in one.source for one in numbers)
        assert len(numbers) > 50
