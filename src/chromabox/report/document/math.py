"""Formulas in MathML (for HTML) and in Typst's notation (for PDF), printed from SymPy expressions.

Names are upright, since NIC is one variable and not the product of three; text after an underscore is a subscript. A
dot separates factors for the same reason. SymPy's MathML printer is not used: it writes an unevaluated ``-(a + b)`` as
"-a + b" (SymPy 1.14), and there is no Typst printer.
"""

import re
from abc import abstractmethod
from collections.abc import Sequence
from html import escape

from sympy import Expr, Float, Indexed, Integer, Mul, Pow, Rational, Sum, Symbol
from sympy.printing.precedence import PRECEDENCE, precedence_traditional
from sympy.printing.printer import Printer

OPENING_BRACKETS, CLOSING_BRACKETS, BREAKABLE_SIGNS = ("(", "⌊", "⌈"), (")", "⌋", "⌉"), ("+", "−", "⋅", "×", "=", ",")
CONSTANT_SYMBOLS = {"Pi": "π", "Exp1": "e", "Infinity": "∞", "ImaginaryUnit": "i"}


def to_mathml(expression: Expr) -> str:
    """Return presentation MathML, for use inside a ``math`` element."""
    return _MathMLPrinter().doprint(expression)


def to_typst(expression: Expr) -> str:
    """Return Typst's mathematical notation, without dollar signs."""
    return _TypstPrinter().doprint(expression)


def split_at_operators(notation: str) -> list[str]:
    """Split Typst's notation into unbreakable parts; lines can break at operators outside parentheses."""
    pieces, depth = [""], 0
    for token in re.findall(r'"(?:[^"\\]|\\.)*"|\\.|.', notation):
        depth += (token in OPENING_BRACKETS) - (token in CLOSING_BRACKETS)
        if depth == 0 and token in BREAKABLE_SIGNS:
            pieces.append("")
        else:
            pieces[-1] += token
    return [piece for piece in pieces if piece]


class _MathPrinter(Printer):  # type: ignore[misc]  # SymPy is not typed.
    """Base class for the structure of formulas; subclasses define the notation of each element."""

    @abstractmethod
    def number(self, digits: str) -> str: ...

    @abstractmethod
    def name(self, name: str) -> str: ...

    @abstractmethod
    def operator(self, sign: str) -> str: ...

    @abstractmethod
    def row(self, parts: Sequence[str]) -> str: ...

    @abstractmethod
    def fraction(self, numerator: str, denominator: str) -> str: ...

    @abstractmethod
    def superscript(self, base: str, exponent: str) -> str: ...

    @abstractmethod
    def subscript(self, base: str, index: str) -> str: ...

    @abstractmethod
    def root(self, radicand: str, degree: str) -> str: ...

    @abstractmethod
    def bracketed(self, left: str, inner: str, right: str) -> str: ...

    @abstractmethod
    def sum(self, lower: str, upper: str) -> str: ...

    def emptyPrinter(self, expr: object) -> str:
        """Return other expressions in SymPy's string form."""
        return self.name(CONSTANT_SYMBOLS.get(type(expr).__name__, str(expr)))

    def _print_Integer(self, expr: Integer) -> str:
        digits = self.number(f"{abs(int(expr)):,}")
        return digits if expr >= 0 else self.row([self.operator("−"), digits])

    def _print_Rational(self, expr: Rational) -> str:
        return self._print_Mul(expr)

    def _print_Float(self, expr: Float) -> str:
        mantissa, _, exponent = f"{abs(float(expr)):.6g}".partition("e")
        parts = [self.operator("−")] * bool(expr < 0) + [self.number(mantissa)]
        if exponent:
            parts += [self.operator("×"), self.superscript(self.number("10"), self._print(Integer(int(exponent))))]
        return self.row(parts)

    def _print_Symbol(self, expr: Symbol) -> str:
        return self._symbol_name(expr.name)

    def _print_Indexed(self, expr: Indexed) -> str:
        return self.subscript(self._symbol_name(str(expr.base.label)), self._comma_list(expr.indices))

    def _print_Add(self, expr: Expr) -> str:
        parts: list[str] = []
        for term in expr.as_ordered_terms():
            negative, product = self._split_sign(term)
            if parts or negative:
                parts.append(self.operator("−" if negative else "+"))
            parts.append(product)
        return self.row(parts)

    def _print_Mul(self, expr: Expr) -> str:
        negative, product = self._split_sign(expr)
        return self.row([self.operator("−"), product]) if negative else product

    def _print_Pow(self, expr: Pow) -> str:
        base, exponent = expr.args
        if exponent.is_Rational and exponent < 0:
            return self.fraction(self.number("1"), self._print(Pow(base, -exponent, evaluate=False)))
        if exponent.is_Rational and exponent.p == 1 and exponent.q > 1:
            return self.root(self._print(base), "" if exponent.q == 2 else self._print(Integer(exponent.q)))
        if exponent == 1:
            return str(self._print(base))
        return self.superscript(self._parenthesise(base, PRECEDENCE["Pow"]), self._print(exponent))

    def _print_Function(self, expr: Expr) -> str:
        name = {"Max": "max", "Min": "min", "Mod": "mod"}.get(expr.func.__name__, expr.func.__name__)
        return self.row([self._symbol_name(name), self.bracketed("(", self._comma_list(expr.args), ")")])

    _print_MinMaxBase = _print_Function

    def _print_exp(self, expr: Expr) -> str:
        return self.superscript(self.name("e"), self._print(expr.args[0]))

    def _print_floor(self, expr: Expr) -> str:
        return self.bracketed("⌊", self._print(expr.args[0]), "⌋")

    def _print_ceiling(self, expr: Expr) -> str:
        return self.bracketed("⌈", self._print(expr.args[0]), "⌉")

    def _print_Abs(self, expr: Expr) -> str:
        return self.bracketed("|", self._print(expr.args[0]), "|")

    def _print_Sum(self, expr: Sum) -> str:
        sums = []
        for variable, first, last in reversed(expr.limits):
            lower = self.row([self._print(variable), self.operator("="), self._print(first)])
            sums.append(self.sum(lower, self._print(last)))
        return self.row([*sums, self._parenthesise(expr.function, PRECEDENCE["Add"])])

    def _symbol_name(self, name: str) -> str:
        base, _, index = name.partition("_")
        return self.subscript(self.name(base), self.name(index)) if base and index else self.name(base or f"_{index}")

    def _comma_list(self, args: Sequence[Expr]) -> str:
        parts = [self._print(args[0])]
        for arg in args[1:]:
            parts += [self.operator(","), self._print(arg)]
        return self.row(parts)

    def _parenthesise(self, expr: Expr, precedence: int) -> str:
        """Print in parentheses unless the expression's precedence exceeds ``precedence``."""
        printed = str(self._print(expr))
        return printed if precedence_traditional(expr) > precedence else self.bracketed("(", printed, ")")

    def _split_sign(self, expr: Expr) -> tuple[bool, str]:
        """Return whether a product is negative, and the product without its sign."""
        factors = _flat_factors(expr)
        negative = bool(factors[0].is_Number and factors[0].is_extended_negative)
        if negative:
            factors[0] = -factors[0]
        numerator, denominator = [], []
        for factor in factors:
            if isinstance(factor, Rational):
                numerator.append(Integer(factor.p))
                denominator.append(Integer(factor.q))
            elif isinstance(factor, Pow) and factor.exp.is_Rational and factor.exp < 0:
                denominator.append(Pow(factor.base, -factor.exp))
            else:
                numerator.append(factor)
        numerator, denominator = ([factor for factor in part if factor != 1] for part in (numerator, denominator))
        if not denominator:
            return negative, self._product(numerator, is_alone=False)
        fraction = self.fraction(self._product(numerator, is_alone=True), self._product(denominator, is_alone=True))
        return negative, fraction

    def _product(self, factors: Sequence[Expr], *, is_alone: bool) -> str:
        """Print factors separated by dots; a single factor in a fraction (``is_alone``) needs no parentheses."""
        if len(factors) < 2:
            factor = factors[0] if factors else Integer(1)
            return str(self._print(factor)) if is_alone else self._parenthesise(factor, PRECEDENCE["Add"])
        parts = [self._parenthesise(factors[0], PRECEDENCE["Mul"])]
        for factor in factors[1:]:
            parts += [self.operator("·"), self._parenthesise(factor, PRECEDENCE["Mul"])]
        return self.row(parts)


def _flat_factors(expr: Expr) -> list[Expr]:
    """Return a product's factors, with nested products flattened unless their sign needs parentheses."""
    if not isinstance(expr, Mul):
        return [expr]
    factors: list[Expr] = []
    for factor in expr.as_ordered_factors():
        is_nested = isinstance(factor, Mul) and not factor.as_coeff_Mul()[0].is_negative
        factors.extend(_flat_factors(factor) if is_nested else [factor])
    return factors


class _MathMLPrinter(_MathPrinter):
    def number(self, digits: str) -> str:
        return f"<mn>{digits}</mn>"

    def name(self, name: str) -> str:
        return f'<mi mathvariant="normal">{escape(name)}</mi>' if len(name) == 1 else f"<mi>{escape(name)}</mi>"

    def operator(self, sign: str) -> str:
        return f"<mo>{sign}</mo>"

    def row(self, parts: Sequence[str]) -> str:
        return f"<mrow>{''.join(parts)}</mrow>" if len(parts) != 1 else parts[0]

    def fraction(self, numerator: str, denominator: str) -> str:
        return f"<mfrac>{numerator}{denominator}</mfrac>"

    def superscript(self, base: str, exponent: str) -> str:
        return f"<msup>{base}{exponent}</msup>"

    def subscript(self, base: str, index: str) -> str:
        return f"<msub>{base}{index}</msub>"

    def root(self, radicand: str, degree: str) -> str:
        return f"<mroot>{radicand}{degree}</mroot>" if degree else f"<msqrt>{radicand}</msqrt>"

    def bracketed(self, left: str, inner: str, right: str) -> str:
        return f"<mrow><mo>{left}</mo>{inner}<mo>{right}</mo></mrow>"

    def sum(self, lower: str, upper: str) -> str:
        return f"<munderover><mo>∑</mo>{lower}{upper}</munderover>"


class _TypstPrinter(_MathPrinter):
    """Printer of Typst's notation; names and numbers are quoted, and Typst hides grouping parentheses.

    The notation contains no spaces, because Typst shows spaces next to quoted text.
    """

    def number(self, digits: str) -> str:
        return f'"{digits}"'

    def name(self, name: str) -> str:
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'

    def operator(self, sign: str) -> str:
        # "⋅" is the multiplication sign, "·" a middle dot; a bare comma would separate arguments of frac().
        return {"·": "⋅", ",": r"\,"}.get(sign, sign)

    def row(self, parts: Sequence[str]) -> str:
        return "".join(parts)

    def fraction(self, numerator: str, denominator: str) -> str:
        return f"frac({numerator},{denominator})"

    def superscript(self, base: str, exponent: str) -> str:
        return f"{base}^({exponent})"

    def subscript(self, base: str, index: str) -> str:
        return f"{base}_({index})"

    def root(self, radicand: str, degree: str) -> str:
        return f"root({degree},{radicand})" if degree else f"sqrt({radicand})"

    def bracketed(self, left: str, inner: str, right: str) -> str:
        """Return brackets, which scale around fractions and sums; otherwise escape them to allow line breaks."""
        if left == "|":
            return f"lr(|{inner}|)"
        if left == "(" and "frac(" not in inner and "sum_(" not in inner:
            return rf"\({inner}\)"
        return f"{left}{inner}{right}"

    def sum(self, lower: str, upper: str) -> str:
        return f"sum_({lower})^({upper})"
