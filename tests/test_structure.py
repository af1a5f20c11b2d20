"""The plan of the house, read from the imports: cli → report → the wings → the foundations, never upwards or across."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "chromabox"
MODULES = sorted(PACKAGE.rglob("*.py"))

# What each room may import from, besides itself. Wings know neither each other nor what stands above them.
MAY_IMPORT = {
    "__main__": {"cli", "errors"},
    "cli": {"report", "colour", "detect", "engine", "files", "errors"},
    "report": {"colour", "detect", "engine", "files", "errors"},
    "colour": {"engine", "files", "errors"},
    "detect": {"engine", "files", "errors"},
    "engine": {"files", "errors"},
    "files": {"errors"},
    "errors": set(),
    "assets": set(),
    "__init__": {"colour", "detect"},
}


def room_of(path: Path) -> str:
    """The folder or, at the top, the module to which a file belongs."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_imported(path: Path) -> set[str]:
    """The rooms named in any import of a file, also those inside functions and under TYPE_CHECKING."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("chromabox.")} & MAY_IMPORT.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards_only(path: Path) -> None:
    room = room_of(path)
    assert rooms_imported(path) <= MAY_IMPORT[room] | {room}


def test_the_reader_sees_imports(tmp_path: Path) -> None:
    source = (
        "import chromabox.engine.trainer\ndef f():\n    from chromabox.colour import nets\nfrom chromabox import cli\n"
    )
    (tmp_path / "a.py").write_text(source + "from chromabox import cli\n")
    assert rooms_imported(tmp_path / "a.py") == {"engine", "colour", "cli"}
    assert {"cli", "colour", "engine", "files"} <= {room_of(path) for path in MODULES}


def test_there_is_no_drawer_for_odds_and_ends() -> None:
    assert not [path.name for path in MODULES if path.stem in {"utils", "util", "helpers", "common", "misc"}]
