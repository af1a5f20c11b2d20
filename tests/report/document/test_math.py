"""Printed formulas, parsed and evaluated: both notations must have the value of the expression (by SymPy)."""

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

from chromabox.report.document.math import split_at_operators, to_mathml, to_typst

A, B, NIC = symbols("a b NIC", positive=True)
VALUES = {"a": 1.75, "b": 3.5, "NIC": 2.25, "e": math.e, "log": math.log, "floor": math.floor, "ceil": math.ceil}


def mathml_to_python(element: ElementTree.Element) -> str:
    """Convert MathML to a Python expression."""
    parts = [mathml_to_python(child) for child in element]
    match element.tag:
        case "mi":
            return element.text or ""
        case "mn":
            return (element.text or "").replace(",", "")
        case "mo":
            signs = {"−": "-", "·": "*", "×": "*", "⌊": "floor(", "⌋": ")", "⌈": "ceil(", "⌉": ")"}
            return signs.get(element.text or "", element.text or "")
        case "mfrac":
            return f"(({parts[0]})/({parts[1]}))"
        case "msup":
            return f"({parts[0]}**({parts[1]}))"
        case "msqrt":
            return f"(({parts[0]})**0.5)"
        case "mroot":
            return f"(({parts[0]})**(1/({parts[1]})))"
        case "mrow" | "math":
            return "".join(parts)
    raise AssertionError(element.tag)


def typst_to_python(text: str) -> str:
    """Convert Typst's notation to a Python expression; ``evaluate`` defines its functions."""
    text = re.sub(r'"([^"]*)"', lambda match: match[1].replace(",", ""), text)
    text = text.replace("\\(", "(").replace("\\)", ")")
    for sign, python in (
        ("−", "-"),
        ("⋅", "*"),
        ("×", "*"),
        ("^", "**"),
        ("⌊", "floor("),
        ("⌋", ")"),
        ("⌈", "ceil("),
        ("⌉", ")"),
    ):
        text = text.replace(sign, python)
    return text


def evaluate(python: str) -> float:
    functions = {"frac": lambda x, y: x / y, "sqrt": math.sqrt, "root": lambda n, x: x ** (1 / n)}
    return float(eval(python, {"__builtins__": {}}, {**VALUES, **functions}))


def read_back(expression: Expr) -> tuple[float, float]:
    tree = ElementTree.fromstring(f"<math>{to_mathml(expression)}</math>")
    return evaluate(mathml_to_python(tree)), evaluate(typst_to_python(to_typst(expression)))


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
            lambda x, n, flag: Pow(x, n, evaluate=flag) if x != 0 else x, inner, st.sampled_from([2, -1, -2]), evaluate
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
def test_both_notations_have_the_value_of_the_expression(expression: Expr) -> None:
    expected = sympy_value(expression)
    for rounded in expression.atoms(floor, ceiling):  # At a jump, rounding errors decide.
        inner = sympy_value(rounded.args[0])
        assume(abs(inner - round(inner)) > 1e-6)
    for value in read_back(expression):
        assert value == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_unevaluated_negation_of_a_sum() -> None:
    assert read_back(A - Mul(1, A + B, evaluate=False)) == (-3.5, -3.5)
    assert read_back(Mul(-1, A + B, evaluate=False)) == (-5.25, -5.25)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (Symbol("NF"), '"NF"'),
        (Symbol("H_in"), '"H"_("in")'),
        (Symbol("_x"), '"_x"'),
        (Symbol('a"\\b'), '"a\\"\\\\b"'),
        (Indexed("y", A), '"y"_("a")'),
        (Function("σ")(A), '"σ"\\("a"\\)'),
        (exp(-A), '"e"^(−"a")'),
        (Max(A, B), '"max"\\("a"\\,"b"\\)'),
        (Mod(A, 2), '"mod"\\("a"\\,"2"\\)'),
        (Max(A, B) / 3, 'frac("max"\\("a"\\,"b"\\),"3")'),
        (Abs(Symbol("x")), 'lr(|"x"|)'),
        (Sum(A * B + 1, (A, 1, B)), 'sum_("a"="1")^("b")\\("a"⋅"b"+"1"\\)'),
        (Float(1e-7), '"1"×"10"^(−"7")'),
        (Float(-2.5), '−"2.5"'),
        (oo, '"∞"'),
        (pi, '"π"'),
        (Mul(9, A + B, evaluate=False), '"9"⋅\\("a"+"b"\\)'),
        (Mul(Mul(A, B, evaluate=False), A + B, evaluate=False), '"a"⋅"b"⋅\\("a"+"b"\\)'),
        (Integer(1048576), '"1,048,576"'),
        (cbrt(A), 'root("3","a")'),
        (A * (B + 1 / A), '"a"⋅("b"+frac("1","a"))'),
    ],
)
def test_typst(expression: Expr, expected: str) -> None:
    assert to_typst(expression) == expected


def test_mathml_is_well_formed_and_preserves_names() -> None:
    expression = (
        Symbol("<&>") * Symbol("beta") * Piecewise((A, A > 0), (0, True))
        + Sum(Indexed("x", A), (A, 1, B))
        + Abs(Symbol("z"))
    )
    tree = ElementTree.fromstring(f"<math>{to_mathml(expression)}</math>")
    names = {element.text for element in tree.iter("mi")}
    assert {"<&>", "beta"} <= names
    assert [element[0].text for element in tree.iter("munderover")] == ["∑"]
    assert all(element.get("mathvariant") == "normal" for element in tree.iter("mi") if len(element.text or "") == 1)


def test_split_at_operators_outside_fractions_and_quotes() -> None:
    notation = to_typst(A * (B + 1) ** 2 - floor(A + B) + Symbol('+"(') / (A + B))
    expected = ['"a"', '\\("b"', '"1"\\)^("2")', '⌊"a"+"b"⌋', 'frac("+\\"(","a"+"b")']
    assert sorted(split_at_operators(notation)) == sorted(expected)
