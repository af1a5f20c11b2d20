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

from chromabox.report.document.inline import clean

OPENING, CLOSING, SIGNS = ("(", "⌊", "⌈"), (")", "⌋", "⌉"), ("+", "−", "⋅", "×", "=", ",")
CONSTANTS = {"Pi": "π", "Exp1": "e", "Infinity": "∞", "ImaginaryUnit": "i"}


def mathml(expression: Expr) -> str:
    """Presentation MathML, to be put into a ``math`` element."""
    return _MathML().doprint(expression)


def typst_math(expression: Expr) -> str:
    """Typst's mathematical notation, without dollar signs."""
    return _Typst().doprint(expression)


def unbreakable(notation: str) -> list[str]:
    """The parts of Typst's notation within which no line can end: what stands between two signs outside parentheses."""
    pieces, depth = [""], 0
    for token in re.findall(r'"(?:[^"\\]|\\.)*"|\\.|.', notation):
        depth += (token in OPENING) - (token in CLOSING)
        if depth == 0 and token in SIGNS:
            pieces.append("")
        else:
            pieces[-1] += token
    return [piece for piece in pieces if piece]


class _Walk(Printer):  # type: ignore[misc]  # sympy is not typed.
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
    def fraction(self, above: str, below: str) -> str: ...

    @abstractmethod
    def raised(self, base: str, exponent: str) -> str: ...

    @abstractmethod
    def lowered(self, base: str, index: str) -> str: ...

    @abstractmethod
    def root(self, radicand: str, degree: str) -> str: ...

    @abstractmethod
    def fenced(self, left: str, inner: str, right: str) -> str: ...

    @abstractmethod
    def sum(self, below: str, above: str) -> str: ...

    def emptyPrinter(self, expr: object) -> str:
        """Whatever else there may be, in sympy's own words."""
        kind = type(expr).__name__
        return self.name(CONSTANTS.get(kind, str(expr)))

    def _print_Integer(self, expr: Integer) -> str:
        digits = self.number(f"{abs(int(expr)):,}")
        return digits if expr >= 0 else self.row([self.operator("−"), digits])

    def _print_Rational(self, expr: Rational) -> str:
        return self._print_Mul(expr)

    def _print_Float(self, expr: Float) -> str:
        mantissa, _, exponent = f"{abs(float(expr)):.6g}".partition("e")
        parts = [self.operator("−")] * bool(expr < 0) + [self.number(mantissa)]
        if exponent:
            parts += [self.operator("×"), self.raised(self.number("10"), self._print(Integer(int(exponent))))]
        return self.row(parts)

    def _print_Symbol(self, expr: Symbol) -> str:
        return self._named(expr.name)

    def _print_Indexed(self, expr: Indexed) -> str:
        return self.lowered(self._named(str(expr.base.label)), self._listed(expr.indices))

    def _print_Add(self, expr: Expr) -> str:
        parts: list[str] = []
        for term in expr.as_ordered_terms():
            negative, product = self._signed(term)
            if parts or negative:
                parts.append(self.operator("−" if negative else "+"))
            parts.append(product)
        return self.row(parts)

    def _print_Mul(self, expr: Expr) -> str:
        negative, product = self._signed(expr)
        return self.row([self.operator("−"), product]) if negative else product

    def _print_Pow(self, expr: Pow) -> str:
        base, exponent = expr.args
        if exponent.is_Rational and exponent < 0:
            return self.fraction(self.number("1"), self._print(Pow(base, -exponent, evaluate=False)))
        if exponent.is_Rational and exponent.p == 1 and exponent.q > 1:
            return self.root(self._print(base), "" if exponent.q == 2 else self._print(Integer(exponent.q)))
        if exponent == 1:
            return str(self._print(base))
        return self.raised(self._inside(base, PRECEDENCE["Pow"]), self._print(exponent))

    def _print_Function(self, expr: Expr) -> str:
        name = {"Max": "max", "Min": "min", "Mod": "mod"}.get(expr.func.__name__, expr.func.__name__)
        return self.row([self._named(name), self.fenced("(", self._listed(expr.args), ")")])

    _print_MinMaxBase = _print_Function

    def _print_exp(self, expr: Expr) -> str:
        return self.raised(self.name("e"), self._print(expr.args[0]))

    def _print_floor(self, expr: Expr) -> str:
        return self.fenced("⌊", self._print(expr.args[0]), "⌋")

    def _print_ceiling(self, expr: Expr) -> str:
        return self.fenced("⌈", self._print(expr.args[0]), "⌉")

    def _print_Abs(self, expr: Expr) -> str:
        return self.fenced("|", self._print(expr.args[0]), "|")

    def _print_Sum(self, expr: Sum) -> str:
        signs = []
        for variable, first, last in reversed(expr.limits):
            below = self.row([self._print(variable), self.operator("="), self._print(first)])
            signs.append(self.sum(below, self._print(last)))
        return self.row([*signs, self._inside(expr.function, PRECEDENCE["Add"])])

    def _named(self, name: str) -> str:
        base, _, index = clean(name).replace("\n", " ").partition("_")
        return self.lowered(self.name(base), self.name(index)) if base and index else self.name(base or f"_{index}")

    def _listed(self, args: Sequence[Expr]) -> str:
        parts = [self._print(args[0])]
        for arg in args[1:]:
            parts += [self.operator(","), self._print(arg)]
        return self.row(parts)

    def _inside(self, expr: Expr, level: int) -> str:
        """In parentheses, unless it binds more tightly than the level."""
        printed = str(self._print(expr))
        return printed if precedence_traditional(expr) > level else self.fenced("(", printed, ")")

    def _signed(self, expr: Expr) -> tuple[bool, str]:
        """Whether a product is negative, and the product without its sign."""
        factors = _factors(expr)
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
            return negative, self._product(above, alone=False)
        return negative, self.fraction(self._product(above, alone=True), self._product(below, alone=True))

    def _product(self, factors: Sequence[Expr], *, alone: bool) -> str:
        """Factors with dots between them; a lone one in a fraction (``alone``) needs no parentheses."""
        if len(factors) < 2:
            factor = factors[0] if factors else Integer(1)
            return str(self._print(factor)) if alone else self._inside(factor, PRECEDENCE["Add"])
        parts = [self._inside(factors[0], PRECEDENCE["Mul"])]
        for factor in factors[1:]:
            parts += [self.operator("·"), self._inside(factor, PRECEDENCE["Mul"])]
        return self.row(parts)


def _factors(expr: Expr) -> list[Expr]:
    """A product's factors, those of products within it among them, unless their sign needs parentheses."""
    if not isinstance(expr, Mul):
        return [expr]
    found: list[Expr] = []
    for factor in expr.as_ordered_factors():
        inner = isinstance(factor, Mul) and not factor.as_coeff_Mul()[0].is_negative
        found.extend(_factors(factor) if inner else [factor])
    return found


class _MathML(_Walk):
    def number(self, digits: str) -> str:
        return f"<mn>{digits}</mn>"

    def name(self, name: str) -> str:
        return f'<mi mathvariant="normal">{escape(name)}</mi>' if len(name) == 1 else f"<mi>{escape(name)}</mi>"

    def operator(self, sign: str) -> str:
        return f"<mo>{sign}</mo>"

    def row(self, parts: Sequence[str]) -> str:
        return f"<mrow>{''.join(parts)}</mrow>" if len(parts) != 1 else parts[0]

    def fraction(self, above: str, below: str) -> str:
        return f"<mfrac>{above}{below}</mfrac>"

    def raised(self, base: str, exponent: str) -> str:
        return f"<msup>{base}{exponent}</msup>"

    def lowered(self, base: str, index: str) -> str:
        return f"<msub>{base}{index}</msub>"

    def root(self, radicand: str, degree: str) -> str:
        return f"<mroot>{radicand}{degree}</mroot>" if degree else f"<msqrt>{radicand}</msqrt>"

    def fenced(self, left: str, inner: str, right: str) -> str:
        return f"<mrow><mo>{left}</mo>{inner}<mo>{right}</mo></mrow>"

    def sum(self, below: str, above: str) -> str:
        return f"<munderover><mo>∑</mo>{below}{above}</munderover>"


class _Typst(_Walk):
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

    def fraction(self, above: str, below: str) -> str:
        return f"frac({above},{below})"

    def raised(self, base: str, exponent: str) -> str:
        return f"{base}^({exponent})"

    def lowered(self, base: str, index: str) -> str:
        return f"{base}_({index})"

    def root(self, radicand: str, degree: str) -> str:
        return f"root({degree},{radicand})" if degree else f"sqrt({radicand})"

    def fenced(self, left: str, inner: str, right: str) -> str:
        """Parentheses grow with a fraction within; between others, whose sign is quoted, a line may end."""
        if left == "|":
            return f"lr(|{inner}|)"
        if left == "(" and "frac(" not in inner and "sum_(" not in inner:
            return rf"\({inner}\)"
        return f"{left}{inner}{right}"

    def sum(self, below: str, above: str) -> str:
        return f"sum_({below})^({above})"
