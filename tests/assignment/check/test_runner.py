"""Children of ``chromabox check``: whatever they do, this side goes on and says in a sentence what it was."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chromabox.assignment.check.runner import CheckResult, check_file
from chromabox.errors import ChromaboxError, UsageError

STUDENTS = Path(__file__).parent / "students"
HEAD = "import torch\nfrom torch import nn\nfrom chromabox.colour.models import baselines as nets\n"
#: A child's limit where it is not what is tested; none comes near it.
LONG = 300.0


def answers(found: CheckResult, net: str) -> dict[str, str]:
    """What is said of one net, by question."""
    return {check.name: check.message for one in found.reports if one.model == net for check in one.checks}


def test_an_exit_and_a_crash_are_one_sentence_each() -> None:
    found = check_file(STUDENTS / "crashing.py", model_names=("pool-upsample", "conv-transpose"), timeout=LONG)
    assert not found.matches
    assert answers(found, "pool-upsample") == {
        "constructor": "making PoolUpsampleNet called sys.exit(3) (line 12 of crashing.py)"
    }
    assert answers(found, "conv-transpose")["shapes"] == (
        "ConvTransposeNet's forward ended the process with SIGSEGV (it reached for memory that is not its own)"
    )


NOTEBOOK = (
    "!pip install torch\n%matplotlib inline\n" + HEAD,
    "%%bash\nexit 1\n",
    "import os\nclass PoolUpsampleNet(nets.PoolUpsampleNet):\n    def forward(self, x):\n"
    "        torch.zeros(3 << 28)\n        return super().forward(x)\n",
    "class ConvTransposeNet(nets.ConvTransposeNet):\n    def forward(self, x):\n        os._exit(0)\n",
    "class UNet(nets.UNet):\n    def forward(self, x):\n        print('here ' * 9999)\n"
    "        open('here.txt', 'w').write(os.getcwd())\n        return super().forward(x)\n",
    "net = UNet()\nfor epoch in range(10**12):\n    net(torch.rand(1, 1, 32, 32))\n",
)


@pytest.mark.skipif(sys.platform != "linux", reason="only there is memory limited for certain")
def test_after_a_dead_child_the_next_class_gets_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = tmp_path / "mine.ipynb"
    cells = [{"cell_type": "code", "source": text} for text in NOTEBOOK]
    path.write_text(json.dumps({"nbformat": 4, "cells": cells}))
    found = check_file(path, timeout=LONG, memory_limit_gb=2.0)
    assert answers(found, "pool-upsample")["shapes"] == "PoolUpsampleNet's forward needs more memory than the limit"
    assert answers(found, "conv-transpose")["shapes"] == (
        "ConvTransposeNet's forward ended the process with exit code 0"
    )
    assert next(one for one in found.reports if one.model == "unet").matches
    assert (found.error, found.notes) == (None, [])
    assert sorted(one.name for one in tmp_path.rglob("*")) == ["here", "mine.ipynb"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no process groups")
def test_a_loop_is_ended_with_all_it_has_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    body = (
        "import subprocess, pathlib\nclass UNet(nets.UNet):\n    def forward(self, x):\n"
        "        sleeper = subprocess.Popen(['sleep', '600'])\n"
        f"        pathlib.Path({str(note)!r}).write_text(str(sleeper.pid))\n        while True: pass\n"
    )
    (tmp_path / "mine.py").write_text(HEAD + body)
    found = check_file(tmp_path / "mine.py", timeout=6.0)
    # On a machine so busy that PyTorch's import takes longer, that is what did not end.
    said = found.error or answers(found, "unet")["shapes"]
    assert said.endswith("did not end within 6 s")
    if note.exists():
        state = Path(f"/proc/{note.read_text()}/stat")
        gone = not state.exists() or state.read_text().split(")")[1].split()[0] == "Z"
        assert gone


def test_a_file_without_the_classes_says_which_it_has(tmp_path: Path) -> None:
    cells = [{"cell_type": "code", "source": text} for text in ("class UNet(:", "class Model: pass\nclass Other: pass")]
    (tmp_path / "mine.ipynb").write_text(json.dumps({"nbformat": 4, "cells": cells}))
    found = check_file(tmp_path / "mine.ipynb", timeout=LONG)
    assert found.error == (
        "mine.ipynb defines neither PoolUpsampleNet nor ConvTransposeNet nor UNet; its classes are Model, Other"
    )
    assert found.notes == ["code cell 1 of mine.ipynb is left out: invalid syntax in its line 1"]
    assert not found.matches


def test_a_report_that_was_written_into_is_one_sentence(tmp_path: Path) -> None:
    body = (
        "import os\nclass UNet(nets.UNet):\n    def forward(self, x):\n        for file in range(3, 30):\n"
        '            try: os.write(file, b\'{"net": "nowhere", "fact": 1, "value": 2}\\n\')\n'
        "            except OSError: pass\n        os._exit(1)\n"
    )
    (tmp_path / "mine.py").write_text(HEAD + body)
    with pytest.raises(ChromaboxError, match="no readable report"):
        check_file(tmp_path / "mine.py", timeout=LONG)


@pytest.mark.parametrize(
    ("name", "limits", "said"),
    [
        ("nothing.py", {}, "there is no such file"),
        (".", {}, "chromabox data check"),
        ("mine.txt", {}, "neither a .py file nor a notebook"),
        ("mine.py", {"timeout": 0.0}, "time is 0"),
        ("mine.py", {"timeout": float("nan")}, "time is nan"),
        ("mine.py", {"memory_limit_gb": 0.1}, "memory is 0.1"),
    ],
)
def test_what_cannot_be_checked_is_refused(tmp_path: Path, name: str, limits: dict[str, float], said: str) -> None:
    for one in ("mine.txt", "mine.py"):
        (tmp_path / one).touch()
    with pytest.raises(UsageError, match=said):
        check_file(tmp_path / name, **limits)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
def test_limits_are_set_on_this_system_too() -> None:
    """Read back in a child of our own."""
    code = (
        "import resource; from chromabox.assignment.check.worker import set_resource_limits; set_resource_limits(3.0, 7.0);"
        "print(resource.getrlimit(resource.RLIMIT_CPU)[0], resource.getrlimit(resource.RLIMIT_CORE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["17", "0"]
