"""The verbs: parse, call, print. No work is done here, and torch is imported only by the verb that needs it."""

from collections.abc import Callable

import tyro

from chromabox.cli.assignment import check, count, demo, padding, report
from chromabox.cli.colour import colour, score
from chromabox.cli.data import data, export, palette, weights
from chromabox.cli.detect import detect
from chromabox.cli.experiments import compare, sweep
from chromabox.cli.finetune import finetune
from chromabox.cli.train import evaluate, train

COMMANDS: dict[str, Callable[..., int]] = {
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
    "geometry": padding,
    "check": check,
    "report": report,
    "demo": demo,
}


def run_cli(args: list[str] | None = None) -> int:
    """Parse and obey; returns the exit code."""
    return tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="chromabox",
        description="Colour grey pictures with small networks that choose every pixel's colour from a palette, and "
        "find things in pictures. Start with: chromabox demo · chromabox colour photo.jpg -o coloured.jpg · "
        "chromabox detect photo.jpg -o found.jpg",
        args=args,
    )
