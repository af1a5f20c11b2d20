"""Tests of questions A.3 and B.4. Expected values: worked out by hand from the figure of the assignment."""

from pathlib import Path

import pytest
from sympy import expand, floor, symbols

from chromabox.assignment.count import NC, NF, NIC, H, K, W
from chromabox.assignment.sections import counting
from chromabox.assignment.sections.counting import count_section, padding_section
from chromabox.experiments.runs import RunIndex
from chromabox.report.document.model import Formula, Number, Section, Table, Text


@pytest.fixture(scope="module")
def counts() -> Section:
    return count_section(RunIndex(), Path())


@pytest.fixture(scope="module")
def paddings() -> Section:
    return padding_section(RunIndex(), Path())


def find_table(section: Section, start: str) -> Table:
    return next(block for block in section.blocks if isinstance(block, Table) and block.caption.startswith(start))


def cell_values(row: list) -> list:
    return [cell.value if isinstance(cell, Number) else cell for cell in row]


def test_formulas_match_hand_calculation(counts: Section) -> None:
    formulas = {block.name: block.expression for block in counts.blocks if isinstance(block, Formula)}
    weights = K**2 * (NIC * NF + 4 * NF**2 + NF * NC + NC**2)
    outputs, connections = 1600 * NF + 1280 * NC, 1024 * NIC * NF + 640 * NF**2 + 256 * NF * NC + 1024 * NC**2
    expected = {"weights": weights, "outputs": outputs * H * W / 1024, "connections": K**2 * connections * H * W / 1024}
    for size, factor in (("32 × 32", 1), ("64 × 64", 4)):
        expected[f"weights at {size}"] = weights
        expected[f"outputs at {size}"] = factor * outputs
        expected[f"connections at {size}"] = factor * K**2 * connections
    assert formulas.keys() == expected.keys()
    assert all(expand(formulas[name] - expected[name]) == 0 for name in expected)


def test_numbers_for_both_image_sizes(counts: Section) -> None:
    """NF = 32, NC = 24, k = 3: 9·(32 + 4096 + 768 + 576), 51200 + 30720, 9·(32768 + 655360 + 196608 + 589824)."""
    rows = find_table(counts, "The six values").rows
    assert [cell_values(row) for row in rows] == [
        ["weights", 49_248, 49_248, 1],
        ["outputs", 81_920, 327_680, 4],
        ["connections", 13_271_040, 53_084_160, 4],
    ]
    assert any("the weights by 1, the outputs by 4" in str(block) for block in counts.blocks if isinstance(block, Text))


def test_layers_add_up_to_the_totals(counts: Section) -> None:
    rows = [cell_values(row) for row in find_table(counts, "Numbers for the individual convolutions at 32 × 32").rows]
    assert [sum(row[column] for row in rows) for column in (1, 2, 3)] == [49_248, 81_920, 13_271_040]
    assert [row[0] for row in rows] == [
        row[0] for row in find_table(counts, "Formulas for the individual convolutions").rows
    ]


def test_every_number_has_a_source(counts: Section, paddings: Section) -> None:
    for section in (counts, paddings):
        numbers = [
            cell
            for block in section.blocks
            if isinstance(block, Table)
            for row in block.rows
            for cell in row
            if isinstance(cell, Number)
        ]
        assert len(numbers) > 5
        assert all(number.source.startswith("chromabox.assignment.") for number in numbers)


def test_sections_answer_their_questions(counts: Section, paddings: Section) -> None:
    assert (counts.key, paddings.key) == ("A.3", "B.4")
    assert counts.question
    assert paddings.question


def test_paddings_for_kernel_sizes_4_and_5(paddings: Section) -> None:
    """The solutions of the assignment: 1 and 0, 2 and 1."""
    rows = [cell_values(row) for row in find_table(paddings, "Paddings that preserve").rows]
    assert rows == [["4", 1, 1, 0], ["5", 2, 2, 1]]


def test_rule_is_correct_for_all_kernel_sizes_without_dilation(paddings: Section) -> None:
    rows = find_table(paddings, "The general rule").rows
    assert [cell_values(row) for row in rows] == [
        [str(k), (k - 1) // 2, k % 2, (k - 1) // 2, (k - 1) // 2, k % 2, "yes"] for k in range(1, 10)
    ]


def test_verdict_on_the_rule_follows_from_the_search(monkeypatch: pytest.MonkeyPatch, paddings: Section) -> None:
    def read_texts(section: Section) -> str:
        return " ".join(str(block) for block in section.blocks if isinstance(block, Text))

    assert "it is the only solution for all of them." in read_texts(paddings)
    monkeypatch.setattr(counting, "assignment_rule", lambda kernel: (kernel // 2, kernel % 2))
    wrong = padding_section(RunIndex(), Path())
    assert "it is not the only solution for 2, 4, 6, 8." in read_texts(wrong)
    assert [row[-1] for row in find_table(wrong, "The general rule").rows] == ["yes", "no"] * 4 + ["yes"]


def test_equations_match_the_layers(paddings: Section) -> None:
    """Kernel 3, stride 2, padding 1, output padding 1: 32 → 16 and 16 → 32, as in the figure."""
    formulas = {block.name: block.expression for block in paddings.blocks if isinstance(block, Formula)}
    n, p, s, d, o = symbols("n p s d o")
    layer = {K: 3, p: 1, s: 2, d: 1, o: 1}
    assert formulas["convolution"].subs({**layer, n: 32}) == 16
    assert formulas["transposed convolution"].subs({**layer, n: 16}) == 32
    for kernel in range(1, 10):
        assert formulas["p"].subs(K, kernel).doit() == floor((kernel - 1) // 2)
        assert formulas["o"].subs(K, kernel) == kernel % 2
