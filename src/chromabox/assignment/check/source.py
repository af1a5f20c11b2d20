"""Execution of the parts of a student's file or notebook that a class requires, and calls of its constructor.

A top-level statement is executed if it binds a name that a requested class requires, directly or indirectly: imports,
constants, functions and classes. Loops and bare calls are skipped, so that the training, plotting and installation code
of a notebook never runs.

The arguments of a class's constructor are assigned by parameter name, else by trying orders of positional arguments.
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
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

#: Statements that define something and may be executed.
DEFINITION_STATEMENTS = (
    *(ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef),
    *(ast.Assign, ast.AnnAssign, ast.AugAssign, ast.If, ast.Try),
)

#: Lines of IPython syntax: magics, shell commands, help.
MAGIC = re.compile(r"^(\s*)[%!?].*$|^(\s*)[\w.]+\?{1,2}\s*$", re.MULTILINE)
ASSIGNED_MAGIC = re.compile(r"^(\s*[\w, ]+=\s*)[%!].*$", re.MULTILINE)


@dataclass(frozen=True)
class Statement:
    """A top-level statement, the names that it binds and needs, and its origin."""

    node: ast.stmt
    binds: frozenset[str]
    needs: frozenset[str]
    filename: str
    """Name for compilation, shown in error messages: the file name, or ``code cell 3 of`` the file name."""


@dataclass(frozen=True)
class ParsedSource:
    """Statements of a file, and warnings about parts that could not be parsed."""

    statements: list[Statement]
    warnings: list[str]

    def bound_names(self) -> set[str]:
        """Return all names that the statements define or import."""
        return set().union(*(statement.binds for statement in self.statements))

    def class_names(self) -> list[str]:
        """Return the names of the classes."""
        return [statement.node.name for statement in self.statements if isinstance(statement.node, ast.ClassDef)]


def read_source(path: Path) -> ParsedSource:
    """Read a .py file or a notebook (.ipynb, format 4).

    A notebook cell that is not valid Python is skipped with a warning. Raise ValueError, SyntaxError or OSError with
    the reason if the file cannot be read.
    """
    if path.suffix.lower() != ".ipynb":
        with tokenize.open(path) as file:
            text = file.read()
        return ParsedSource(_parse_statements(text, path.name), [])
    statements, warnings = [], []
    for number, text in enumerate(_read_code_cells(path), 1):
        filename = f"code cell {number} of {path.name}"
        try:
            statements += _parse_statements(text, filename)
        except SyntaxError as error:
            warnings.append(f"skipped {filename}: {error.msg} in line {error.lineno}")
    return ParsedSource(statements, warnings)


def _read_code_cells(path: Path) -> list[str]:
    """Return the text of every code cell; cells in another language (``%%bash``) are empty."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    try:
        cells = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
        texts = ["".join(source) for source in cells]
    except (KeyError, TypeError) as error:
        raise ValueError("expected a notebook of format 4") from error
    python_magics = ("%%time", "%%timeit", "%%capture", "%%prun", "%%python")
    return [
        text if not text.lstrip().startswith("%%") or text.lstrip().startswith(python_magics) else "" for text in texts
    ]


def _parse_statements(text: str, filename: str) -> list[Statement]:
    """Parse the statements of a text; magics are removed."""
    try:
        tree = ast.parse(text, filename)
    except SyntaxError:
        tree = ast.parse(_strip_magics(text), filename)
    return [_analyse_statement(node, filename) for statement in tree.body for node in _split_imports(statement)]


def _split_imports(node: ast.stmt) -> list[ast.stmt]:
    """Split an import into one statement for each name, so that a missing module does not affect the others."""
    if isinstance(node, ast.Import):
        return [ast.copy_location(ast.Import([name]), node) for name in node.names]
    if isinstance(node, ast.ImportFrom):
        imports = [ast.ImportFrom(node.module, [name], node.level) for name in node.names]
        return [ast.copy_location(statement, node) for statement in imports]
    return [node]


def _strip_magics(text: str) -> str:
    """Replace magics by ``pass`` and assigned magics by ``None``; line numbers do not change."""
    return MAGIC.sub(lambda match: f"{match[1] or match[2] or ''}pass", ASSIGNED_MAGIC.sub(r"\1None", text))


def _analyse_statement(node: ast.stmt, filename: str) -> Statement:
    table = symtable.symtable(ast.unparse(node), filename, "exec")
    symbols = table.get_symbols()
    bound = [symbol for symbol in symbols if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()]
    binds = {symbol.get_name() for symbol in bound}
    needs = {symbol.get_name() for symbol in symbols if symbol.is_referenced()} | _nested_globals(table)
    if isinstance(node, (ast.Assign, ast.AugAssign)):
        # ``UNet.forward = forward`` and ``settings["kernel"] = 3`` modify the object bound to a name.
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            while isinstance(target, (ast.Attribute, ast.Subscript)):
                target = target.value
            binds |= {target.id} if isinstance(target, ast.Name) else set()
    return Statement(node, frozenset(binds), frozenset(needs), filename)


def _nested_globals(table: symtable.SymbolTable) -> set[str]:
    names: set[str] = set()
    for child in table.get_children():
        names |= {symbol.get_name() for symbol in child.get_symbols() if symbol.is_global()} | _nested_globals(child)
    return names


def required_statements(source: ParsedSource, names: Iterable[str]) -> list[Statement]:
    """Return the statements that define the names and everything that these need, in file order.

    ``from x import *`` is included only if a required name is not defined by any other statement.
    """
    required, visited = set(names), set[str]()
    definitions = [statement for statement in source.statements if isinstance(statement.node, DEFINITION_STATEMENTS)]
    while required - visited:
        visited |= required
        required |= set().union(*(statement.needs for statement in definitions if statement.binds & required))
    undefined = required - set().union(*(statement.binds for statement in definitions)) - set(dir(builtins))
    return [
        statement
        for statement in definitions
        if statement.binds & required or (undefined and _is_star_import(statement.node))
    ]


def _is_star_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.names[0].name == "*"


def exec_required(source: ParsedSource, names: Iterable[str], path: Path) -> tuple[types.ModuleType, list[str]]:
    """Execute the statements that the names require in a new module; return it and warnings about failed statements.

    The folder of the file is the last entry of the module search path, so that its modules do not shadow installed
    ones.
    """
    module = types.ModuleType("student")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    sys.path.append(str(path.parent))
    warnings, flags = [], _future_flags(source)
    for statement in required_statements(source, names):
        code = compile(ast.Module([statement.node], []), statement.filename, "exec", flags, dont_inherit=True)
        try:
            exec(code, vars(module))  # the user has asked for the execution of this file
        except BaseException as error:  # code under test may raise any error, including SystemExit
            first_line = ast.unparse(statement.node).splitlines()[0]
            warnings.append(
                f"skipped line {statement.node.lineno} of {statement.filename}: `{first_line}` {describe_error(error)}"
            )
    return module, warnings


def _future_flags(source: ParsedSource) -> int:
    """Return the compiler flags of the file's ``from __future__ import``; each statement is compiled separately."""
    flags = 0
    for statement in source.statements:
        if isinstance(statement.node, ast.ImportFrom) and statement.node.module == "__future__":
            for name in statement.node.names:
                flags |= getattr(__future__, name.name).compiler_flag
    return flags


def describe_error(error: BaseException, filenames: Iterable[str] = ()) -> str:
    """Describe an error on one line, with the innermost line in one of the files ``filenames``."""
    if isinstance(error, SystemExit):
        description = f"called sys.exit({error.code!r})" if error.code is not None else "called sys.exit()"
    else:
        message = " ".join(str(error).split())
        description = f"raised {type(error).__name__}{f': {message[:300]}' if message else ''}"
    filenames, line, trace = set(filenames), "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in filenames:
            line = f" (line {trace.tb_lineno} of {trace.tb_frame.f_code.co_filename})"
        trace = trace.tb_next
    return description + line


#: Parameters of the models of figure 1, in the order of the assignment's notebook.
ROLES = ("kernel", "num_filters", "num_colours", "num_in_channels")

#: Parameter order of the reference models, the second to be tried.
REFERENCE_ORDER = ("kernel", "num_in_channels", "num_filters", "num_colours")
Sizes = Mapping[str, int]
DEFAULT_SIZES: Sizes = {"kernel": 3, "num_filters": 32, "num_colours": 24, "num_in_channels": 1}

#: Abbreviations, which are too short for pattern matching.
ABBREVIATIONS = {
    "k": "kernel",
    "ks": "kernel",
    "nf": "num_filters",
    "nc": "num_colours",
    "nic": "num_in_channels",
    "cin": "num_in_channels",
    "cout": "num_colours",
}

#: Substrings of parameter names, tried in this order.
NAME_PATTERNS = (
    ("kernel", "kernel"),
    ("filter", "num_filters"),
    ("feature", "num_filters"),
    ("hidden", "num_filters"),
    ("colo", "num_colours"),
    ("class", "num_colours"),
    ("out", "num_colours"),
    ("in", "num_in_channels"),
    ("channel", "num_in_channels"),
)


@dataclass(frozen=True)
class Constructor:
    """A function that builds a model for given sizes."""

    build: Callable[[Sizes], nn.Module]
    signature: str
    """The call as text, for example ``UNet(kernel, num_filters, num_colours, num_in_channels)``."""
    missing_roles: tuple[str, ...] = ()
    """Sizes that cannot be set."""


def guess_role(name: str) -> str | None:
    """Return which of the four sizes a parameter name refers to, or None if it is not recognised."""
    normalised = name.casefold().replace("_", "")
    if "dilation" in normalised or "padding" in normalised:
        return None
    return ABBREVIATIONS.get(normalised) or next(
        (role for pattern, role in NAME_PATTERNS if pattern in normalised), None
    )


def bind_constructor(model_class: Callable[..., nn.Module], name: str, num_parameters: int) -> Constructor:
    """Assign sizes to constructor parameters: by name if unambiguous, else by the order that gives figure 1's shapes.

    Args:
        model_class: The student's class.
        name: Name of the class.
        num_parameters: Expected number of parameters at the default sizes, which distinguishes the orders.

    If no order works, the returned constructor raises the error that the class raises for the first order.
    """
    # A class without __init__ takes no sizes, although the signature of nn.Module.__init__ has *args.
    has_init = getattr(model_class, "__init__", None) is not nn.Module.__init__
    signature = inspect.signature(model_class).parameters.values() if has_init else ()
    positional = [
        parameter
        for parameter in signature
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    roles = {
        parameter.name: role
        for parameter in signature
        if parameter.kind != parameter.POSITIONAL_ONLY and (role := guess_role(parameter.name))
    }
    is_unambiguous = len(set(roles.values())) == len(roles)
    if is_unambiguous and len(roles) == len(ROLES):
        return _bind_by_name(model_class, name, roles)
    if len(positional) >= len(ROLES) or any(parameter.kind == parameter.VAR_POSITIONAL for parameter in signature):
        return _bind_by_trial(model_class, name, num_parameters)
    return _bind_by_name(model_class, name, roles if is_unambiguous else {})


def _bind_by_name(model_class: Callable[..., nn.Module], name: str, roles: Mapping[str, str]) -> Constructor:
    def build(sizes: Sizes) -> nn.Module:
        return model_class(**{parameter: sizes[role] for parameter, role in roles.items()})

    missing_roles = tuple(role for role in ROLES if role not in roles.values())
    return Constructor(build, f"{name}({', '.join(roles)})", missing_roles)


def _bind_by_trial(model_class: Callable[..., nn.Module], name: str, num_parameters: int) -> Constructor:
    """Return the first order with the expected shapes and number of parameters, else one with the best score."""
    best, best_score = _bind_positional(model_class, name, ROLES), -1
    for order in dict.fromkeys((ROLES, REFERENCE_ORDER, *permutations(ROLES))):
        constructor = _bind_positional(model_class, name, order)
        score = _score_constructor(constructor, num_parameters)
        if score == MAX_SCORE:
            return constructor
        if score > best_score:
            best, best_score = constructor, score
    return best


def _bind_positional(model_class: Callable[..., nn.Module], name: str, order: tuple[str, ...]) -> Constructor:
    def build(sizes: Sizes) -> nn.Module:
        return model_class(*(sizes[role] for role in order))

    return Constructor(build, f"{name}({', '.join(order)})")


#: Score of an order that gives the expected shapes and number of parameters.
MAX_SCORE = 3


def _score_constructor(constructor: Constructor, num_parameters: int) -> int:
    """Return 0 if construction fails, 1 if it works, 2 for matching shapes, 3 if the parameter count matches too."""
    try:
        model: Any = constructor.build(DEFAULT_SIZES)
    except Exception:
        return 0
    try:
        with torch.no_grad():
            logits = model(torch.rand(2, 1, 32, 32))
    except Exception:
        return 1
    if not isinstance(logits, Tensor) or logits.shape != (2, DEFAULT_SIZES["num_colours"], 32, 32):
        return 1
    return MAX_SCORE if sum(parameter.numel() for parameter in model.parameters()) == num_parameters else MAX_SCORE - 1
