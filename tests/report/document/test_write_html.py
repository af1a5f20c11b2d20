"""The page as a file: read back by Python's own HTML parser, which knows nothing of the template."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sympy import Symbol

from chromabox.errors import ChromaboxError
from chromabox.report.document.inline import strip_control_chars
from chromabox.report.document.model import Code, Document, Figure, Formula, MissingRun, Number, Section, Table, Text
from chromabox.report.document.write import MAX_PAGE_BYTES, write_html
from report_fixtures import make_sample_document

VOID = {"meta", "link", "img"}


class Page(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles; every tag must be closed by its own end."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def values(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.tags if name in attributes]


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Document:
    return make_sample_document(tmp_path_factory.mktemp("figures"))


@pytest.fixture(scope="module")
def page(document: Document, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_html(document, tmp_path_factory.mktemp("page") / "report.html"))


def test_the_frame(page: Page, document: Document) -> None:
    assert page.all("html") == [{"lang": "en-GB"}]
    assert all(len(page.all(landmark)) == 1 for landmark in ("header", "nav", "main", "h1"))
    assert document.title in page.text
    assert page.text.count("Question") >= sum(bool(section.question) for section in document.sections)


def test_nothing_is_fetched(page: Page) -> None:
    """Addresses are inside the page, or links that a reader may follow; the browser is told to fetch nothing else."""
    assert all(address.startswith("data:") for address in page.values("src"))
    for tag, attributes in page.tags:
        address = attributes.get("href", "#")
        assert address.startswith("#") or (tag == "a" and address.startswith("https://")) or address == "data:,"
    [policy] = [one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert len(page.all("script")) == len(page.all("style")) == 1


def test_every_address_within_the_page_exists_once(page: Page) -> None:
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    targets = [one["href"][1:] for one in page.all("a") if one["href"].startswith("#")]
    assert {*targets, *page.values("aria-labelledby")} <= set(ids)
    assert {"A.1", "A.3", "B.2", "B.5", "C.1", "D.2"} <= set(targets)


def test_every_number_is_there_with_its_source(page: Page, document: Document) -> None:
    shown = [(float(one["value"]), one["title"]) for one in page.all("data") if "title" in one]
    expected = [(number.value, number.source) for _, _, number in document.numbers()]
    np.testing.assert_equal(shown, expected)  # Which holds nan equal to nan.
    listed = [one for one in page.all("data") if "title" not in one]
    assert len(listed) == len(expected)


def test_captions_are_numbered_and_stand_for_the_pictures(page: Page) -> None:
    assert all(re.search(rf"Figure {number}\.", page.text) for number in range(1, 6))
    assert all(re.search(rf"Table {number}\.", page.text) for number in range(1, 5))
    assert [one["alt"] for one in page.all("img")][1] == "Losses and accuracies, epoch by epoch."


ANY = st.text(st.characters(exclude_categories=[]), max_size=40)


@given(ANY.map(lambda text: text.replace("`", "'")), ANY)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_text_is_text_and_never_markup(tmp_path: Path, text: str, key: str) -> None:
    braced = text.replace("{", "{{").replace("}", "}}")
    number = Number(1.5, text)
    blocks = [
        Text(braced + "{n}", {"n": number}), Table(text, [text], [[text], [number]]), Code(text), Code(text, text),
        MissingRun(text, text), Formula(text, Symbol(text or "x")),
    ]  # fmt: skip
    sections = [Section(key, text, text, blocks), Section(key, text, "", [])]
    page = Page(write_html(Document(text, [], sections, [text], {text: text}), tmp_path / "any.html"))
    squeezed = "".join(strip_control_chars(text).split())
    assert "".join(page.text.split()).count(squeezed) >= 12
    assert {one["title"] for one in page.all("data") if "title" in one} == {strip_control_chars(text)}
    assert len(page.all("script")) == 1
    assert len(page.all("section")) == len(sections) + 2


def test_large_pictures_are_made_smaller_and_captions_say_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    figures = []
    for index in range(3):
        Image.fromarray(rng.integers(0, 256, (300, 500, 3), np.uint8)).save(tmp_path / f"{index}.png", compress_level=0)
        figures.append(Figure(tmp_path / f"{index}.png", f"Noise {index}."))
    before = (tmp_path / "0.png").read_bytes()
    document = Document("t", figures, [], [], {})
    path = write_html(document, tmp_path / "report.html", max_bytes=400_000)
    assert path.stat().st_size <= 400_000
    page = Page(path)
    assert page.text.count("(shown in 256 colours and ") == 3
    assert {(one["width"], one["height"]) for one in page.all("img")} == {("500", "300")}
    assert (tmp_path / "0.png").read_bytes() == before
    whole = write_html(document, tmp_path / "whole.html")
    assert whole.stat().st_size <= MAX_PAGE_BYTES


def test_a_broken_figure_leaves_the_page_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "report.html").write_text("before")
    with pytest.raises(ChromaboxError, match=r"broken\.png: is no whole PNG file"):
        write_html(Document("", [Figure(tmp_path / "broken.png", "")], [], [], {}), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 2
