"""Highlighted source code: the text is preserved, and the kinds agree with Python's tokenizer."""

import io
import keyword
import tokenize
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from chromabox.colour.chroma import lab
from chromabox.report.document.layout import highlight_lines, strip_control_chars
from chromabox.report.document.model import Code


def plain_text(code: Code) -> str:
    return "\n".join("".join(text for _, text in line) for line in highlight_lines(code))


def test_kinds_agree_with_python_tokenizer() -> None:
    # The module has no f-strings, which Python 3.11 reads as one token and Pygments as several.
    source = Path(lab.__file__).read_text(encoding="utf-8")
    kinds = {"comment": "", "keyword": "", "string": ""}
    for line in highlight_lines(Code(source)):
        for kind, text in line:
            if kind in kinds:
                kinds[kind] += text
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    strings = [token.string for token in tokens if token.type == tokenize.STRING]
    keywords = [token.string for token in tokens if token.type == tokenize.NAME and keyword.iskeyword(token.string)]
    assert kinds["comment"] == "".join(comments)
    assert kinds["string"].replace(" ", "") == "".join(strings).replace("\n", "").replace(" ", "")
    assert kinds["keyword"].replace(" ", "") == "".join(keywords)


def test_lines_match_the_source() -> None:
    source = '\n\ndef f():\n\n    """Two\n    lines."""\n    return 1\n'
    assert plain_text(Code(source)) == source.strip("\n")


@given(
    st.text(st.characters(exclude_characters="\t")), st.sampled_from(["python", "sql", "unknown", "", "bash", "json"])
)
def test_any_text_in_any_language_is_preserved(source: str, language: str) -> None:
    assert plain_text(Code(source, language)) == strip_control_chars(source).strip("\n")
