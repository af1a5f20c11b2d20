"""Chromabox colourises greyscale images and detects objects.

In Python, use ``chromabox.colourise(image)`` and ``chromabox.detect(image)``. Both are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chromabox.colour.api import colourise
    from chromabox.detect.api import detect

__all__ = ["__version__", "colourise", "detect"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import ``colourise`` and ``detect`` on first use."""
    if name == "colourise":
        from chromabox.colour.api import colourise

        return colourise
    if name == "detect":
        # The package ``chromabox.detect`` is callable. Importing it also sets the attribute ``detect``.
        return import_module("chromabox.detect")
    raise AttributeError(f"module 'chromabox' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
