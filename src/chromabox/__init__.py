"""Chromabox colours grey pictures by classifying every pixel into a palette, and finds things in pictures.

``chromabox.colourise(image)`` and ``chromabox.detect(image)`` do it from Python; each is imported when it is first
asked for, and torch with it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chromabox.colour.api import colourise
    from chromabox.detect.api import detect

__all__ = ["__version__", "colourise", "detect"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Names whose modules are heavy."""
    if name == "colourise":
        from chromabox.colour.api import colourise

        return colourise
    if name == "detect":
        # The wing itself, which can be called; it is this module's attribute from now on.
        return import_module("chromabox.detect")
    raise AttributeError(f"module 'chromabox' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
