"""The command line: find the command, parse its arguments, run it.

A command is the function of the same name in a module of this package. Only the module of the command that runs is
imported, and PyTorch only when its work begins, which keeps the help fast.
"""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from inspect import cleandoc

from chromabox.errors import UsageError


@dataclass(frozen=True)
class Command:
    """A command: the module of its function and its line in the help, which is also the docstring's first line."""

    module: str
    summary: str
    old_options: Mapping[str, str] = field(default_factory=dict)
    """Earlier names of options: accepted, not shown."""


_OLD_RUNTIME = {"--compiled": "--compile"}

#: The commands in the groups of the help.
GROUPS: Mapping[str, Mapping[str, Command]] = {
    "Use": {
        "colour": Command(
            "colour",
            "Colourise images, folders of images and videos.",
            {
                "--net": "--model",
                "--lock": "--allow",
                "--leave-grey-below": "--min-confidence",
                "--again": "--overwrite",
                "--no-again": "--no-overwrite",
                "--smoothing": "--temporal-smoothing",
            },
        ),
        "detect": Command("detect", "Detect objects in images, folders and videos."),
        "score": Command("colour", "Compare colourised images with their originals."),
    },
    "Train": {
        "train": Command(
            "train",
            "Train a colourisation model.",
            {"--hold-out": "--val-fraction", "--start": "--init", "--filters": "--num-filters"} | _OLD_RUNTIME,
        ),
        "finetune": Command(
            "finetune",
            "Fine-tune a detector on a labelled dataset.",
            {"--batch": "--batch-size", "--views": "--cached-views", "--retain": "--retention-data"} | _OLD_RUNTIME,
        ),
        "evaluate": Command("train", "Evaluate a colourisation model or a detector."),
        "compare": Command(
            "experiments",
            "Train several models with several seeds and compare them.",
            {"--nets": "--models"} | _OLD_RUNTIME,
        ),
        "sweep": Command("experiments", "Train one model with several values of one parameter.", _OLD_RUNTIME),
    },
    "Data and models": {
        "data": Command("data", "Download, validate or create a dataset."),
        "palette": Command("data", "Fit a palette to images, or draw a palette."),
        "weights": Command(
            "data",
            "Download or convert detector weights.",
            {"--kind": "--variant", "--test": "--sanity-check", "--no-test": "--no-sanity-check"},
        ),
        "export": Command("data", "Export a model as ONNX."),
    },
    "Assignment": {
        "report": Command("assignment", "Write a report on runs, or run the complete assignment.", _OLD_RUNTIME),
        "check": Command(
            "assignment",
            "Check your own networks against figure 1 of the assignment.",
            {"--time": "--timeout", "--memory": "--memory-limit"},
        ),
        "count": Command(
            "assignment",
            "Count weights, outputs and connections of a model.",
            {"--filters": "--num-filters", "--others": "--count-activations", "--no-others": "--no-count-activations"},
        ),
        "padding": Command("assignment", "Find the paddings that preserve the shapes in figure 1b."),
        "demo": Command("assignment", "Demonstrate the main features on real data in a few minutes."),
    },
}
COMMANDS: Mapping[str, Command] = {name: command for group in GROUPS.values() for name, command in group.items()}

_OLD_COMMANDS = {"geometry": "padding"}
_OLD_SUBCOMMANDS = {("data", "collage"): "synth"}
_OLD_VALUES = {
    "--compile": {"yes": "on", "no": "off"},
    "--channels-last": {"yes": "on", "no": "off"},
    "--format": {"pictures": "images"},
}

_HELP = """\
usage: chromabox COMMAND [OPTIONS]

Colourise greyscale images and detect objects.

{commands}
Options:
  -h, --help  Show this help.
  --version   Show the version.

Examples:
  chromabox demo
  chromabox colour photo.jpg -o coloured.jpg
  chromabox detect photo.jpg -o annotated.jpg

For the options of a command, run: chromabox COMMAND --help"""


def run_cli(args: Sequence[str] | None = None) -> int:
    """Parse ``args`` (default: those of the process), run the command and return its exit code.

    Raise UsageError for an unknown command. Invalid options end the process with exit code 2.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args:
        raise UsageError("no command given; see chromabox --help")
    if args[0] in ("-h", "--help"):
        print(main_help())
        return 0
    if args[0] == "--version":
        from chromabox import __version__

        print(f"chromabox {__version__}")
        return 0
    name = _OLD_COMMANDS.get(args[0], args[0])
    if name not in COMMANDS:
        raise UsageError(f"{args[0]}: unknown command, expected one of {', '.join(COMMANDS)}")
    import tyro

    configure_logging()
    function = getattr(import_module(f"chromabox.cli.{COMMANDS[name].module}"), name)
    description, examples = _split_docstring(function.__doc__)
    with _examples_after_help(examples):
        return tyro.cli(
            function, prog=f"chromabox {name}", description=description, args=with_current_names(name, args[1:])
        )


class _PrintHandler(logging.Handler):
    """Print information to standard output, and warnings to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print at once, also into a pipe or a log file."""
        if record.levelno >= logging.WARNING:
            print(f"chromabox: {record.getMessage()}", file=sys.stderr, flush=True)
        else:
            print(record.getMessage(), flush=True)


def configure_logging() -> None:
    """Print the messages of the package."""
    logger = logging.getLogger("chromabox")
    logger.handlers = [_PrintHandler()]
    logger.setLevel(logging.INFO)


def main_help() -> str:
    """Return the text of ``chromabox --help``: one line per command."""
    width = max(map(len, COMMANDS))
    groups = (
        f"{title}:\n" + "".join(f"  {name:{width}}  {command.summary}\n" for name, command in commands.items())
        for title, commands in GROUPS.items()
    )
    return _HELP.format(commands="\n".join(groups))


def with_current_names(command: str, args: Sequence[str]) -> list[str]:
    """Return the arguments of a command with earlier names of options, subcommands and values replaced."""
    current: list[str] = []
    option = ""
    for position, argument in enumerate(args):
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            option = COMMANDS[command].old_options.get(name, name)
            current.append(option + equals + _OLD_VALUES.get(option, {}).get(value, value))
        elif position == 0:
            current.append(_OLD_SUBCOMMANDS.get((command, argument), argument))
        else:
            current.append(_OLD_VALUES.get(option, {}).get(argument, argument))
    return current


def _split_docstring(docstring: str | None) -> tuple[str, str]:
    """Return the description and the examples of a command."""
    description, _, rest = cleandoc(docstring or "").partition("\nExamples:\n")
    examples, _, _ = rest.partition("\n\n")
    return description.partition("\nArgs:\n")[0].strip(), examples


@contextmanager
def _examples_after_help(examples: str) -> Iterator[None]:
    """Print examples after the help, which ends the process with exit code 0."""
    try:
        yield
    except SystemExit as end:
        if end.code in (0, None):
            print(f"\nExamples:\n{examples}")
        raise
