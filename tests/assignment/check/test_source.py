"""Selection and execution of the statements of a student's file. Expected values: statements selected by hand."""

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from chromabox.assignment.check.source import describe_error, exec_required, read_source, required_statements

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a .py file of one text, or a notebook of several cells; sys.path and sys.modules are restored."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "student", raising=False)

    def write_file(*cells: str, name: str = "mine.py") -> Path:
        path = tmp_path / name
        if name.endswith(".ipynb"):
            code_cells = [{"cell_type": "code", "source": cell.splitlines(keepends=True)} for cell in cells]
            path.write_text(
                json.dumps({"nbformat": 4, "cells": [{"cell_type": "markdown", "source": ["# Hi"]}, *code_cells]})
            )
        else:
            path.write_text("".join(cells), encoding="utf-8")
        return path

    return write_file


def required_lines(path: Path, *names: str) -> list[int]:
    """Return the lines of the required statements."""
    return [statement.node.lineno for statement in required_statements(read_source(path)[0], names)]


def test_only_required_statements_are_selected(write: Write) -> None:
    path = write(
        "import os, torch\n"  # 1: required as a base class
        "import wandb\n"  # 2: not required
        "SIZE = 3\n"  # 3: required by helper
        "STEPS = load('x')\n"  # 4: not required
        "def helper(a, x=1):\n    y = SIZE\n    return a\n"  # 5
        "def train():\n    return STEPS\n"  # 8: not required
        "class Base(torch.nn.Module):\n    pass\n"  # 10
        "class UNet(Base):\n    def f(self, x):\n        STEPS = 2\n        return helper(x)\n"  # 12
        "print('here')\n"
        "net = UNet()\n"  # not required
        "for x in range(9):\n    SIZE = x\n"  # loops are never selected
        "while True:\n    helper = 1\n"
    )
    assert required_lines(path, "UNet") == [1, 3, 5, 10, 12]


def test_missing_module_does_not_affect_other_imports(write: Write) -> None:
    path = write(
        "import no_such_module, math as m, json\nfrom os import no_such_name, sep\nclass UNet:\n    x = m.pi, sep\n"
    )
    module, warnings = exec_required(read_source(path)[0], ["UNet"], path)
    assert warnings == []
    assert module.UNet.x == (math.pi, os.sep)
    assert not hasattr(module, "json")


def test_later_changes_of_a_class_are_selected(write: Write) -> None:
    path = write(
        "class UNet: pass\n",  # 1
        "def forward(self, x): return x\n",  # 2
        "UNet.forward = forward\n",  # 3
        "UNet.sizes = {}\n",  # 4
        "UNet.sizes['a'] = 1\n",  # 5
        "other.sizes = 1\n",
        "UNet.total += 1\n",  # 7
    )
    assert required_lines(path, "UNet") == [1, 2, 3, 4, 5, 7]


def test_conditional_definitions_are_selected_completely(write: Write) -> None:
    path = write(
        "try:\n    from fast import relu\nexcept ImportError:\n    from slow import relu\n",  # 1
        "if True:\n    K = 3\nelse:\n    K = 5\n",  # 5
        "if __name__ == '__main__':\n    run()\n",
        "class UNet:\n    k, r = K, relu\n",
    )
    assert required_lines(path, "UNet") == [1, 5, 11]


def test_star_imports_are_selected_only_for_undefined_names(write: Write) -> None:
    star = "from somewhere import *\n"
    assert required_lines(write(star, "class UNet:\n    k = abs(K)\n"), "UNet") == [1, 2]
    assert required_lines(write(star, "K = 3\nclass UNet:\n    k = abs(K)\n"), "UNet") == [2, 3]


def test_magics_of_notebooks_are_skipped(write: Write) -> None:
    cells = (
        "%%bash\nrm -rf nothing\n",
        "!pip install torch\n%matplotlib inline\nimport math\nfiles = !ls\nmath?\n",
        "%%time\nclass UNet:\n    area = math.pi\n    text = '''\n%s\n!x\n'''\n",
        "invalid python code\n",
        "if True:\n    !ls\n    %cd /\n",
    )
    statements, warnings = read_source(write(*cells, name="mine.ipynb"))
    assert [statement.filename for statement in required_statements(statements, ["UNet"])] == [
        "code cell 2 of mine.ipynb",
        "code cell 3 of mine.ipynb",
    ]
    assert len(warnings) == 1
    assert warnings[0].startswith("skipped code cell 4 of mine.ipynb: invalid syntax")
    assert warnings[0].endswith("in line 1")


def test_magics_of_exported_notebooks_are_skipped(write: Write) -> None:
    path = write("!pip install torch\nclass UNet:\n    kernel = 3\n")
    assert required_lines(path, "UNet") == [2]


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"cells": 3}', '{"cells": [3]}', '{"cells": [{"cell_type": "code"}]}']
)
def test_invalid_notebook_is_rejected(content: str, tmp_path: Path) -> None:
    (tmp_path / "mine.ipynb").write_text(content)
    with pytest.raises(ValueError, match=r"notebook|Expecting"):
        read_source(tmp_path / "mine.ipynb")


@pytest.mark.parametrize("content", [b"class UNet(:\n", b"# coding: nonsense\n", b"x = '\xff'\n", b"\0"])
def test_invalid_python_is_rejected(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_bytes(content)
    with pytest.raises((SyntaxError, ValueError)):
        read_source(tmp_path / "mine.py")


def test_failing_statement_is_skipped_with_a_warning(write: Write) -> None:
    path = write(
        "import no_such_module\nSIZE = 1 / 0\nimport sys\nHALT = sys.exit(4)\n", "class UNet:\n", "    size = 3\n"
    )
    path.write_text(path.read_text() + "    def f(self):\n        return no_such_module, SIZE, HALT\n")
    module, warnings = exec_required(read_source(path)[0], ["UNet"], path)
    assert module.UNet.size == 3
    assert warnings == [
        "skipped line 1 of mine.py: `import no_such_module` raised ModuleNotFoundError: "
        "No module named 'no_such_module'",
        "skipped line 2 of mine.py: `SIZE = 1 / 0` raised ZeroDivisionError: division by zero",
        "skipped line 4 of mine.py: `HALT = sys.exit(4)` called sys.exit(4)",
    ]


def test_modules_next_to_the_file_are_found_and_do_not_shadow_others(write: Write) -> None:
    write("VALUE = 7\n", name="next_to_the_file.py")
    write("raise RuntimeError\n", name="colorsys.py")
    path = write("import colorsys\nfrom next_to_the_file import VALUE\nclass UNet:\n    x = VALUE, colorsys\n")
    module, warnings = exec_required(read_source(path)[0], ["UNet"], path)
    assert warnings == []
    assert module.UNet.x[0] == 7
    sys.modules.pop("next_to_the_file")


def test_future_imports_apply_to_every_statement(write: Write) -> None:
    path = write("from __future__ import annotations\nclass UNet:\n    def f(self, x: Nowhere) -> Nothing: pass\n")
    module, warnings = exec_required(read_source(path)[0], ["UNet"], path)
    assert warnings == []
    assert module.UNet.f.__annotations__ == {"x": "Nowhere", "return": "Nothing"}


def test_errors_are_described_on_one_line_with_their_location(write: Write) -> None:
    path = write("class UNet:\n    def f(self):\n        raise ValueError('two\\n  lines ' + 'x' * 999)\n")
    module, _ = exec_required(read_source(path)[0], ["UNet"], path)
    with pytest.raises(ValueError, match="two") as raised:
        module.UNet().f()
    description = describe_error(raised.value, ["mine.py"])
    assert description.startswith("raised ValueError: two lines xxx")
    assert description.endswith("x (line 3 of mine.py)")
    assert len(description) < 400
    assert describe_error(KeyboardInterrupt()) == "raised KeyboardInterrupt"
    assert describe_error(SystemExit()) == "called sys.exit()"
