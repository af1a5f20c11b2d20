"""Formulas for the page (MathML) and for the paper (Typst's mathematics), by one walk over the sympy expression.

Names stand upright and as given, since NIC is one number and not the product of three; what follows an underscore is a
subscript. Factors are parted by a dot for the same reason. sympy's own MathML printer is not taken: it writes
``-(a + b)`` as "-a + b" where that stands unevaluated (sympy 1.14), and knows no Typst.
"""

import re
from abc import abstractmethod
from collections.abc import Sequence
from html import escape

from sympy import Expr, Float, Indexed, Integer, Mul, Pow, Rational, Sum, Symbol
from sympy.printing.precedence import PRECEDENCE, precedence_traditional
from sympy.printing.printer import Printer

from chromabox.report.document.inline import strip_control_chars

OPENING_BRACKETS, CLOSING_BRACKETS, BREAKABLE_SIGNS = ("(", "⌊", "⌈"), (")", "⌋", "⌉"), ("+", "−", "⋅", "×", "=", ",")
CONSTANT_SYMBOLS = {"Pi": "π", "Exp1": "e", "Infinity": "∞", "ImaginaryUnit": "i"}


def to_mathml(expression: Expr) -> str:
    """Presentation MathML, to be put into a ``math`` element."""
    return _MathMLPrinter().doprint(expression)


def to_typst(expression: Expr) -> str:
    """Typst's mathematical notation, without dollar signs."""
    return _TypstPrinter().doprint(expression)


def split_at_operators(notation: str) -> list[str]:
    """The parts of Typst's notation within which no line can end: what stands between two signs outside parentheses."""
    pieces, depth = [""], 0
    for token in re.findall(r'"(?:[^"\\]|\\.)*"|\\.|.', notation):
        depth += (token in OPENING_BRACKETS) - (token in CLOSING_BRACKETS)
        if depth == 0 and token in BREAKABLE_SIGNS:
            pieces.append("")
        else:
            pieces[-1] += token
    return [piece for piece in pieces if piece]


class _MathPrinter(Printer):  # type: ignore[misc]  # sympy is not typed.
    """What stands where: signs, fractions, parentheses. How each is written is left to the notation."""

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
        """Whatever else there may be, in sympy's own words."""
        kind = type(expr).__name__
        return self.name(CONSTANT_SYMBOLS.get(kind, str(expr)))

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
        signs = []
        for variable, first, last in reversed(expr.limits):
            below = self.row([self._print(variable), self.operator("="), self._print(first)])
            signs.append(self.sum(below, self._print(last)))
        return self.row([*signs, self._parenthesise(expr.function, PRECEDENCE["Add"])])

    def _symbol_name(self, name: str) -> str:
        base, _, index = strip_control_chars(name).replace("\n", " ").partition("_")
        return self.subscript(self.name(base), self.name(index)) if base and index else self.name(base or f"_{index}")

    def _comma_list(self, args: Sequence[Expr]) -> str:
        parts = [self._print(args[0])]
        for arg in args[1:]:
            parts += [self.operator(","), self._print(arg)]
        return self.row(parts)

    def _parenthesise(self, expr: Expr, precedence: int) -> str:
        """In parentheses, unless it binds more tightly than the level."""
        printed = str(self._print(expr))
        return printed if precedence_traditional(expr) > precedence else self.bracketed("(", printed, ")")

    def _split_sign(self, expr: Expr) -> tuple[bool, str]:
        """Whether a product is negative, and the product without its sign."""
        factors = _flat_factors(expr)
        negative = bool(factors[0].is_Number and factors[0].is_extended_negative)
        if negative:
            factors[0] = -factors[0]
        above, below = [], []
        for factor in factors:
            if isinstance(factor, Rational):
                above.append(Integer(factor.p))
                below.append(Integer(factor.q))
            elif isinstance(factor, Pow) and factor.exp.is_Rational and factor.exp < 0:
                below.append(Pow(factor.base, -factor.exp))
            else:
                above.append(factor)
        above, below = ([one for one in part if one != 1] for part in (above, below))
        if not below:
            return negative, self._product(above, is_alone=False)
        return negative, self.fraction(self._product(above, is_alone=True), self._product(below, is_alone=True))

    def _product(self, factors: Sequence[Expr], *, is_alone: bool) -> str:
        """Factors with dots between them; a lone one in a fraction (``alone``) needs no parentheses."""
        if len(factors) < 2:
            factor = factors[0] if factors else Integer(1)
            return str(self._print(factor)) if is_alone else self._parenthesise(factor, PRECEDENCE["Add"])
        parts = [self._parenthesise(factors[0], PRECEDENCE["Mul"])]
        for factor in factors[1:]:
            parts += [self.operator("·"), self._parenthesise(factor, PRECEDENCE["Mul"])]
        return self.row(parts)


def _flat_factors(expr: Expr) -> list[Expr]:
    """A product's factors, those of products within it among them, unless their sign needs parentheses."""
    if not isinstance(expr, Mul):
        return [expr]
    found: list[Expr] = []
    for factor in expr.as_ordered_factors():
        inner = isinstance(factor, Mul) and not factor.as_coeff_Mul()[0].is_negative
        found.extend(_flat_factors(factor) if inner else [factor])
    return found


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
    """Arguments and exponents stand in parentheses, which Typst does not show; names and numbers are quoted.

    No spaces are written, since beside quoted text they would show.
    """

    def number(self, digits: str) -> str:
        return f'"{digits}"'

    def name(self, name: str) -> str:
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'

    def operator(self, sign: str) -> str:
        # The multiplication sign itself, not the full stop in mid-line; a bare comma would part arguments of frac().
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
        """Parentheses grow with a fraction within; between others, whose sign is quoted, a line may end."""
        if left == "|":
            return f"lr(|{inner}|)"
        if left == "(" and "frac(" not in inner and "sum_(" not in inner:
            return rf"\({inner}\)"
        return f"{left}{inner}{right}"

    def sum(self, lower: str, upper: str) -> str:
        return f"sum_({lower})^({upper})"
