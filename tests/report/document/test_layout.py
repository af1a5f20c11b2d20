"""A document as data: figures and tables are counted through, addresses are unique, columns know their numbers."""

from pathlib import Path

import pytest

from chromabox.report.document.inline import to_text
from chromabox.report.document.layout import layout_document
from chromabox.report.document.model import Document, Figure, Number, Section, Table, Text

TABLE = Table("t", ["a", "b"], [["x", Number(1.0, "s")], ["y", "–"]])
FIGURE = Figure(Path("f.png"), "a `code` caption")


def section(key: str, *blocks: Text | Table | Figure) -> Section:
    return Section(key, "title", "", blocks)


def test_counting_goes_through_all_parts() -> None:
    laid = layout_document(Document("", [TABLE, FIGURE], [section("A", FIGURE, TABLE), section("B", FIGURE)], [], {}))
    blocks = [*laid["abstract"], *laid["sections"][0]["blocks"], *laid["sections"][1]["blocks"]]
    assert [(one["kind"], one["number"]) for one in blocks] == [
        ("table", 1), ("figure", 1), ("figure", 2), ("table", 2), ("figure", 3),
    ]  # fmt: skip
    assert laid["figures"] == [FIGURE] * 3
    assert blocks[1]["alt"] == "a code caption"


def test_a_column_with_a_number_is_numeric_and_an_empty_table_has_none() -> None:
    laid = layout_document(Document("", [TABLE, Table("", ["a", "b"], [])], [], [], {}))
    assert [one["numeric"] for one in laid["abstract"]] == [[False, True], [False, False]]
    assert [[to_text(cell) for cell in row] for row in laid["abstract"][0]["rows"]] == [["x", "1"], ["y", "–"]]


@pytest.mark.parametrize("rows", [[["x"]], [["x", "y", "z"]], [["x", "y"], ["z"]]])
def test_ragged_tables_are_refused(rows: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="zip"):
        layout_document(Document("", [Table("", ["a", "b"], rows)], [], [], {}))


def test_addresses_are_unique_and_hold_no_spaces() -> None:
    keys = ["A.1", "A.1", "A 1 é", "<", "", "A.1--0"]
    anchors = [
        one["anchor"] for one in layout_document(Document("", [], [section(key) for key in keys], [], {}))["sections"]
    ]
    assert anchors[2] == "A-1-é"
    assert len(set(anchors)) == len(keys)
    assert not any(set(anchor) & set(' "<>&#') for anchor in anchors)
