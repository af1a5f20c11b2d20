"""Execution of those parts of a student's file or notebook that a class requires, and construction of its models.

A top-level import, assignment, function or class is executed if it binds a name that a requested class requires,
directly or indirectly. Loops and bare calls are skipped, so that the training, plotting and installation code of a
notebook never runs.
"""

import __future__

import ast
import builtins
import inspect
import json
import re
import symtable
import sys
import tokenize
import traceback
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

#: Kinds of statements that may be executed.
DEFINITION_STATEMENTS = (
    *(ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef),
    *(ast.Assign, ast.AnnAssign, ast.AugAssign, ast.If, ast.Try),
)

#: Lines in IPython syntax: magics, shell commands and requests for help.
MAGIC = re.compile(r"^(\s*)[%!?].*$|^(\s*)[\w.]+\?{1,2}\s*$", re.MULTILINE)
ASSIGNED_MAGIC = re.compile(r"^(\s*[\w, ]+=\s*)[%!].*$", re.MULTILINE)
#: Start of a notebook cell in another language, for example ``%%bash``.
OTHER_LANGUAGE = re.compile(r"\s*%%(?!time|capture|prun|python)")


@dataclass(frozen=True)
class Statement:
    """A top-level statement with the names that it binds and the names that it needs."""

    node: ast.stmt
    binds: set[str]
    needs: set[str]
    filename: str
    """Origin for error messages: ``mine.py`` or, for a notebook, ``code cell 3 of mine.ipynb``."""


def read_source(path: Path) -> tuple[list[Statement], list[str]]:
    """Return the statements of a .py file or notebook (.ipynb, nbformat 4), and warnings about skipped cells.

    A notebook cell that is not valid Python is skipped with a warning. Raise ValueError, SyntaxError or OSError if the
    file cannot be read.
    """
    if path.suffix.lower() != ".ipynb":
        with tokenize.open(path) as file:
            return _parse_statements(file.read(), path.name), []
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("expected a notebook in nbformat 4") from error
    statements, warnings = list[Statement](), []
    for number, text in enumerate(texts, 1):
        if OTHER_LANGUAGE.match(text):
            continue
        filename = f"code cell {number} of {path.name}"
        try:
            statements += _parse_statements(text, filename)
        except SyntaxError as error:
            warnings.append(f"skipped {filename}: {error.msg} in line {error.lineno}")
    return statements, warnings


def _parse_statements(text: str, filename: str) -> list[Statement]:
    """Parse source code. An import of several names becomes one statement per name, so that each can fail on its own.

    If the text is not valid Python, IPython magics are replaced by ``pass`` or ``None``, to preserve line numbers.
    """
    try:
        tree = ast.parse(text, filename)
    except SyntaxError:
        text = MAGIC.sub(lambda match: f"{match[1] or match[2] or ''}pass", ASSIGNED_MAGIC.sub(r"\1None", text))
        tree = ast.parse(text, filename)
    nodes = list[ast.stmt]()
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            nodes += [type(node)(**{**vars(node), "names": [name]}) for name in node.names]
        else:
            nodes.append(node)
    return [_analyse_statement(node, filename) for node in nodes]


def _analyse_statement(node: ast.stmt, filename: str) -> Statement:
    table = symtable.symtable(ast.unparse(node), filename, "exec")
    binds, needs, tables = set[str](), set[str](), [table]
    for symbol in table.get_symbols():
        if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace():
            binds.add(symbol.get_name())
        if symbol.is_referenced():
            needs.add(symbol.get_name())
    while tables:
        nested = tables.pop().get_children()
        needs |= {symbol.get_name() for child in nested for symbol in child.get_symbols() if symbol.is_global()}
        tables += nested
    # ``UNet.forward = forward`` and ``settings["kernel"] = 3`` modify an object that a name refers to.
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
    for target in targets:
        while isinstance(target, (ast.Attribute, ast.Subscript)):
            target = target.value
        binds |= {target.id} if isinstance(target, ast.Name) else set()
    return Statement(node, binds, needs, filename)


def required_statements(statements: Sequence[Statement], names: Iterable[str]) -> list[Statement]:
    """Return the statements that define the names and everything that these definitions need, in file order.

    ``from x import *`` is included only if no other statement defines one of the required names.
    """
    required, visited = set(names), set[str]()
    definitions = [statement for statement in statements if isinstance(statement.node, DEFINITION_STATEMENTS)]
    while required - visited:
        visited |= required
        required |= set().union(*(statement.needs for statement in definitions if statement.binds & required))
    undefined = required - set().union(*(statement.binds for statement in definitions)) - set(dir(builtins))
    return [
        statement
        for statement in definitions
        if statement.binds & required
        or (undefined and isinstance(statement.node, ast.ImportFrom) and statement.node.names[0].name == "*")
    ]


def exec_required(
    statements: Sequence[Statement], names: Iterable[str], path: Path
) -> tuple[types.ModuleType, list[str]]:
    """Execute, in a new module, the statements that define the names and everything that these definitions need.

    Return the module and warnings about failed statements. The folder of the file is appended to the module search
    path, so that modules in this folder can be imported but do not shadow installed modules.
    """
    module = types.ModuleType("student")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    sys.path.append(str(path.parent))
    warnings = []
    for statement in required_statements(statements, names):
        # Annotations are not evaluated, because the file may contain ``from __future__ import annotations``.
        tree, flags = ast.Module([statement.node], []), __future__.annotations.compiler_flag
        code = compile(tree, statement.filename, "exec", flags, dont_inherit=True)
        try:
            exec(code, vars(module))  # the user has asked for the execution of this file
        except BaseException as error:  # code under test may raise any error, including SystemExit
            first_line = ast.unparse(statement.node).splitlines()[0]
            warnings.append(
                f"skipped line {statement.node.lineno} of {statement.filename}: `{first_line}` {describe_error(error)}"
            )
    return module, warnings


def describe_error(error: BaseException, filenames: Iterable[str] = ()) -> str:
    """Describe an error on one line, with its innermost traceback line in one of the files ``filenames``, if any."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "exceeded the memory limit"
    if isinstance(error, SystemExit):
        description = f"called sys.exit({error.code!r})" if error.code is not None else "called sys.exit()"
    else:
        message = " ".join(str(error).split())
        description = f"raised {type(error).__name__}{f': {message[:300]}' if message else ''}"
    frames = [(line, frame.f_code.co_filename) for frame, line in traceback.walk_tb(error.__traceback__)]
    lines = [f" (line {line} of {filename})" for line, filename in frames if filename in filenames]
    return description + "".join(lines[-1:])


#: Parameters of the models of figure 1, in the order of the assignment's notebook.
ROLES = ("kernel", "num_filters", "num_colours", "num_in_channels")
DEFAULT_SIZES: Mapping[str, int] = dict(zip(ROLES, (3, 32, 24, 1), strict=True))

#: Patterns of parameter names, and the size to which the names refer, if any. The first matching pattern applies.
NAME_PATTERNS = {
    ".*(dilation|padding)": None,
    "ks?$|.*kernel": "kernel",
    "nf$|.*(filter|feature|hidden)": "num_filters",
    "nc$|.*(colo|class|out)": "num_colours",
    "nic$|.*(in|channel)": "num_in_channels",
}


def guess_role(name: str) -> str | None:
    """Return the size in :data:`ROLES` to which a parameter name refers, or None if the name is not recognised."""
    normalised = name.casefold().replace("_", "")
    return next((role for pattern, role in NAME_PATTERNS.items() if re.match(pattern, normalised)), None)


def bind_constructor(
    model_class: Callable[..., nn.Module], name: str
) -> tuple[Callable[[Mapping[str, int]], nn.Module], str, tuple[str, ...]]:
    """Assign the sizes in :data:`ROLES` to constructor parameters.

    Parameters are recognised by their names. If some names are unknown, the order of the assignment is used instead.

    Return a function that builds the model for given sizes, the constructor call as text, for example
    ``UNet(kernel, num_filters, num_colours, num_in_channels)``, and the sizes that cannot be set.

    Raise TypeError if the names do not identify all sizes and contradict the order of the assignment.
    """
    # A class without __init__ takes no sizes, although the signature of nn.Module.__init__ has *args.
    has_init = getattr(model_class, "__init__", None) is not nn.Module.__init__
    signature = inspect.signature(model_class) if has_init else inspect.Signature()
    parameters = signature.parameters.values()
    guesses = {one.name: guess_role(one.name) for one in parameters if one.kind != one.POSITIONAL_ONLY}
    roles = {parameter: role for parameter, role in guesses.items() if role}
    try:
        by_position = signature.bind(*ROLES).arguments
    except TypeError:
        by_position = {}
    if len(set(roles.values())) == len(roles) and (len(roles) == len(ROLES) or not by_position):
        return (
            lambda sizes: model_class(**{parameter: sizes[role] for parameter, role in roles.items()}),
            f"{name}({', '.join(roles)})",
            tuple(role for role in ROLES if role not in roles.values()),
        )
    if not by_position or any(roles.get(parameter, role) != role for parameter, role in by_position.items()):
        raise TypeError(
            f"it is not clear which of the parameters {', '.join(signature.parameters)} are {', '.join(ROLES)}; use "
            "these four names, or this order of parameters"
        )
    arguments = [f"{key}={role}" if isinstance(role, str) else ", ".join(role) for key, role in by_position.items()]
    return lambda sizes: model_class(*map(sizes.get, ROLES)), f"{name}({', '.join(arguments)})", ()
