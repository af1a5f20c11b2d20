"""The HTML page, parsed by Python's HTML parser independently of the template."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data
from sympy import Symbol

from chromabox.errors import ChromaboxError
from chromabox.report.document.layout import strip_control_chars
from chromabox.report.document.model import Code, Document, Figure, Formula, MissingRun, Number, Section, Table, Text
from chromabox.report.document.write import MAX_PAGE_BYTES, write_html
from report_fixtures import make_sample_document

VOID = {"meta", "link", "img"}


class Page(HTMLParser):
    """Tags with attributes, and the text outside scripts and styles; every tag must be closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"{tag} has duplicate attributes"
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


def test_landmarks_and_title(page: Page, document: Document) -> None:
    assert page.all("html") == [{"lang": "en-GB"}]
    assert all(len(page.all(landmark)) == 1 for landmark in ("header", "nav", "main", "h1"))
    assert document.title in page.text
    assert page.text.count("Question") >= sum(bool(section.question) for section in document.sections)


def test_page_loads_nothing_external(page: Page) -> None:
    """URLs are inside the page or links to follow; the content security policy forbids other requests."""
    assert all(url.startswith("data:") for url in page.values("src"))
    for tag, attributes in page.tags:
        url = attributes.get("href", "#")
        assert url.startswith("#") or (tag == "a" and url.startswith("https://")) or url == "data:,"
    [policy] = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert len(page.all("script")) == len(page.all("style")) == 1


def test_ids_are_unique_and_links_resolve(page: Page) -> None:
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    targets = [link["href"][1:] for link in page.all("a") if link["href"].startswith("#")]
    assert {*targets, *page.values("aria-labelledby")} <= set(ids)
    assert {"A.1", "A.3", "B.2", "B.5", "C.1", "D.2"} <= set(targets)


def test_every_number_has_its_source(page: Page, document: Document) -> None:
    shown = [(float(tag["value"]), tag["title"]) for tag in page.all("data") if "title" in tag]
    expected = [(number.value, number.source) for _, _, number in document.numbers()]
    np.testing.assert_equal(shown, expected)  # Treats nan as equal to nan.
    listed = [tag for tag in page.all("data") if "title" not in tag]
    assert len(listed) == len(expected)


def test_captions_are_numbered_and_used_as_alt_text(page: Page) -> None:
    assert all(re.search(rf"Figure {number}\.", page.text) for number in range(1, 6))
    assert all(re.search(rf"Table {number}\.", page.text) for number in range(1, 5))
    assert [image["alt"] for image in page.all("img")][1] == "Losses and accuracies per epoch."


ANY = st.text(st.characters(exclude_categories=[]), max_size=40)


@given(ANY.map(lambda text: text.replace("`", "'")), ANY)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_text_is_never_interpreted_as_markup(tmp_path: Path, text: str, key: str) -> None:
    braced = text.replace("{", "{{").replace("}", "}}")
    number = Number(1.5, text)
    blocks = [
        Text(braced + "{n}", {"n": number}), Table(text, [text], [[text], [number]]), Code(text), Code(text, text),
        MissingRun(text, text), Formula(text, Symbol(text or "x")),
    ]  # fmt: skip
    sections = [Section(key, text, text, blocks), Section(key, text, "", [])]
    page = Page(write_html(Document(text, [], sections, [text], {text: text}), tmp_path / "any.html"))
    compact = "".join(strip_control_chars(text).split())
    assert "".join(page.text.split()).count(compact) >= 12
    assert {tag["title"] for tag in page.all("data") if "title" in tag} == {strip_control_chars(text)}
    assert len(page.all("script")) == 1
    assert len(page.all("section")) == len(sections) + 2


def test_sample_page_is_small(document: Document, tmp_path: Path) -> None:
    assert write_html(document, tmp_path / "report.html").stat().st_size <= MAX_PAGE_BYTES


def test_large_page_causes_a_warning_and_images_are_unchanged(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 1500, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    document = Document("t", [Figure(tmp_path / "noise.png", "Noise.")], [], [], {})
    with pytest.warns(UserWarning, match=r"report\.html: the size of the page is 6\.\d MB"):
        page = Page(write_html(document, tmp_path / "report.html"))
    [image] = page.all("img")
    assert (image["width"], image["height"]) == ("1500", "1000")
    header, _, body = image["src"].partition(",")
    assert header == "data:image/png;base64"
    assert base64.b64decode(body) == (tmp_path / "noise.png").read_bytes()


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", None, "jpeg", "truncated"])
def test_incomplete_png_is_rejected_by_name(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "figure.png"
    if content == "jpeg":
        Image.fromarray(data.chelsea()).save(path, format="JPEG")
    elif content == "truncated":
        Image.fromarray(data.chelsea()).save(path)
        path.write_bytes(path.read_bytes()[:5000])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(ChromaboxError, match=r"figure\.png: ") as caught:
        write_html(Document("", [Figure(path, "")], [], [], {}), tmp_path / "report.html")
    assert "\n" not in str(caught.value)


def test_broken_figure_raises_and_keeps_the_existing_page(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not an image")
    (tmp_path / "report.html").write_text("before")
    with pytest.raises(ChromaboxError, match=r"broken\.png: not a complete PNG file"):
        write_html(Document("", [Figure(tmp_path / "broken.png", "")], [], [], {}), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 2
