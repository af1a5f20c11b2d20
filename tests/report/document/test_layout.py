"""Documents as plain data: numbered figures and tables, unique anchors, numeric columns."""

from pathlib import Path

import pytest

from chromabox.report.document.layout import layout_document, to_text
from chromabox.report.document.model import Document, Figure, Number, Section, Table, Text

TABLE = Table("t", ["a", "b"], [["x", Number(1.0, "s")], ["y", "–"]])
FIGURE = Figure(Path("f.png"), "a `code` caption")


def make_section(key: str, *blocks: Text | Table | Figure) -> Section:
    return Section(key, "title", "", blocks)


def test_numbering_continues_across_sections() -> None:
    layout = layout_document(
        Document("", [TABLE, FIGURE], [make_section("A", FIGURE, TABLE), make_section("B", FIGURE)], [], {})
    )
    blocks = [*layout["abstract"], *layout["sections"][0]["blocks"], *layout["sections"][1]["blocks"]]
    assert [(block["kind"], block["number"]) for block in blocks] == [
        ("table", 1), ("figure", 1), ("figure", 2), ("table", 2), ("figure", 3),
    ]  # fmt: skip
    assert layout["figures"] == [FIGURE] * 3
    assert blocks[1]["alt"] == "a code caption"


def test_columns_with_numbers_are_numeric() -> None:
    layout = layout_document(Document("", [TABLE, Table("", ["a", "b"], [])], [], [], {}))
    assert [block["numeric"] for block in layout["abstract"]] == [[False, True], [False, False]]
    assert [[to_text(cell) for cell in row] for row in layout["abstract"][0]["rows"]] == [["x", "1"], ["y", "–"]]


@pytest.mark.parametrize("rows", [[["x"]], [["x", "y", "z"]], [["x", "y"], ["z"]]])
def test_ragged_tables_are_rejected(rows: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="zip"):
        layout_document(Document("", [Table("", ["a", "b"], rows)], [], [], {}))


def test_anchors_are_unique_and_without_special_characters() -> None:
    keys = ["A.1", "A.1", "A 1 é", "<", "", "A.1--0"]
    layout = layout_document(Document("", [], [make_section(key) for key in keys], [], {}))
    anchors = [section["anchor"] for section in layout["sections"]]
    assert anchors[2] == "A-1-é"
    assert len(set(anchors)) == len(keys)
    assert not any(set(anchor) & set(' "<>&#') for anchor in anchors)
