"""The architecture, read from the imports: layers, subpackages, import cycles, folder sizes."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "chromabox"
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_MODULES = 185
MAX_MODULES_IN_FOLDER = 14

# What each layer may import, besides itself.
BELOW_COLOUR_AND_DETECT = {"engine", "runtime", "io", "errors"}
MAY_IMPORT = {
    "__main__": {"cli", "errors"},
    "cli": {"assignment", "experiments", "report", "colour", "detect", *BELOW_COLOUR_AND_DETECT},
    "assignment": {"experiments", "report", "colour", "detect", *BELOW_COLOUR_AND_DETECT},
    "experiments": {"report", "colour", "detect", *BELOW_COLOUR_AND_DETECT},
    "report": {"colour", "detect", *BELOW_COLOUR_AND_DETECT},
    "colour": BELOW_COLOUR_AND_DETECT,
    "detect": BELOW_COLOUR_AND_DETECT,
    "engine": {"runtime", "io", "errors"},
    "runtime": {"io", "errors"},
    "io": {"errors"},
    "errors": set(),
    "__init__": {"colour", "detect"},
}

# Inside colour and detect: what no module of a subpackage may import. ``*`` stands for every other subpackage.
MAY_NOT_IMPORT = {
    "models": {"*"},
    "data": {"weights", "training", "inference", "evaluation"},
    "weights": {"training", "inference", "evaluation"},
    "inference": {"training", "evaluation"},
    "evaluation": {"training"},
}


def module_name(path: Path) -> str:
    """Return the dotted name of a module, without ``chromabox``."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported_modules(path: Path) -> set[str]:
    """Return what a file imports from the package, also inside functions and under TYPE_CHECKING."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("chromabox.") for name in names if name.startswith("chromabox.")}


def layer(name: str) -> str:
    return name.split(".")[0]


def subpackage(name: str) -> str:
    """Return the subpackage of ``colour`` or ``detect`` that a module belongs to; "" for a module at their top."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[0] / parts[1]).is_dir() else ""


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_follow_the_layers(path: Path) -> None:
    own = layer(module_name(path))
    imported = {layer(name) for name in imported_modules(path)} & MAY_IMPORT.keys()
    assert imported <= MAY_IMPORT[own] | {own}


@pytest.mark.parametrize(
    "path", [path for path in MODULES if layer(module_name(path)) in ("colour", "detect")], ids=module_name
)
def test_imports_follow_the_order_of_the_subpackages(path: Path) -> None:
    own = subpackage(module_name(path))
    forbidden = MAY_NOT_IMPORT.get(own, set())
    package = layer(module_name(path))
    others = {subpackage(name) for name in imported_modules(path) if layer(name) == package} - {own, ""}
    assert not (others if "*" in forbidden else others & forbidden)


def test_there_are_no_import_cycles() -> None:
    names = {module_name(path).removesuffix(".__init__"): path for path in MODULES}
    graph = {}
    for name, path in names.items():
        imported = imported_modules(path)
        graph[name] = {
            other for other in names if other != name and other in imported | {_parent(one) for one in imported}
        }
    TopologicalSorter(graph).prepare()


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def test_colour_and_detect_have_the_same_subpackages() -> None:
    shared = {"models", "data", "weights", "training", "inference", "evaluation"}
    for package in ("colour", "detect"):
        assert shared <= {path.parent.name for path in (PACKAGE / package).glob("*/__init__.py")}


def test_no_folder_is_crowded() -> None:
    folders = {path.parent for path in MODULES}
    assert max(len(list(folder.glob("*.py"))) for folder in folders) <= MAX_MODULES_IN_FOLDER
    assert len(MODULES) <= MAX_MODULES


def test_tests_mirror_the_source() -> None:
    """A test file is named after its module, followed by a topic if the module has several test files."""
    tests = Path(__file__).parent
    for path in tests.rglob("test_*.py"):
        folder = path.parent.relative_to(tests)
        if folder.parts[:1] in ((), ("real",)):
            continue
        assert (PACKAGE / folder).is_dir(), f"{path}: no such folder in src"


def test_imports_are_read_everywhere_in_a_file(tmp_path: Path) -> None:
    source = "import chromabox.engine.trainer\ndef f():\n    from chromabox.colour import models\n"
    source += "from chromabox import cli\n"
    (tmp_path / "a.py").write_text(source)
    assert imported_modules(tmp_path / "a.py") == {"engine.trainer", "colour.models", "cli"}
    assert {"cli", "colour", "engine", "io"} <= {layer(module_name(path)) for path in MODULES}


def test_there_is_no_module_for_miscellaneous_code() -> None:
    assert not [path.name for path in MODULES if path.stem in {"utils", "util", "helpers", "common", "misc"}]
