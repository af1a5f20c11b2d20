"""Highlighted source code: the text is preserved, and the classes agree with Python's tokenizer."""

import io
import keyword
import tokenize
from html.parser import HTMLParser
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from chromabox.colour.chroma import lab
from chromabox.report.document.layout import layout_document, strip_control_chars
from chromabox.report.document.model import Code, Document


class Spans(HTMLParser):
    """Texts with the first letter of their class (empty outside spans); word operators count as keywords."""

    def __init__(self, code: Code) -> None:
        super().__init__()
        self.texts: list[tuple[str, str]] = []
        self.kind = ""
        [block] = layout_document(Document("", [code], [], [], {}))["abstract"]
        self.feed(block["html"])
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "span"
        kind = dict(attrs)["class"] or ""
        self.kind = "k" if kind == "ow" else kind[:1]

    def handle_endtag(self, tag: str) -> None:
        self.kind = ""

    def handle_data(self, data: str) -> None:
        self.texts.append((self.kind, data))


def plain_text(code: Code) -> str:
    return "".join(text for _, text in Spans(code).texts)


def test_classes_agree_with_python_tokenizer() -> None:
    # The module has no f-strings, which Python 3.11 reads as one token and Pygments as several.
    source = Path(lab.__file__).read_text(encoding="utf-8")
    words = {"c": "", "k": "", "s": ""}
    for kind, text in Spans(Code(source)).texts:
        if kind in words:
            words[kind] += text
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    strings = [token.string for token in tokens if token.type == tokenize.STRING]
    keywords = [token.string for token in tokens if token.type == tokenize.NAME and keyword.iskeyword(token.string)]
    assert words["c"] == "".join(comments)
    assert "".join(words["s"].split()) == "".join("".join(strings).split())
    assert words["k"].replace(" ", "") == "".join(keywords)


def test_lines_match_the_source() -> None:
    source = '\n\ndef f():\n\n    """Two\n    lines."""\n    return 1\n'
    assert plain_text(Code(source)) == source.strip("\n")


@settings(deadline=None)
@given(
    st.text(st.characters(exclude_characters="\t")), st.sampled_from(["python", "sql", "unknown", "", "bash", "json"])
)
def test_any_text_in_any_language_is_preserved(source: str, language: str) -> None:
    assert plain_text(Code(source, language)) == strip_control_chars(source).strip("\n")
