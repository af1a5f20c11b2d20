"""Object detection: bounding boxes and classes of the objects in images.

The package is callable: ``chromabox.detect(image)`` calls :func:`chromabox.detect.api.detect`. A function
``chromabox.detect`` would be replaced by the package as soon as one of the package's modules is imported.
"""

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """Module type that makes this package callable. PyTorch is imported only on the first call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from chromabox.detect.api import detect

        return detect(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
