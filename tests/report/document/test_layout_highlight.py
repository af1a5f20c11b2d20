"""Source in coloured lines: the text is kept to the letter, the kinds are Python's own tokeniser's."""

import io
import keyword
import tokenize
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from chromabox.report.document import layout as highlight
from chromabox.report.document.inline import strip_control_chars
from chromabox.report.document.layout import highlight_lines
from chromabox.report.document.model import Code


def text_of(code: Code) -> str:
    return "\n".join("".join(text for _, text in line) for line in highlight_lines(code))


def test_kinds_agree_with_pythons_tokeniser() -> None:
    source = Path(highlight.__file__).read_text(encoding="utf-8")
    kinds = {"comment": "", "keyword": "", "string": ""}
    for line in highlight_lines(Code(source)):
        for kind, text in line:
            if kind in kinds:
                kinds[kind] += text
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    comments = [one.string for one in tokens if one.type == tokenize.COMMENT]
    strings = [one.string for one in tokens if one.type == tokenize.STRING]
    keywords = [one.string for one in tokens if one.type == tokenize.NAME and keyword.iskeyword(one.string)]
    assert kinds["comment"] == "".join(comments)
    assert kinds["string"].replace(" ", "") == "".join(strings).replace("\n", "").replace(" ", "")
    assert kinds["keyword"].replace(" ", "") == "".join(keywords)


def test_lines_are_the_sources_lines() -> None:
    source = '\n\ndef f():\n\n    """Two\n    lines."""\n    return 1\n'
    assert text_of(Code(source)) == source.strip("\n")


@given(
    st.text(st.characters(exclude_characters="\t")), st.sampled_from(["python", "sql", "no such", "", "bash", "json"])
)
def test_any_text_in_any_language_is_kept(source: str, language: str) -> None:
    assert text_of(Code(source, language)) == strip_control_chars(source).strip("\n")
