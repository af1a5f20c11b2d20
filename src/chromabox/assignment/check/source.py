"""Of a student's file or notebook only what a class needs: imports, constants, functions and classes, and no training.

A statement at the top level is taken if it binds a name that a wanted class needs, directly or through others. Loops
and calls on their own are left out, so that a notebook's training, drawing and installing never runs.

How a student's class wants to be called: by the names of its parameters, else by trying orders.
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

#: The statements that may be taken; everything else does something rather than define something.
DEFINITION_STATEMENTS = (
    *(ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef),
    *(ast.Assign, ast.AnnAssign, ast.AugAssign, ast.If, ast.Try),
)

#: What starts a line of IPython's own: magics, shell commands, help.
MAGIC = re.compile(r"^(\s*)[%!?].*$|^(\s*)[\w.]+\?{1,2}\s*$", re.MULTILINE)
ASSIGNED_MAGIC = re.compile(r"^(\s*[\w, ]+=\s*)[%!].*$", re.MULTILINE)


@dataclass(frozen=True)
class Statement:
    """A statement of the top level, the names it binds and needs, and the place it stands at."""

    node: ast.stmt
    binds: frozenset[str]
    needs: frozenset[str]
    filename: str
    """Under which name it is compiled, so that errors tell their line: the file's, or ``code cell 3 of`` it."""


@dataclass(frozen=True)
class ParsedSource:
    """A file's statements, and sentences about parts that could not be read."""

    statements: list[Statement]
    warnings: list[str]

    def bound_names(self) -> set[str]:
        """Every name that is defined or imported somewhere."""
        return set().union(*(piece.binds for piece in self.statements))

    def class_names(self) -> list[str]:
        """The names of the classes."""
        return [one.node.name for one in self.statements if isinstance(one.node, ast.ClassDef)]


def read_source(path: Path) -> ParsedSource:
    """Read a .py file or a notebook (.ipynb, format 4).

    Raises ValueError or OSError with the reason if nothing can be read; a notebook's cell that is no Python is left
    out with a complaint.
    """
    if path.suffix.lower() != ".ipynb":
        with tokenize.open(path) as file:
            text = file.read()
        return ParsedSource(_parse_statements(text, path.name), [])
    pieces, complaints = [], []
    for number, text in enumerate(_read_code_cells(path), 1):
        place = f"code cell {number} of {path.name}"
        try:
            pieces += _parse_statements(text, place)
        except SyntaxError as error:
            complaints.append(f"{place} is left out: {error.msg} in its line {error.lineno}")
    return ParsedSource(pieces, complaints)


def _read_code_cells(path: Path) -> list[str]:
    """The text of every code cell; those of another language (``%%bash``) empty."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    try:
        cells = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
        texts = ["".join(source) for source in cells]
    except (KeyError, TypeError) as error:
        raise ValueError("it is no notebook of format 4") from error
    python = ("%%time", "%%timeit", "%%capture", "%%prun", "%%python")
    return [text if not text.lstrip().startswith("%%") or text.lstrip().startswith(python) else "" for text in texts]


def _parse_statements(text: str, filename: str) -> list[Statement]:
    """The statements of one text, magics left out."""
    try:
        tree = ast.parse(text, filename)
    except SyntaxError:
        tree = ast.parse(_strip_magics(text), filename)
    return [_analyse_statement(one, filename) for statement in tree.body for one in _split_imports(statement)]


def _split_imports(node: ast.stmt) -> list[ast.stmt]:
    """Every name of an import by itself, so that one that is missing takes no other with it."""
    if isinstance(node, ast.Import):
        return [ast.copy_location(ast.Import([name]), node) for name in node.names]
    if isinstance(node, ast.ImportFrom):
        made = [ast.ImportFrom(node.module, [name], node.level) for name in node.names]
        return [ast.copy_location(one, node) for one in made]
    return [node]


def _strip_magics(text: str) -> str:
    """Line for line the same, a magic replaced by ``pass``, what it is assigned to by ``None``."""
    return MAGIC.sub(lambda found: f"{found[1] or found[2] or ''}pass", ASSIGNED_MAGIC.sub(r"\1None", text))


def _analyse_statement(node: ast.stmt, filename: str) -> Statement:
    table = symtable.symtable(ast.unparse(node), filename, "exec")
    own = [one for one in table.get_symbols() if one.is_assigned() or one.is_imported() or one.is_namespace()]
    binds = {one.get_name() for one in own}
    needs = {one.get_name() for one in table.get_symbols() if one.is_referenced()} | _nested_globals(table)
    if isinstance(node, (ast.Assign, ast.AugAssign)):
        # ``UNet.forward = forward`` and ``settings["kernel"] = 3`` change what a name stands for.
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            while isinstance(target, (ast.Attribute, ast.Subscript)):
                target = target.value
            binds |= {target.id} if isinstance(target, ast.Name) else set()
    return Statement(node, frozenset(binds), frozenset(needs), filename)


def _nested_globals(table: symtable.SymbolTable) -> set[str]:
    names: set[str] = set()
    for child in table.get_children():
        names |= {one.get_name() for one in child.get_symbols() if one.is_global()} | _nested_globals(child)
    return names


def required_statements(source: ParsedSource, names: Iterable[str]) -> list[Statement]:
    """The pieces that define the names and all that these need, in the file's order.

    ``from x import *`` is taken only if a name is needed that nothing else defines.
    """
    wanted, seen = set(names), set[str]()
    pieces = [piece for piece in source.statements if isinstance(piece.node, DEFINITION_STATEMENTS)]
    while wanted - seen:
        seen |= wanted
        wanted |= set().union(*(piece.needs for piece in pieces if piece.binds & wanted))
    unknown = wanted - set().union(*(piece.binds for piece in pieces)) - set(dir(builtins))
    return [one for one in pieces if one.binds & wanted or (unknown and _is_star_import(one.node))]


def _is_star_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.names[0].name == "*"


def exec_required(source: ParsedSource, names: Iterable[str], path: Path) -> tuple[types.ModuleType, list[str]]:
    """Run what the names need as a module of its own; statements that fail are left out with a complaint.

    The file's folder is searched for modules last, so that nothing there hides an installed one.
    """
    module = types.ModuleType("student")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    sys.path.append(str(path.parent))
    complaints, flags = [], _future_flags(source)
    for piece in required_statements(source, names):
        code = compile(ast.Module([piece.node], []), piece.filename, "exec", flags, dont_inherit=True)
        try:
            exec(code, vars(module))  # what the user asked for: his own classes
        except BaseException as error:  # a file under test may raise anything, SystemExit too
            first = ast.unparse(piece.node).splitlines()[0]
            complaints.append(
                f"line {piece.node.lineno} of {piece.filename} is left out: `{first}` {describe_error(error)}"
            )
    return module, complaints


def _future_flags(source: ParsedSource) -> int:
    """Flags of the file's ``from __future__ import``, which a statement compiled alone would not know of."""
    flags = 0
    for piece in source.statements:
        if isinstance(piece.node, ast.ImportFrom) and piece.node.module == "__future__":
            for name in piece.node.names:
                flags |= getattr(__future__, name.name).compiler_flag
    return flags


def describe_error(error: BaseException, filenames: Iterable[str] = ()) -> str:
    """What was raised, on one line, with the last line of the student's file on the way there if `places` are given."""
    if isinstance(error, SystemExit):
        said = f"called sys.exit({error.code!r})" if error.code is not None else "called sys.exit()"
    else:
        words = " ".join(str(error).split())
        said = f"raised {type(error).__name__}{f': {words[:300]}' if words else ''}"
    filenames, line, trace = set(filenames), "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in filenames:
            line = f" (line {trace.tb_lineno} of {trace.tb_frame.f_code.co_filename})"
        trace = trace.tb_next
    return said + line


#: What the figure leaves open, in the order of the assignment's notebook.
ROLES = ("kernel", "num_filters", "num_colours", "num_in_channels")

#: Our own order, the second to be tried.
REFERENCE_ORDER = ("kernel", "num_in_channels", "num_filters", "num_colours")
Sizes = Mapping[str, int]
DEFAULT_SIZES: Sizes = {"kernel": 3, "num_filters": 32, "num_colours": 24, "num_in_channels": 1}

#: Names that are too short to be recognised by a part of them.
ABBREVIATIONS = {
    "k": "kernel",
    "ks": "kernel",
    "nf": "num_filters",
    "nc": "num_colours",
    "nic": "num_in_channels",
    "cin": "num_in_channels",
    "cout": "num_colours",
}

#: Parts of names, looked for in this order.
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
    """A way to make the net for given sizes."""

    build: Callable[[Sizes], nn.Module]
    signature: str
    """As it would be written: ``UNet(kernel, num_filters, num_colours, num_in_channels)``."""
    missing_roles: tuple[str, ...] = ()
    """Roles that cannot be set."""


def guess_role(name: str) -> str | None:
    """Which of the four sizes a parameter of that name stands for; None where it tells nothing."""
    short = name.casefold().replace("_", "")
    if "dilation" in short or "padding" in short:
        return None
    return ABBREVIATIONS.get(short) or next((role for part, role in NAME_PATTERNS if part in short), None)


def bind_constructor(model_class: Callable[..., nn.Module], name: str, num_parameters: int) -> Constructor:
    """By names where these are clear, else by the order that makes a net of the figure's shapes.

    Args:
        found: the student's class.
        name: its name.
        parameters: how many the net should have at the usual sizes, by which orders are told apart.

    Raises whatever the class raises in the first order if none makes a net.
    """
    # A class without a constructor of its own takes no sizes, though nn.Module's says *args.
    own = getattr(model_class, "__init__", None) is not nn.Module.__init__
    signature = inspect.signature(model_class).parameters.values() if own else ()
    positional = [one for one in signature if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    roles = {one.name: role for one in signature if one.kind != one.POSITIONAL_ONLY and (role := guess_role(one.name))}
    clear = len(set(roles.values())) == len(roles)
    if clear and len(roles) == len(ROLES):
        return _bind_by_name(model_class, name, roles)
    if len(positional) >= len(ROLES) or any(one.kind == one.VAR_POSITIONAL for one in signature):
        return _bind_by_trial(model_class, name, num_parameters)
    return _bind_by_name(model_class, name, roles if clear else {})


def _bind_by_name(model_class: Callable[..., nn.Module], name: str, roles: Mapping[str, str]) -> Constructor:
    def make(sizes: Sizes) -> nn.Module:
        return model_class(**{parameter: sizes[role] for parameter, role in roles.items()})

    return Constructor(make, f"{name}({', '.join(roles)})", tuple(role for role in ROLES if role not in roles.values()))


def _bind_by_trial(model_class: Callable[..., nn.Module], name: str, num_parameters: int) -> Constructor:
    """The first order with the right shapes and number of parameters, else with the right shapes, else at all."""
    best, most = _bind_positional(model_class, name, ROLES), -1
    for order in dict.fromkeys((ROLES, REFERENCE_ORDER, *permutations(ROLES))):
        call = _bind_positional(model_class, name, order)
        worth = _score_constructor(call, num_parameters)
        if worth == MAX_SCORE:
            return call
        if worth > most:
            best, most = call, worth
    return best


def _bind_positional(model_class: Callable[..., nn.Module], name: str, order: tuple[str, ...]) -> Constructor:
    def make(sizes: Sizes) -> nn.Module:
        return model_class(*(sizes[role] for role in order))

    return Constructor(make, f"{name}({', '.join(order)})")


#: The worth of an order that makes a net of the right shapes and number of parameters.
MAX_SCORE = 3


def _score_constructor(constructor: Constructor, num_parameters: int) -> int:
    """0: cannot be made; 1: only that; 2: right shapes; 3: and the right number of parameters."""
    try:
        net: Any = constructor.build(DEFAULT_SIZES)
    except Exception:
        return 0
    try:
        with torch.no_grad():
            scores = net(torch.rand(2, 1, 32, 32))
    except Exception:
        return 1
    if not isinstance(scores, Tensor) or scores.shape != (2, DEFAULT_SIZES["num_colours"], 32, 32):
        return 1
    return MAX_SCORE if sum(one.numel() for one in net.parameters()) == num_parameters else MAX_SCORE - 1
