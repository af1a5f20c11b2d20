"""Documents converted to plain data for templates: parsed prose, highlighted code, numbered tables and figures.

Source code is highlighted by Pygments in the HTML page, whose style sheet defines the colours, and by Typst in the PDF.
"""

import html
import itertools
import re
from dataclasses import dataclass
from typing import Any

import pygments
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath, text_to_path
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.lexers.special import TextLexer
from pygments.util import ClassNotFound
from sympy import Expr, Integer, Symbol
from sympy.printing.latex import LatexPrinter

from chromabox.report.document.model import Block, Code, Document, Figure, Formula, MissingRun, Number, Table, Text

#: Control characters, surrogates and noncharacters, which neither HTML nor fonts support.
UNPRINTABLE_CHARS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]|[\U0001fffe-\U0001ffff]"
)
#: The space between a number and its unit. No line break is allowed there.
UNIT_SPACE = re.compile(r"^ (?=[%×°])")
URL = re.compile(r"(https?://[^\s<>\"]*[^\s<>\".,;:!?)\]])")


@dataclass(frozen=True)
class Inline:
    """A piece of text: plain text, code, a number or a link."""

    text: str
    code: bool = False
    number: Number | None = None
    link: str = ""


def strip_control_chars(text: str) -> str:
    """Return the text with "\\n" as line endings and with "�" for every unsupported character."""
    return UNPRINTABLE_CHARS.sub("�", text.replace("\r\n", "\n").replace("\r", "\n"))


def parse_inline(text: Text | str) -> list[Inline]:
    """Parse a paragraph. Backticks delimit code, URLs become links, and line breaks become spaces.

    An unpaired backtick is plain text.
    """
    pieces = text.pieces if isinstance(text, Text) else [(text, None)]
    num_backticks = sum(literal.count("`") for literal, _ in pieces)
    unpaired = num_backticks if num_backticks % 2 else 0
    inlines: list[Inline] = []
    code, seen = False, 0
    for literal, number in pieces:
        words = strip_control_chars(literal).replace("\n", " ")
        if inlines and inlines[-1].number:
            words = UNIT_SPACE.sub("\u00a0", words)
        for index, part in enumerate(words.split("`")):
            seen += index > 0
            if index and seen == unpaired:
                part = f"`{part}"
            elif index:
                code = not code
            parts = [part] if code else URL.split(part)  # Every second part is a URL.
            inlines += [Inline(part, code, link=part if index % 2 else "") for index, part in enumerate(parts) if part]
        if number is not None:
            inlines.append(Inline(str(number), code, number))
    return inlines


def to_text(inlines: list[Inline]) -> str:
    """Return the text without its formatting."""
    return "".join(inline.text for inline in inlines)


#: A block as plain data: ``kind`` names its type, and the other keys depend on it.
LaidOut = dict[str, Any]


def layout_document(document: Document) -> LaidOut:
    """Return a dictionary: ``title``, ``abstract``, ``sections``, ``references``, ``metadata`` and ``figures``.

    ``figures`` is a list of all figures in document order.
    """
    counters = {Table: itertools.count(1), Figure: itertools.count(1)}
    figures = [block for _, block in document.blocks() if isinstance(block, Figure)]

    def layout_block(block: Block) -> LaidOut:
        laid_out = _layout_block(block)
        return laid_out | {"number": next(counters[type(block)])} if type(block) in counters else laid_out

    cleaned = [re.sub(r"[^\w.]+", "-", strip_control_chars(section.key)).strip("-") for section in document.sections]
    return {
        "title": strip_control_chars(document.title),
        "abstract": [layout_block(block) for block in document.abstract],
        "sections": [
            {
                # A unique URL fragment.
                "anchor": key if key and cleaned.count(key) == 1 else f"{key}--{index}",
                "key": strip_control_chars(section.key),
                "title": strip_control_chars(section.title),
                "question": parse_inline(section.question),
                "blocks": [layout_block(block) for block in section.blocks],
            }
            for index, (section, key) in enumerate(zip(document.sections, cleaned, strict=True))
        ],
        "references": [parse_inline(reference) for reference in document.references],
        "metadata": [(parse_inline(name), parse_inline(value)) for name, value in document.metadata.items()],
        "figures": figures,
    }


def _layout_block(block: Block) -> LaidOut:
    match block:
        case Text():
            return {"kind": "text", "inlines": parse_inline(block)}
        case Formula():
            return {"kind": "formula", "name": parse_inline(block.name), **render_formula(block.expression)}
        case Table():  # Raises ValueError if the rows have different lengths.
            columns = zip(block.columns, *block.rows, strict=True)
            return {
                "kind": "table",
                "caption": parse_inline(block.caption),
                "columns": [parse_inline(column) for column in block.columns],
                "numeric": [any(isinstance(cell, Number) for cell in column) for column in columns],
                "rows": [[_layout_cell(cell) for cell in row] for row in block.rows],
            }
        case Figure():
            caption = parse_inline(block.caption)
            return {"kind": "figure", "caption": caption, "alt": to_text(caption)}
        case Code():
            source = strip_control_chars(block.source).strip("\n").expandtabs(4)
            language, options = strip_control_chars(block.language), {"stripnl": False, "ensurenl": False}
            try:
                lexer = get_lexer_by_name(language, **options)
            except ClassNotFound:  # The code is not highlighted.
                lexer = TextLexer(**options)
            html_code = pygments.highlight(source, lexer, HtmlFormatter(nowrap=True)).rstrip("\n")
            return {"kind": "code", "source": source, "language": language, "html": html_code}
        case MissingRun():
            command = strip_control_chars(block.command)
            return {"kind": "missing", "description": parse_inline(block.description), "command": command}


def _layout_cell(cell: str | Number) -> list[Inline]:
    return [Inline(str(cell), number=cell)] if isinstance(cell, Number) else parse_inline(cell)


class _LatexPrinter(LatexPrinter):  # type: ignore[misc]  # SymPy is not typed.
    """Printer for the subset of LaTeX that mathtext supports.

    Names are upright, because NIC is one variable and not a product of three. Text after an underscore is a subscript.
    """

    def _print_Symbol(self, expr: Symbol) -> str:
        base, _, index = expr.name.partition("_")
        return f"{_latex_text(base)}_{{{_latex_text(index)}}}" if base and index else _latex_text(expr.name)

    def _print_Integer(self, expr: Integer) -> str:
        return f"{int(expr):,}".replace(",", "{,}")

    def _print_Mod(self, expr: Expr) -> str:
        return rf"\operatorname{{mod}}\left({self._print(expr.args[0])}, {self._print(expr.args[1])}\right)"


def _latex_text(text: str) -> str:
    escaped = re.sub(r"([\\{}$])", r"\\\1", strip_control_chars(text).replace("\n", " "))
    return rf"\text{{{escaped}}}"


def to_latex(expression: Expr) -> str:
    """Return LaTeX without dollar signs, with fractions and sums at full size."""
    return str(_LatexPrinter({"mul_symbol": "dot"}).doprint(expression)).replace(r"\frac{", r"\dfrac{")


def render_formula(expression: Expr) -> LaidOut:
    """Typeset an equals sign, followed by ``expression``, with matplotlib's mathtext.

    The result has the keys ``svg``, ``alt``, ``width`` and ``depth``. ``svg`` is an image in the colour of the
    surrounding text. ``alt`` is the formula as plain text, which is also the label of the image for screen readers.
    The width and the depth below the baseline are in em. An expression that mathtext does not support (piecewise
    functions) is shown in SymPy's notation.
    """
    alt = strip_control_chars(str(expression)).replace("\n", " ").replace("**", "^")
    font = FontProperties(math_fontfamily="stix", size=100)
    try:
        latex = f"$= {to_latex(expression)}$"
        text_to_path.get_text_width_height_descent(latex, font, ismath=True)
    except (ValueError, RecursionError):  # SymPy 1.14 cannot print an unevaluated (-1)**-2.
        latex = f"$= {_latex_text(alt)}$"
    width, height, depth = text_to_path.get_text_width_height_descent(latex, font, ismath=True)
    width += 10  # Slanted letters extend beyond their advance widths.
    letters = {TextPath.MOVETO: "M", TextPath.LINETO: "L", TextPath.CURVE3: "Q", TextPath.CURVE4: "C"}
    outline = ""
    for points, code in TextPath((0, 0), latex, prop=font).iter_segments(simplify=False):
        coordinates = (points.reshape(-1, 2) * [1, -1]).ravel()  # The y axis of SVG points downwards.
        outline += letters[code] + " ".join(f"{value:.0f}" for value in coordinates) if code in letters else "Z"
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="= {html.escape(alt)}" '
        f'width="{width / 100:.2f}em" height="{height / 100:.2f}em" style="vertical-align: {-depth / 100:.2f}em" '
        f'viewBox="0 {depth - height:.0f} {width:.0f} {height:.0f}"><path fill="currentColor" d="{outline}"/></svg>'
    )
    return {"svg": svg, "alt": alt, "width": width / 100, "depth": depth / 100}
