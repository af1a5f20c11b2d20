"""The verb that holds a student's own networks beside figure 1."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def check(
    file: Annotated[Positional[Path], arg(metavar="FILE")],
    *,
    time: float = 60.0,
    memory: float = 4.0,
    json: Path | None = None,
) -> int:
    """Check your own PoolUpsampleNet, ConvTransposeNet and UNet against figure 1 of the assignment, layer by layer.

    FILE is a .py file or a notebook. It IS EXECUTED, in a process of its own with limits of time and memory; that is
    no sandbox, so check only code that you would run yourself. Of its top level only what the classes need is run:
    imports, constants, functions and classes, no training. To look a labelled set for the detector over, use
    chromabox data check.

    The exit code is 0 if all that is there matches, 1 if something differs or crashes, 2 if the file cannot be checked.

    chromabox check a2-code.ipynb

    chromabox check my_nets.py --time 120 --json found.json

    Args:
        file: Your .py or .ipynb file with one or more of the three classes.
        time: Seconds after which the process is ended.
        memory: GB that it may take (where the system can limit it).
        json: Also write everything that was found into this .json file.
    """
    from chromabox.assignment.check.runner import report_self_check

    return 0 if report_self_check(file, seconds=time, gigabytes=memory, output=json).matches else 1
