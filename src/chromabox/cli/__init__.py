"""The verbs: parse, call, print. No work is done here, and torch is imported only by the verb that needs it."""

from collections.abc import Callable

import tyro

from chromabox.cli.checking import check
from chromabox.cli.colouring import colour, demo, export, score
from chromabox.cli.counting import count, geometry
from chromabox.cli.detecting import detect, weights
from chromabox.cli.finetuning import finetune
from chromabox.cli.palettes import data, palette
from chromabox.cli.reporting import report
from chromabox.cli.sweeping import sweep
from chromabox.cli.training import compare, evaluate, train

VERBS: dict[str, Callable[..., int]] = {
    "data": data,
    "palette": palette,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "sweep": sweep,
    "colour": colour,
    "score": score,
    "export": export,
    "weights": weights,
    "detect": detect,
    "finetune": finetune,
    "count": count,
    "geometry": geometry,
    "check": check,
    "report": report,
    "demo": demo,
}


def run(arguments: list[str] | None = None) -> int:
    """Parse and obey; returns the exit code."""
    return tyro.extras.subcommand_cli_from_dict(
        VERBS,
        prog="chromabox",
        description="Colour grey pictures with small networks that choose every pixel's colour from a palette, and "
        "find things in pictures. Start with: chromabox demo · chromabox colour photo.jpg -o coloured.jpg · "
        "chromabox detect photo.jpg -o found.jpg",
        args=arguments,
    )
