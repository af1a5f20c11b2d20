"""Numbers of fine-tuning runs as the answers state them, and names as they may stand in a text."""

from pathlib import Path
from typing import Any

from chromabox.report.found import summary_of
from chromabox.report.written.document import Number


def in_summary(run: Path, *keys: str, spec: str = ",.0f", scale: float = 1.0) -> Number:
    """A number of a run's summary; "–" where there is none."""
    value: Any = summary_of(run)
    for key in keys:
        value = value[key]
    given = float("nan") if value is None else scale * float(value)
    return Number(given, f"{run}/summary.json: {' > '.join(keys)}", spec)


def literal(text: str) -> str:
    """Text that a template shows as it is."""
    return text.replace("{", "{{").replace("}", "}}")


def last_part(place: str) -> str:
    """The name of a file, folder or published set, without where it lies."""
    return literal(Path(place).name)
