"""The command line: find the command, parse its arguments, run it.

A command is the function of the same name in a module of this package. Only the module of the given command is
imported, and PyTorch is imported only when the command starts its work. This keeps the help fast.
"""

import functools
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from importlib import import_module
from inspect import cleandoc
from io import StringIO
from typing import Any, NamedTuple

from chromabox.errors import UsageError, escape_unprintable


class Command(NamedTuple):
    """A command: the module that contains its function, and the first line of the function's docstring."""

    module: str
    summary: str


#: The commands, grouped as in the help.
GROUPS: Mapping[str, Mapping[str, Command]] = {
    "Use": {
        "colour": Command("colour", "Colourise images, folders of images and videos."),
        "detect": Command("detect", "Detect objects in images, folders and videos."),
        "verify": Command("colour", "Check that a colourised image kept the original lightness."),
        "score": Command("colour", "Compare colourised images with their originals."),
    },
    "Train": {
        "train": Command("train", "Train a colourisation model."),
        "finetune": Command("detect", "Fine-tune a detector on a labelled dataset."),
        "evaluate": Command("train", "Evaluate a colourisation model or a detector."),
        "compare": Command("experiments", "Train several models with several seeds and compare them."),
        "sweep": Command("experiments", "Train one model with several values of one hyperparameter."),
    },
    "Data and models": {
        "data": Command("data", "Download, validate or create a dataset."),
        "palette": Command("data", "Fit a palette to images, or draw a palette."),
        "weights": Command("data", "Download or convert detector weights."),
        "export": Command("data", "Export a model to ONNX."),
    },
    "Assignment": {
        "report": Command("assignment", "Write a report on training runs, or run the whole assignment."),
        "check": Command("assignment", "Check your own networks against figure 1 of the assignment."),
        "count": Command("assignment", "Count the weights, outputs and connections of a model."),
        "padding": Command("assignment", "Find the paddings that preserve the assignment's shapes (figure 1b)."),
        "demo": Command("assignment", "Demonstrate the main features on real data in a few minutes."),
    },
}
COMMANDS: Mapping[str, Command] = {name: command for group in GROUPS.values() for name, command in group.items()}

# Earlier names, which are accepted but not shown in the help.
_OLD_COMMANDS = {"geometry": "padding"}
# fmt: off
_OLD_OPTIONS = {
    "--net": "--model", "--nets": "--models", "--filters": "--num-filters", "--compiled": "--compile",
    "--lock": "--allow", "--leave-grey-below": "--min-confidence", "--smoothing": "--temporal-smoothing",
    "--again": "--overwrite", "--no-again": "--no-overwrite", "--hold-out": "--val-fraction", "--start": "--init",
    "--batch": "--batch-size", "--views": "--cached-views", "--retain": "--retention-data", "--kind": "--variant",
    "--test": "--sanity-check", "--no-test": "--no-sanity-check", "--time": "--timeout", "--memory": "--memory-limit",
    "--others": "--count-activations", "--no-others": "--no-count-activations",
}
# A key is a pair of an option, or of a command with subcommands, and an earlier value.
_OLD_VALUES = {
    ("--compile", "yes"): "on", ("--compile", "no"): "off", ("--format", "pictures"): "images",
    ("--channels-last", "yes"): "on", ("--channels-last", "no"): "off", ("data", "collage"): "synth",
}
# fmt: on

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


class _PrintHandler(logging.Handler):
    """Print information to standard output, and warnings to standard error, one line per record."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record, and flush the stream so that a pipe or a log file receives the line at once."""
        message = escape_unprintable(record.getMessage())
        if record.levelno >= logging.WARNING:
            print(f"chromabox: {message}", file=sys.stderr, flush=True)
        else:
            print(message, flush=True)


def run_cli(args: Sequence[str] | None = None) -> int:
    """Parse ``args``, run the command and return its exit code. The default of ``args`` is ``sys.argv[1:]``.

    Raise UsageError for an unknown command. Invalid options end the process with exit code 2.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args:
        raise UsageError("no command given; see chromabox --help")
    for previous, argument in zip(["", *args], args, strict=False):
        if argument == "" or (argument.startswith("--") and argument.endswith("=")):
            name = argument[:-1] or (previous if previous.startswith("-") else "")
            if name:
                raise UsageError(f'{name}: is empty (""); expected a value')
            raise UsageError('an argument without an option is empty (""); expected a path or a name')
    if args[0] in ("-h", "--help"):
        groups = (
            f"{title}:\n" + "".join(f"  {name:8}  {command.summary}\n" for name, command in commands.items())
            for title, commands in GROUPS.items()
        )
        print(_HELP.format(commands="\n".join(groups)))
        return 0
    if args[0] == "--version":
        from chromabox import __version__

        print(f"chromabox {__version__}")
        return 0
    name = _OLD_COMMANDS.get(args[0], args[0])
    if name not in COMMANDS:
        raise UsageError(f"{args[0]}: unknown command; expected one of {', '.join(COMMANDS)}")
    logger = logging.getLogger("chromabox")
    logger.handlers = [_PrintHandler()]
    logger.setLevel(logging.INFO)
    # Otherwise, Python prints matplotlib's messages about its cache folder and its list of fonts.
    logging.getLogger("matplotlib").addHandler(logging.NullHandler())
    function = getattr(import_module(f"chromabox.cli.{COMMANDS[name].module}"), name)
    description, _, rest = cleandoc(function.__doc__).partition("\nExamples:\n")
    arguments = with_current_names(name, args[1:])
    try:
        run = _parse(function, f"chromabox {name}", description.strip(), arguments)
    except SystemExit:  # The help was printed.
        print("\nExamples:\n" + rest.partition("\n\n")[0])
        raise
    try:
        return run()
    except UsageError as error:
        # A function that can also be called from Python names its parameter "num_workers", not "--num-workers".
        parameter, _, problem = str(error).partition(" ")
        option = f"--{parameter.replace('_', '-')}"
        if any(argument.partition("=")[0] == option for argument in arguments):
            raise UsageError(f"{option} {problem}") from error
        raise


def _parse(function: Callable[..., int], prog: str, description: str, arguments: list[str]) -> Callable[[], int]:
    """Return the command with its arguments. Raise UsageError for invalid arguments, and SystemExit after the help."""
    import tyro

    from chromabox.cli.options import value_registry

    @functools.wraps(function)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], int]:
        return functools.partial(function, *args, **kwargs)

    # A command has several parameters, or one named "args" whose type defines the options.
    args_type = function.__annotations__.get("args")
    printed = StringIO()
    try:
        with value_registry(), redirect_stderr(printed):
            result = tyro.cli(args_type or bind, prog=prog, description=description, args=arguments)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise UsageError(f"{_message_in_box(printed.getvalue())}; see {prog} --help") from None
    return result if args_type is None else functools.partial(function, result)


def _message_in_box(box: str) -> str:
    """Return the message in a box of text that tyro printed, as one line. References to the help are left out."""
    sections = [""]
    for line in re.sub(r"\x1b\[[\d;]*m", "", box).splitlines()[1:]:  # Without colours, and without the title.
        words = line.strip("│| ")
        if set(words) <= set("─-╰╯+"):  # A line between two sections.
            sections.append("")
        else:
            sections[-1] = f"{sections[-1]} {words}".lstrip()
    sections = [text.rstrip(".") for text in sections if text and not text.startswith(("For full", "Argument help"))]
    return re.sub(r"^Error parsing \[?([^]:]+)\]?:", r"\1", "; ".join(sections))


def with_current_names(command: str, args: Sequence[str]) -> list[str]:
    """Return the arguments of a command with earlier names of options, subcommands and values replaced."""
    current: list[str] = []
    option = ""
    for position, argument in enumerate(args):
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            option = _OLD_OPTIONS.get(name, name)
            current.append(option + equals + _OLD_VALUES.get((option, value), value))
        else:
            key = command if position == 0 else option
            current.append(_OLD_VALUES.get((key, argument), argument))
    return current
