"""Chromabox colours grey pictures by classifying every pixel into a palette.

``chromabox.colourise(image)`` does it from Python; it is imported when it is first asked for, and torch with it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chromabox.colour.colourise import colourise

__all__ = ["__version__", "colourise"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Names whose modules are heavy."""
    if name == "colourise":
        from chromabox.colour.colourise import colourise

        return colourise
    raise AttributeError(f"module 'chromabox' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
