"""Numbers and texts in templates, addressed by dotted paths."""

import math
from dataclasses import dataclass

import pytest

from chromabox.report.document.layout import parse_inline, to_text
from chromabox.report.document.model import Number, Source, Text


@dataclass
class Score:
    values: tuple[float, ...]


SOURCE = Source(
    {"net": {"grey detail": 0.254, "lost": None, "name": "a {b} net"}, "score": Score((0.5, 1234.5))}, "a.json: "
)


@pytest.mark.parametrize(
    ("path", "value", "printed", "source"),
    [
        ("net.grey detail:.2f", 0.254, "0.25", "a.json: net > grey detail"),
        ("net.grey detail:.1%", 25.4, "25.4 %", "a.json: net > grey detail"),
        ("score.values.0:+.0%", 50.0, "+50 %", "a.json: score > values > 0"),
        ("score.values.-1:,.1f", 1234.5, "1,234.5", "a.json: score > values > -1"),
        ("score.values.1", 1234.5, "1,234", "a.json: score > values > 1"),
        ("net.lost:.1%", math.nan, "– %", "a.json: net > lost"),
    ],
)
def test_paths_give_value_format_and_source(path: str, value: float, printed: str, source: str) -> None:
    text = Text(f"It is {{x.{path}}}, {{{{see}}}}.", x=SOURCE)
    [number] = text.numbers.values()
    assert number.value == pytest.approx(value, nan_ok=True)
    assert number.source == source
    assert str(text) == f"It is {printed}, {{see}}."
    assert to_text(parse_inline(text)).replace("\u00a0", " ") == str(text)


def test_texts_and_numbers_are_inserted() -> None:
    one = Number(1.0, "b.json: one", ".1f")
    text = Text(
        "`{x.net.name}` {verdict}: {n} {rows.first.loss}",
        {"n": one},
        x=SOURCE,
        verdict="{ok}",
        rows={"first": {"loss": one}},
    )
    assert str(text) == to_text(parse_inline(text)).replace("a {b} net", "`a {b} net`") == "`a {b} net` {ok}: 1.0 1.0"
    assert text.numbers == {"n": one, "rows.first.loss": one}


@pytest.mark.parametrize(("template", "values"), [("{a}", {}), ("a", {"a": "text"}), ("{a.b} {c}", {"a": SOURCE})])
def test_values_must_be_those_of_the_template(template: str, values: dict) -> None:
    with pytest.raises(ValueError, match="the template uses"):
        Text(template, values)


def test_number_with_two_formats_is_rejected() -> None:
    with pytest.raises(ValueError, match="two formats"):
        Text("{x.score.values.0:.1f} {x.score.values.0:.2f}", x=SOURCE)
