"""The PDF, read by PDFium: its text, its fonts and the rendered pages."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pypdfium2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jaxtyping import UInt8
from PIL import Image
from sympy import Symbol, symbols

from chromabox.errors import ChromaboxError
from chromabox.report.document.model import Code, Document, Figure, Formula, MissingRun, Number, Section, Table, Text
from chromabox.report.document.write import write_pdf
from report_fixtures import make_sample_document

MILLIMETRE = 72 / 25.4
#: Characters of the embedded fonts: Latin, Greek, Cyrillic and symbols. Backticks delimit code and are not shown.
CHARACTERS = st.characters(
    codec="utf-8",
    max_codepoint=0x2122,
    exclude_categories=["C", "Zl", "Zp", "Zs", "M", "Lm", "Lo"],
    exclude_characters="`",
).filter(
    lambda char: ord(char) < 0x250 or 0x391 <= ord(char) <= 0x3C9 or 0x410 <= ord(char) <= 0x44F or char in "–—‘’“”…€™"
)


def iter_pages(path: Path) -> Iterator[pypdfium2.PdfPage]:
    document = pypdfium2.PdfDocument(path)
    try:
        for page in document:
            yield page
            page.close()
    finally:
        document.close()


def extract_text(path: Path) -> str:
    """Return all text without spaces and without hyphenation marks."""
    texts = []
    for page in iter_pages(path):
        text_page = page.get_textpage()
        texts.append(text_page.get_text_range())
        text_page.close()
    return remove_spaces("".join(texts))


def remove_spaces(text: str) -> str:
    return re.sub("[\\s\x00\x02\ufffe\xad]", "", text)


def render_pages(path: Path, scale: float = 2.0) -> list[UInt8[np.ndarray, "height width"]]:
    return [np.asarray(page.render(scale=scale).to_pil().convert("L")) for page in iter_pages(path)]


@pytest.fixture(scope="module")
def pdf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Document, Path]:
    folder = tmp_path_factory.mktemp("pdf")
    document = make_sample_document(folder)
    return document, write_pdf(document, folder / "report.pdf")


def one_section(*blocks: Text | Table | Figure | Formula | Code | MissingRun) -> Document:
    return Document("A title", [], [Section("A.1", "Section", "What?", blocks)], [], {})


def test_all_text_is_present(pdf: tuple[Document, Path]) -> None:
    document, path = pdf
    found = extract_text(path)
    expected = [document.title, *document.metadata, *document.metadata.values(), *document.references]
    for section in document.sections:
        expected += [section.key, section.title, section.question.replace("`", "")]
        for block in section.blocks:
            if isinstance(block, Text):
                expected.append(re.sub("`([^`]*)`", r"\1", str(block)))
            elif isinstance(block, Table):
                expected += [
                    block.caption.replace("`", ""),
                    *block.columns,
                    *(str(cell).replace("`", "") for row in block.rows for cell in row),
                ]
            elif isinstance(block, Code):
                expected += block.source.split("\n")
            elif isinstance(block, MissingRun):
                expected += [block.description, block.command]
            elif isinstance(block, Figure):
                expected.append(block.caption)
    missing = [text for text in expected if remove_spaces(text) not in found]
    assert missing == []


def test_margins_are_empty(pdf: tuple[Document, Path]) -> None:
    """20 mm at the sides are white, in portrait and landscape pages, and 8 mm at the top and bottom."""
    for number, page in enumerate(render_pages(pdf[1]), start=1):
        side, end = round(20 * MILLIMETRE * 2), round(8 * MILLIMETRE * 2)
        assert page[:, :side].min() == 255, f"page {number}, left"
        assert page[:, -side:].min() == 255, f"page {number}, right"
        assert page[:end].min() == page[-end:].min() == 255, f"page {number}, top or bottom"
        assert page.min() < 100, f"page {number} is empty"


def test_every_character_has_a_glyph(pdf: tuple[Document, Path]) -> None:
    """The fallback font, whose glyphs are boxes, is not used, and all fonts are embedded."""
    fonts = set()
    for page in iter_pages(pdf[1]):
        for item in page.get_objects():
            if isinstance(item, pypdfium2.PdfTextObj):
                font = item.get_font()
                fonts.add(font.get_base_name().split("+")[-1])
                assert font.is_embedded
    assert {"LibertinusSerif-Regular", "DejaVuSansMono"} <= fonts
    assert not [font for font in fonts if "Resort" in font]


def test_same_document_gives_the_same_bytes(pdf: tuple[Document, Path], tmp_path: Path) -> None:
    document, path = pdf
    assert write_pdf(document, tmp_path / "again.pdf").read_bytes() == path.read_bytes()


@given(st.lists(st.text(CHARACTERS, min_size=1, max_size=12), min_size=1, max_size=8))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_text_is_never_interpreted_as_markup(tmp_path: Path, texts: list[str]) -> None:
    """Each text is used in every field; quotation marks around it delimit it."""
    marked = [f"«{text}»" for text in texts]
    blocks = [
        block
        for text in marked
        for block in (
            Text(text.replace("{", "{{").replace("}", "}}")),
            Table(text, [text], [[text]]),
            Code(text, "text"),
            MissingRun(text, text),
        )
    ]
    document = Document(
        marked[0],
        [Text("Abstract.")],
        [Section("A", text, text, blocks) for text in marked[:1]],
        marked,
        {marked[0]: marked[-1]},
    )
    found = extract_text(write_pdf(document, tmp_path / "any.pdf"))
    for text in marked:
        assert found.count(text) >= 6 * marked.count(text)


@given(st.text(st.characters(exclude_categories=[]), max_size=60))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_can_be_typeset(tmp_path: Path, text: str) -> None:
    braced = text.replace("{", "{{").replace("}", "}}")
    blocks = [
        Text(braced),
        Table(text, [text], [[text]]),
        Code(text),
        Code(text, text),
        MissingRun(text, text),
        Formula(text, Symbol(text or "x") ** 2),
    ]
    document = Document(text, [], [Section(text, text, text, blocks)], [text], {text: text})
    assert write_pdf(document, tmp_path / "any.pdf").read_bytes().startswith(b"%PDF-")


@pytest.mark.parametrize(
    ("columns", "width", "landscape"), [(3, 8, False), (14, 8, False), (22, 8, True), (60, 8, True), (8, 90, True)]
)
def test_tables_of_any_width_fit_the_page(tmp_path: Path, columns: int, width: int, landscape: bool) -> None:
    cells = [Number(10.0 ** (width - 1), "s", ".0f") for _ in range(columns)]
    table = Table("Wide.", [f"column {index}" for index in range(columns)], [cells] * 80)
    path = write_pdf(one_section(table, Text("After.")), tmp_path / "wide.pdf")
    shapes = [page.shape for page in render_pages(path, 1)]
    assert any(height < width for height, width in shapes) == landscape
    assert extract_text(path).count("column0") >= 2  # The heading is repeated on the next page.
    if width < 90 and columns < 60:  # Wider tables fit no page; they only have to be written.
        test_margins_are_empty((one_section(table), path))


def test_long_words_are_wrapped_everywhere(tmp_path: Path) -> None:
    name = "folder_with-a-name/" * 20 + "x" * 300
    blocks = [
        Text(f"See `{name}` and {name}."),
        Table(name, [name, "b"], [[name, name]]),
        Code(f"f('{name}')" + "a.b(c," * 80),
        MissingRun(name, name),
    ]
    path = write_pdf(
        Document(name, [], [Section(name[:60], name, name, blocks)], [name], {name: name}), tmp_path / "long.pdf"
    )
    test_margins_are_empty((one_section(), path))
    assert extract_text(path).count(remove_spaces(name)) >= 9


def test_long_formulas_fit_the_page(tmp_path: Path) -> None:
    terms = sum(Symbol(f"NIC_{index}") * Symbol("NF") ** 2 for index in range(40))
    path = write_pdf(
        one_section(Formula("weights", terms), Formula("twice", terms**2), Formula("part", 1 / (terms + 1))),
        tmp_path / "long.pdf",
    )
    test_margins_are_empty((one_section(), path))


def test_formulas_are_drawn_next_to_their_names(tmp_path: Path) -> None:
    nic, k = symbols("NIC k_in")
    path = write_pdf(one_section(Formula("weights", nic * k**2)), tmp_path / "formula.pdf")
    without = write_pdf(one_section(Text("weights")), tmp_path / "without.pdf")
    assert "weights" in extract_text(path)
    [page], [other] = render_pages(path, 4), render_pages(without, 4)
    assert (page < 100).sum() > (other < 100).sum() + 500


@pytest.mark.parametrize(
    ("shape", "expected"), [((300, 3000), 166), ((3000, 300), 9.5), ((60, 90), 25.4), ((1200, 2000), 158.3)]
)
def test_figures_keep_their_aspect_ratio_within_the_page(
    tmp_path: Path, shape: tuple[int, int], expected: float
) -> None:
    """The width of a black image on the page is measured; small images are shown at 90 pixels per inch."""
    Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / "black.png")
    path = write_pdf(one_section(Figure(tmp_path / "black.png", "")), tmp_path / "figure.pdf")
    ink = np.stack([page < 10 for page in render_pages(path, 4)]).any(0)
    rows = np.flatnonzero(ink.sum(1) > ink.sum(1).max() * 0.98)
    assert ink.sum(1).max() / 4 / MILLIMETRE == pytest.approx(expected, rel=0.02)
    assert len(rows) / 4 / MILLIMETRE == pytest.approx(expected * shape[0] / shape[1], rel=0.03)


def test_broken_figure_raises_and_keeps_the_existing_pdf(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nand nothing else")
    (tmp_path / "report.pdf").write_bytes(b"before")
    with pytest.raises(ChromaboxError, match=r"broken\.png: not a complete PNG file"):
        write_pdf(one_section(Figure(tmp_path / "broken.png", "")), tmp_path / "report.pdf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.png", "report.pdf"]
    assert (tmp_path / "report.pdf").read_bytes() == b"before"


def test_empty_document_has_one_page(tmp_path: Path) -> None:
    assert len(render_pages(write_pdf(Document("", [], [], [], {}), tmp_path / "empty.pdf"))) == 1
