"""Formulas: the LaTeX notation must have the value of the expression (by SymPy), and the SVG image must be complete."""

import math
import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st
from sympy import (
    Abs,
    Add,
    Expr,
    Float,
    Function,
    Indexed,
    Integer,
    Max,
    Mod,
    Mul,
    Piecewise,
    Pow,
    Rational,
    Sum,
    Symbol,
    cbrt,
    ceiling,
    exp,
    floor,
    lambdify,
    log,
    oo,
    pi,
    sqrt,
    symbols,
)

from chromabox.report.document.layout import render_formula, to_latex

A, B, NIC = symbols("a b NIC", positive=True)
VALUES = {"a": 1.75, "b": 3.5, "NIC": 2.25, "e": math.e, "log": math.log, "floor": math.floor, "ceil": math.ceil}


def evaluate(latex: str) -> float:
    """Return the value of LaTeX, by conversion to a Python expression from the inside to the outside."""
    python = re.sub(r"\\text\{(\w+)\}", r"\1", latex).replace("{,}", "")
    for command, replacement in (
        (r"\left\lfloor", "floor("), (r"\right\rfloor", ")"), (r"\left\lceil", "ceil("), (r"\right\rceil", ")"),
        (r"\left", ""), (r"\right", ""), (r"\cdot", "*"), (r"\log", "log"),
    ):  # fmt: skip
        python = python.replace(command, replacement)
    while "{" in python:
        before = python
        for pattern, replacement in (
            (r"\\dfrac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))"),
            (r"\\sqrt\[(\d+)\]\{([^{}]*)\}", r"((\2)**(1/\1))"),
            (r"\\sqrt\{([^{}]*)\}", r"((\1)**0.5)"),
            (r"\^\{([^{}]*)\}", r"**(\1)"),
            (r"(?<=[(g])\{([^{}]*)\}", r"(\1)"),
        ):
            python = re.sub(pattern, replacement, python)
        assert python != before, f"unknown notation: {latex}"
    return float(eval(python, {"__builtins__": {}}, VALUES))


LEAVES = st.sampled_from(
    [A, B, NIC, Integer(2), Integer(1), Integer(-3), Rational(1, 2), Rational(-2, 3), Integer(12345), Rational(1, 4)]
)


def compound_expressions(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    def from_pair(make: Callable[[Expr, Expr], Expr]) -> st.SearchStrategy[Expr]:
        return st.builds(make, inner, inner)

    evaluate = st.booleans()
    return st.one_of(
        st.builds(lambda x, y, flag: Add(x, y, evaluate=flag), inner, inner, evaluate),
        st.builds(lambda x, y, flag: Mul(x, y, evaluate=flag), inner, inner, evaluate),
        st.builds(lambda x, flag: Mul(-1, x, evaluate=flag), inner, evaluate),
        from_pair(lambda x, y: x - y),
        from_pair(lambda x, y: x / y if y != 0 else x),
        st.builds(
            lambda x, n, flag: Pow(x, n, evaluate=flag) if x not in (0, -1) else x,
            inner,
            st.sampled_from([2, -1, -2]),
            evaluate,
        ),
        st.builds(lambda x: sqrt(x**2 + 1), inner),
        st.builds(lambda x: cbrt(x**2 + 1), inner),
        st.builds(lambda x: log(x**2 + 1), inner),
        st.builds(floor, inner),
        st.builds(ceiling, inner),
    )


def sympy_value(expression: Expr) -> float:
    """Return the value by SymPy's translation to Python; reject expressions without a value."""
    try:
        value = lambdify((A, B, NIC), expression, "math")(VALUES["a"], VALUES["b"], VALUES["NIC"])
    except (ZeroDivisionError, OverflowError, ValueError, TypeError):
        reject()
    assume(isinstance(value, int | float) and abs(value) < 1e12)
    return float(value)


@given(st.recursive(LEAVES, compound_expressions, max_leaves=8))
@settings(suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow], deadline=None)
def test_latex_has_the_value_of_the_expression(expression: Expr) -> None:
    expected = sympy_value(expression)
    for rounded in expression.atoms(floor, ceiling):  # At a jump, rounding errors decide.
        inner = sympy_value(rounded.args[0])
        assume(abs(inner - round(inner)) > 1e-6)
    assert evaluate(to_latex(expression)) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_unevaluated_negation_of_a_sum() -> None:
    assert evaluate(to_latex(A - Mul(1, A + B, evaluate=False))) == -3.5
    assert evaluate(to_latex(Mul(-1, A + B, evaluate=False))) == -5.25


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (Symbol("NF"), r"\text{NF}"),
        (Symbol("H_in"), r"\text{H}_{\text{in}}"),
        (Symbol("_x"), r"\text{_x}"),
        (Symbol("a}$\\b"), r"\text{a\}\$\\b}"),
        (Indexed("y", A), r"{\text{y}}_{\text{a}}"),
        (Max(A, B) / 3, r"\dfrac{\max\left(\text{a}, \text{b}\right)}{3}"),
        (Mod(A, 2), r"\operatorname{mod}\left(\text{a}, 2\right)"),
        (Float(-2.5) * A, r"- 2.5 \cdot \text{a}"),
        (Integer(1048576), "1{,}048{,}576"),
    ],
)
def test_latex(expression: Expr, expected: str) -> None:
    assert to_latex(expression) == expected


@pytest.mark.parametrize(
    "expression",
    [
        A / B,
        Function("σ")(A),
        exp(-A),
        Abs(Symbol("x")),
        Sum(Indexed("y", A) * log(B) + 1, (A, 1, B)),
        Sum(Indexed("y", (A, B)), (A, 1, NIC), (B, 1, 2)) / NIC,
        Float(1e-7),
        oo,
        pi,
        cbrt(A),
        Symbol("}$\\{^#%&~"),
        floor(A / 2) + Symbol("λ_β"),
    ],
)
def test_formula_is_one_outline_inside_its_image(expression: Expr) -> None:
    """The image has the formula's outline, in the text's colour, and the formula in words; no other element."""
    formula = render_formula(expression)
    image = ElementTree.fromstring(formula["svg"])
    [path] = image
    assert path.get("fill") == "currentColor"
    assert image.get("aria-label") == f"= {formula['alt']}" == f"= {expression!s}".replace("**", "^")
    left, top, width, height = map(float, image.attrib["viewBox"].split())
    points = [tuple(map(float, point.split())) for point in re.findall(r"-?\d+ -?\d+", path.attrib["d"])]
    assert len(points) > 50
    assert all(left <= x <= left + width and top - 1 <= y <= top + height + 1 for x, y in points)
    assert image.get("width") == f"{formula['width']:.2f}em"
    assert 0 <= formula["depth"] < height / 100


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (Piecewise((Symbol("x"), Symbol("x") > 0), (0, True)), "Piecewise((x, x > 0), (0, True))"),
        (Pow(-1, -2, evaluate=False), "(-1)^(-2)"),
    ],
)
def test_unsupported_notation_is_shown_as_text(expression: Expr, expected: str) -> None:
    formula = render_formula(expression)
    text = render_formula(Symbol(expected))
    assert formula["alt"] == expected
    assert (formula["width"], formula["svg"]) == (text["width"], text["svg"])
