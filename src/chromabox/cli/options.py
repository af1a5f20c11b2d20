"""Options that several commands share, and how options appear in the help."""

import logging
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from tyro.conf import arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from chromabox.engine.options import RuntimeOptions

log = logging.getLogger(__name__)

DEFAULT_RUNTIME = RuntimeOptions()


def option(metavar: str, default: str | None = None, *, short: str | None = None, name: str | None = None) -> Any:
    """Return the annotation of an option.

    Args:
        metavar: the placeholder of the value in the help, such as ``PATH``.
        default: the default in words, or ``required`` with a condition. None shows the default value itself.
        short: a second name, such as ``-o``.
        name: the name of the option, if it differs from the name of the field.
    """
    hint = None
    if default is not None:
        hint = f"({default})" if default.startswith("required") else f"(default: {default})"
    return arg(metavar=metavar, help_behavior_hint=hint, aliases=(short,) if short else None, name=name)


Integer = Annotated[int, option("N")]
Float = Annotated[float, option("X")]
OutputPath = Annotated[Path, option("PATH", short="-o")]
DataName = Annotated[str, option("NAME|FOLDER")]
PaletteName = Annotated[str, option("NAME|PATH")]
Seeds = Annotated[tuple[int, ...], option("N ...")]


def value_registry() -> ConstructorRegistry:
    """Return the rules that parse numbers, words of a fixed set, optional values of these types, and all lists.

    The error for an invalid value states the value and what is expected.
    """
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def parse_value(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        members = get_args(info.type) if NoneType in get_args(info.type) else (info.type,)
        kinds = [member for member in members if member is not NoneType]
        kind: Any = kinds[0] if len(kinds) == 1 else None
        is_list = get_origin(kind) is tuple and get_args(kind)[1:] == (...,)
        item = get_args(kind)[0] if is_list else kind
        choices = get_args(item) if get_origin(item) is Literal else ()
        if not choices and item not in ((int, float, str, Path) if is_list else (int, float)):
            return None
        expected = f"one of {', '.join(choices)}" if choices else "a whole number" if item is int else "a number"

        def convert(text: str) -> Any:
            try:
                return choices[choices.index(text)] if choices else item(text)
            except ValueError:
                raise ValueError(f"is {text!r}: expected {expected}") from None

        def convert_list(texts: list[str]) -> tuple[Any, ...]:
            if not texts:
                raise ValueError("is empty: expected at least one value")
            return tuple(map(convert, texts))

        return PrimitiveConstructorSpec(
            nargs="*" if is_list else 1,
            metavar="{" + ",".join(choices) + "}" if choices else item.__name__.upper(),
            instance_from_str=convert_list if is_list else lambda texts: convert(texts[0]),
            is_instance=lambda value: True,
            str_from_instance=lambda value: [str(item) for item in value] if is_list else [str(value)],
        )

    return registry


def log_lines(*lines: object) -> None:
    """Log several lines. Each line is a record, because line breaks inside a record are escaped."""
    for line in lines:
        log.info(line)


def absolute_path(name: str) -> str:
    """Return the absolute path of an existing file or folder, and any other name unchanged."""
    return str(Path(name).resolve()) if Path(name).exists() else name
