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
TAKEN = (
    *(ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef),
    *(ast.Assign, ast.AnnAssign, ast.AugAssign, ast.If, ast.Try),
)

#: What starts a line of IPython's own: magics, shell commands, help.
MAGIC = re.compile(r"^(\s*)[%!?].*$|^(\s*)[\w.]+\?{1,2}\s*$", re.MULTILINE)
ASSIGNED_MAGIC = re.compile(r"^(\s*[\w, ]+=\s*)[%!].*$", re.MULTILINE)


@dataclass(frozen=True)
class Piece:
    """A statement of the top level, the names it binds and needs, and the place it stands at."""

    statement: ast.stmt
    binds: frozenset[str]
    needs: frozenset[str]
    place: str
    """Under which name it is compiled, so that errors tell their line: the file's, or ``code cell 3 of`` it."""


@dataclass(frozen=True)
class Source:
    """A file's statements, and sentences about parts that could not be read."""

    pieces: list[Piece]
    complaints: list[str]

    def bound(self) -> set[str]:
        """Every name that is defined or imported somewhere."""
        return set().union(*(piece.binds for piece in self.pieces))

    def classes(self) -> list[str]:
        """The names of the classes."""
        return [one.statement.name for one in self.pieces if isinstance(one.statement, ast.ClassDef)]


def read_source(path: Path) -> Source:
    """Read a .py file or a notebook (.ipynb, format 4).

    Raises ValueError or OSError with the reason if nothing can be read; a notebook's cell that is no Python is left
    out with a complaint.
    """
    if path.suffix.lower() != ".ipynb":
        with tokenize.open(path) as file:
            text = file.read()
        return Source(_pieces(text, path.name), [])
    pieces, complaints = [], []
    for number, text in enumerate(_cells(path), 1):
        place = f"code cell {number} of {path.name}"
        try:
            pieces += _pieces(text, place)
        except SyntaxError as error:
            complaints.append(f"{place} is left out: {error.msg} in its line {error.lineno}")
    return Source(pieces, complaints)


def _cells(path: Path) -> list[str]:
    """The text of every code cell; those of another language (``%%bash``) empty."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    try:
        cells = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
        texts = ["".join(source) for source in cells]
    except (KeyError, TypeError) as error:
        raise ValueError("it is no notebook of format 4") from error
    python = ("%%time", "%%timeit", "%%capture", "%%prun", "%%python")
    return [text if not text.lstrip().startswith("%%") or text.lstrip().startswith(python) else "" for text in texts]


def _pieces(text: str, place: str) -> list[Piece]:
    """The statements of one text, magics left out."""
    try:
        tree = ast.parse(text, place)
    except SyntaxError:
        tree = ast.parse(_without_magics(text), place)
    return [_piece(one, place) for statement in tree.body for one in _apart(statement)]


def _apart(statement: ast.stmt) -> list[ast.stmt]:
    """Every name of an import by itself, so that one that is missing takes no other with it."""
    if isinstance(statement, ast.Import):
        return [ast.copy_location(ast.Import([name]), statement) for name in statement.names]
    if isinstance(statement, ast.ImportFrom):
        made = [ast.ImportFrom(statement.module, [name], statement.level) for name in statement.names]
        return [ast.copy_location(one, statement) for one in made]
    return [statement]


def _without_magics(text: str) -> str:
    """Line for line the same, a magic replaced by ``pass``, what it is assigned to by ``None``."""
    return MAGIC.sub(lambda found: f"{found[1] or found[2] or ''}pass", ASSIGNED_MAGIC.sub(r"\1None", text))


def _piece(statement: ast.stmt, place: str) -> Piece:
    table = symtable.symtable(ast.unparse(statement), place, "exec")
    own = [one for one in table.get_symbols() if one.is_assigned() or one.is_imported() or one.is_namespace()]
    binds = {one.get_name() for one in own}
    needs = {one.get_name() for one in table.get_symbols() if one.is_referenced()} | _globals_below(table)
    if isinstance(statement, (ast.Assign, ast.AugAssign)):
        # ``UNet.forward = forward`` and ``settings["kernel"] = 3`` change what a name stands for.
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for target in targets:
            while isinstance(target, (ast.Attribute, ast.Subscript)):
                target = target.value
            binds |= {target.id} if isinstance(target, ast.Name) else set()
    return Piece(statement, frozenset(binds), frozenset(needs), place)


def _globals_below(table: symtable.SymbolTable) -> set[str]:
    names: set[str] = set()
    for child in table.get_children():
        names |= {one.get_name() for one in child.get_symbols() if one.is_global()} | _globals_below(child)
    return names


def needed(source: Source, names: Iterable[str]) -> list[Piece]:
    """The pieces that define the names and all that these need, in the file's order.

    ``from x import *`` is taken only if a name is needed that nothing else defines.
    """
    wanted, seen = set(names), set[str]()
    pieces = [piece for piece in source.pieces if isinstance(piece.statement, TAKEN)]
    while wanted - seen:
        seen |= wanted
        wanted |= set().union(*(piece.needs for piece in pieces if piece.binds & wanted))
    unknown = wanted - set().union(*(piece.binds for piece in pieces)) - set(dir(builtins))
    return [one for one in pieces if one.binds & wanted or (unknown and _is_star(one.statement))]


def _is_star(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*"


def run_needed(source: Source, names: Iterable[str], path: Path) -> tuple[types.ModuleType, list[str]]:
    """Run what the names need as a module of its own; statements that fail are left out with a complaint.

    The file's folder is searched for modules last, so that nothing there hides an installed one.
    """
    module = types.ModuleType("student")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    sys.path.append(str(path.parent))
    complaints, flags = [], _futures(source)
    for piece in needed(source, names):
        code = compile(ast.Module([piece.statement], []), piece.place, "exec", flags, dont_inherit=True)
        try:
            exec(code, vars(module))  # what the user asked for: his own classes
        except BaseException as error:  # a file under test may raise anything, SystemExit too
            first = ast.unparse(piece.statement).splitlines()[0]
            complaints.append(f"line {piece.statement.lineno} of {piece.place} is left out: `{first}` {told(error)}")
    return module, complaints


def _futures(source: Source) -> int:
    """Flags of the file's ``from __future__ import``, which a statement compiled alone would not know of."""
    flags = 0
    for piece in source.pieces:
        if isinstance(piece.statement, ast.ImportFrom) and piece.statement.module == "__future__":
            for name in piece.statement.names:
                flags |= getattr(__future__, name.name).compiler_flag
    return flags


def told(error: BaseException, places: Iterable[str] = ()) -> str:
    """What was raised, on one line, with the last line of the student's file on the way there if `places` are given."""
    if isinstance(error, SystemExit):
        said = f"called sys.exit({error.code!r})" if error.code is not None else "called sys.exit()"
    else:
        words = " ".join(str(error).split())
        said = f"raised {type(error).__name__}{f': {words[:300]}' if words else ''}"
    places, line, trace = set(places), "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in places:
            line = f" (line {trace.tb_lineno} of {trace.tb_frame.f_code.co_filename})"
        trace = trace.tb_next
    return said + line


#: What the figure leaves open, in the order of the assignment's notebook.
ROLES = ("kernel", "num_filters", "num_colours", "num_in_channels")

#: Our own order, the second to be tried.
OURS = ("kernel", "num_in_channels", "num_filters", "num_colours")
Sizes = Mapping[str, int]
USUAL: Sizes = {"kernel": 3, "num_filters": 32, "num_colours": 24, "num_in_channels": 1}

#: Names that are too short to be recognised by a part of them.
SHORT = {
    "k": "kernel",
    "ks": "kernel",
    "nf": "num_filters",
    "nc": "num_colours",
    "nic": "num_in_channels",
    "cin": "num_in_channels",
    "cout": "num_colours",
}

#: Parts of names, looked for in this order.
PARTS = (
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
class Call:
    """A way to make the net for given sizes."""

    make: Callable[[Sizes], nn.Module]
    text: str
    """As it would be written: ``UNet(kernel, num_filters, num_colours, num_in_channels)``."""
    missing: tuple[str, ...] = ()
    """Roles that cannot be set."""


def role_of(name: str) -> str | None:
    """Which of the four sizes a parameter of that name stands for; None where it tells nothing."""
    short = name.casefold().replace("_", "")
    if "dilation" in short or "padding" in short:
        return None
    return SHORT.get(short) or next((role for part, role in PARTS if part in short), None)


def find_call(found: Callable[..., nn.Module], name: str, parameters: int) -> Call:
    """By names where these are clear, else by the order that makes a net of the figure's shapes.

    Args:
        found: the student's class.
        name: its name.
        parameters: how many the net should have at the usual sizes, by which orders are told apart.

    Raises whatever the class raises in the first order if none makes a net.
    """
    # A class without a constructor of its own takes no sizes, though nn.Module's says *args.
    own = getattr(found, "__init__", None) is not nn.Module.__init__
    signature = inspect.signature(found).parameters.values() if own else ()
    positional = [one for one in signature if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    roles = {one.name: role for one in signature if one.kind != one.POSITIONAL_ONLY and (role := role_of(one.name))}
    clear = len(set(roles.values())) == len(roles)
    if clear and len(roles) == len(ROLES):
        return _by_name(found, name, roles)
    if len(positional) >= len(ROLES) or any(one.kind == one.VAR_POSITIONAL for one in signature):
        return _by_trying(found, name, parameters)
    return _by_name(found, name, roles if clear else {})


def _by_name(found: Callable[..., nn.Module], name: str, roles: Mapping[str, str]) -> Call:
    def make(sizes: Sizes) -> nn.Module:
        return found(**{parameter: sizes[role] for parameter, role in roles.items()})

    return Call(make, f"{name}({', '.join(roles)})", tuple(role for role in ROLES if role not in roles.values()))


def _by_trying(found: Callable[..., nn.Module], name: str, parameters: int) -> Call:
    """The first order with the right shapes and number of parameters, else with the right shapes, else at all."""
    best, most = _in_order(found, name, ROLES), -1
    for order in dict.fromkeys((ROLES, OURS, *permutations(ROLES))):
        call = _in_order(found, name, order)
        worth = _worth(call, parameters)
        if worth == BEST:
            return call
        if worth > most:
            best, most = call, worth
    return best


def _in_order(found: Callable[..., nn.Module], name: str, order: tuple[str, ...]) -> Call:
    def make(sizes: Sizes) -> nn.Module:
        return found(*(sizes[role] for role in order))

    return Call(make, f"{name}({', '.join(order)})")


#: The worth of an order that makes a net of the right shapes and number of parameters.
BEST = 3


def _worth(call: Call, parameters: int) -> int:
    """0: cannot be made; 1: only that; 2: right shapes; 3: and the right number of parameters."""
    try:
        net: Any = call.make(USUAL)
    except Exception:
        return 0
    try:
        with torch.no_grad():
            scores = net(torch.rand(2, 1, 32, 32))
    except Exception:
        return 1
    if not isinstance(scores, Tensor) or scores.shape != (2, USUAL["num_colours"], 32, 32):
        return 1
    return BEST if sum(one.numel() for one in net.parameters()) == parameters else BEST - 1
