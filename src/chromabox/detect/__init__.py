"""The second wing: a picture in, boxes out.

The package can be called: ``chromabox.detect(image)`` is :func:`chromabox.detect.api.detect`. A function of that name
beside the package could not be, since importing any of its modules puts the package itself in that place.
"""

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """This package, which does its main work when it is called; torch is imported only then."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from chromabox.detect.api import detect

        return detect(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
