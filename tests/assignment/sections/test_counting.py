"""Parts A.3 and B.4 of the write-up against what the assignment's figure gives by hand."""

from pathlib import Path

import pytest
from sympy import expand, floor, symbols

from chromabox.assignment.count import NC, NF, NIC, H, K, W
from chromabox.assignment.sections import counting
from chromabox.assignment.sections.counting import count_section, padding_section
from chromabox.experiments.runs import RunIndex
from chromabox.report.document.model import Formula, Number, Section, Table, Text


@pytest.fixture(scope="module")
def counted() -> Section:
    return count_section(RunIndex(), Path())


@pytest.fixture(scope="module")
def paddings() -> Section:
    return padding_section(RunIndex(), Path())


def table(section: Section, start: str) -> Table:
    return next(one for one in section.blocks if isinstance(one, Table) and one.caption.startswith(start))


def values(row: list) -> list:
    return [cell.value if isinstance(cell, Number) else cell for cell in row]


def test_the_six_formulas_are_those_worked_out_by_hand(counted: Section) -> None:
    formulas = {one.name: one.expression for one in counted.blocks if isinstance(one, Formula)}
    weights = K**2 * (NIC * NF + 4 * NF**2 + NF * NC + NC**2)
    outputs, connections = 1600 * NF + 1280 * NC, 1024 * NIC * NF + 640 * NF**2 + 256 * NF * NC + 1024 * NC**2
    expected = {"weights": weights, "outputs": outputs * H * W / 1024, "connections": K**2 * connections * H * W / 1024}
    for size, times in (("32 × 32", 1), ("64 × 64", 4)):
        expected[f"weights at {size}"] = weights
        expected[f"outputs at {size}"] = times * outputs
        expected[f"connections at {size}"] = times * K**2 * connections
    assert formulas.keys() == expected.keys()
    assert all(expand(formulas[name] - expected[name]) == 0 for name in expected)


def test_the_six_numbers_and_how_they_grow(counted: Section) -> None:
    """NF = 32, NC = 24, k = 3: 9·(32 + 4096 + 768 + 576), 51200 + 30720, 9·(32768 + 655360 + 196608 + 589824)."""
    rows = table(counted, "The six values").rows
    assert [values(row) for row in rows] == [
        ["weights", 49_248, 49_248, 1],
        ["outputs", 81_920, 327_680, 4],
        ["connections", 13_271_040, 53_084_160, 4],
    ]
    assert any("the weights by 1, the outputs by 4" in str(one) for one in counted.blocks if isinstance(one, Text))


def test_layers_add_up_to_the_totals(counted: Section) -> None:
    rows = [values(row) for row in table(counted, "The same at 32 × 32").rows]
    assert [sum(row[column] for row in rows) for column in (1, 2, 3)] == [49_248, 81_920, 13_271_040]
    assert [row[0] for row in rows] == [row[0] for row in table(counted, "The convolutions one by one").rows]


def test_what_more_would_count_and_what_the_slip_costs(counted: Section) -> None:
    added = {row[0]: values(row[1:]) for row in table(counted, "What would be added").rows}
    assert added["biases, in numbers"] == [4 * 32 + 2 * 24, 0, 0]
    assert added["BatchNorm"][0] == "8·NF + 2·NC"
    rows = [values(row) for row in table(counted, "With and without the last").rows]
    assert [row[3] for row in rows] == [9 * 576, 24_576, 9 * 589_824]
    assert all(row[1] - row[2] == row[3] for row in rows)
    assert [row[4] for row in rows] == ["k²·NC²", "1,024·NC", "1,024·k²·NC²"]


def test_the_other_nets_beside_it(counted: Section) -> None:
    """By hand: UNet's weights have NF·NC and NIC·NC more; outputs of both are NF/4 + NF/8 + NF/4 + 2·NC a pixel."""
    rows = {row[0]: values(row[1:]) for row in table(counted, "The same with").rows}
    assert rows["ConvTransposeNet, 32 × 32"][:2] == [49_248, 1024 * 20 + 2048 * 24]
    assert rows["UNet, 64 × 64"][:2] == [49_248 + 9 * (32 * 24 + 24), 4 * (1024 * 20 + 2048 * 24)]


def test_every_number_says_where_it_is_from(counted: Section, paddings: Section) -> None:
    for section in (counted, paddings):
        numbers = [
            cell
            for one in section.blocks
            if isinstance(one, Table)
            for row in one.rows
            for cell in row
            if isinstance(cell, Number)
        ]
        assert len(numbers) > 5
        assert all(number.source.startswith(("chromabox.colour.", "chromabox.assignment.")) for number in numbers)


def test_sections_answer_their_questions(counted: Section, paddings: Section) -> None:
    assert (counted.key, paddings.key) == ("A.3", "B.4")
    assert counted.question
    assert paddings.question


def test_paddings_for_kernels_of_4_and_5(paddings: Section) -> None:
    """The assignment's own answers: 1 and 0, 2 and 1."""
    rows = [values(row) for row in table(paddings, "Paddings that keep").rows]
    assert rows == [["4", 1, 1, 0], ["5", 2, 2, 1]]


def test_the_rule_is_right_for_all_kernels_and_ends_at_dilation(paddings: Section) -> None:
    rows = table(paddings, "The general answer").rows
    assert [values(row) for row in rows] == [
        [str(k), (k - 1) // 2, k % 2, (k - 1) // 2, (k - 1) // 2, k % 2, "yes"] for k in range(1, 10)
    ]
    everything, even = ", ".join(map(str, range(1, 10))), "2, 4, 6, 8"
    assert table(paddings, "Of the kernels").rows == [
        ["1", everything, everything, "none", even],
        ["2", "1", "1", "none", "none"],
        ["3", "1", "1", even, even],
    ]


def test_the_text_follows_from_the_search(monkeypatch: pytest.MonkeyPatch, paddings: Section) -> None:
    def said(section: Section) -> str:
        return " ".join(str(one) for one in section.blocks if isinstance(one, Text))

    assert "it is right for all, and the only answer." in said(paddings)
    monkeypatch.setattr(counting, "assignment_rule", lambda kernel: (kernel // 2, kernel % 2))
    wrong = padding_section(RunIndex(), Path())
    assert "it is not the only right answer for 2, 4, 6, 8." in said(wrong)
    assert [row[-1] for row in table(wrong, "The general answer").rows] == ["yes", "no"] * 4 + ["yes"]


def test_the_equations_shown_are_those_of_the_layers(paddings: Section) -> None:
    """Kernel 3, stride 2, padding 1, output padding 1: 32 → 16 and 16 → 32, as in the figure."""
    shown = {one.name: one.expression for one in paddings.blocks if isinstance(one, Formula)}
    n, p, s, d, o = symbols("n p s d o")
    layer = {K: 3, p: 1, s: 2, d: 1, o: 1}
    assert shown["convolution"].subs({**layer, n: 32}) == 16
    assert shown["transposed convolution"].subs({**layer, n: 16}) == 32
    for kernel in range(1, 10):
        assert shown["p"].subs(K, kernel).doit() == floor((kernel - 1) // 2)
        assert shown["o"].subs(K, kernel) == kernel % 2
