"""Every number of a write-up with its source, for machines."""

import json
import math
from pathlib import Path
from typing import Any

from chromabox.io.atomic import write_whole
from chromabox.report.written.document import Document, Missing
from chromabox.report.written.spans import clean


def write_numbers(document: Document, path: Path) -> Path:
    """Write ``title``, ``about``, ``numbers`` and ``missing`` as JSON, whole or not at all, and return the path.

    Of a number: ``section`` (its key, empty in the abstract), ``name``, ``value``, ``printed``, ``source``, ``spread``.
    What is no finite number is null, since JSON has no word for it; ``printed`` shows it. OSErrors are the caller's.
    """
    content = {
        "title": clean(document.title),
        "about": {clean(name): clean(value) for name, value in document.about.items()},
        "numbers": [
            {
                "section": clean(key),
                "name": clean(name),
                "value": _finite(number.value),
                "printed": str(number),
                "source": clean(number.source),
                "spread": _finite(number.spread),
            }
            for key, name, number in document.numbers()
        ],
        "missing": _missing(document),
    }
    with write_whole(path) as aside:
        aside.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    return path


def _missing(document: Document) -> list[dict[str, Any]]:
    parts = (("", document.abstract), *((section.key, section.blocks) for section in document.sections))
    return [
        {"section": clean(key), "what": clean(block.what), "command": clean(block.command)}
        for key, blocks in parts
        for block in blocks
        if isinstance(block, Missing)
    ]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
