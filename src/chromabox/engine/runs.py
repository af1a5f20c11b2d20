"""What a run is made with and what it takes of the machine, for its ``config.json`` and ``summary.json``."""

import platform
import resource
import sys
from importlib.metadata import version
from pathlib import Path

#: Of Linux alone.
PROC_STATUS = Path("/proc/self/status")


def package_versions() -> dict[str, str]:
    """Of Python, of this package, and of the libraries whose numbers a run depends on."""
    packages = ("chromabox", "torch", "numpy", "scikit-image", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def peak_memory_bytes() -> int:
    """The most memory, in bytes, that this process has had at once."""
    # Linux' own count by process; the portable one begins with what the parent had when it started the process.
    status = PROC_STATUS.read_text().splitlines() if PROC_STATUS.is_file() else []
    for line in status:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
