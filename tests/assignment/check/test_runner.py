"""Child processes of ``chromabox check``: exits, crashes, limits and corrupt results are described in one sentence."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chromabox.assignment.check.runner import CheckResult, check_file
from chromabox.errors import ChromaboxError, UsageError

STUDENTS = Path(__file__).parent / "students"
HEADER = "import torch\nfrom torch import nn\nfrom chromabox.colour.models import baselines\n"
#: Time limit in seconds of tests that do not test it.
LONG_TIMEOUT = 300.0


def messages(result: CheckResult, model: str) -> dict[str, str]:
    """Return the messages about one model by check."""
    return {check.name: check.message for report in result.reports if report.model == model for check in report.checks}


def test_exit_and_crash_are_described_in_one_sentence() -> None:
    result = check_file(STUDENTS / "crashing.py", timeout=LONG_TIMEOUT)
    assert not result.matches
    assert messages(result, "pool-upsample") == {
        "constructor": "constructing PoolUpsampleNet: called sys.exit(3) (line 12 of crashing.py)"
    }
    assert messages(result, "conv-transpose")["shapes"] == (
        "forward pass of ConvTransposeNet: the process ended with SIGSEGV (invalid memory access)"
    )


NOTEBOOK = (
    "!pip install torch\n%matplotlib inline\n" + HEADER,
    "%%bash\nexit 1\n",
    "import os\nclass PoolUpsampleNet(baselines.PoolUpsampleNet):\n    def forward(self, x):\n"
    "        torch.zeros(3 << 28)\n        return super().forward(x)\n",
    "class ConvTransposeNet(baselines.ConvTransposeNet):\n    def forward(self, x):\n        os._exit(0)\n",
    "class UNet(baselines.UNet):\n    def forward(self, x):\n        print('here ' * 9999)\n"
    "        open('here.txt', 'w').write(os.getcwd())\n        return super().forward(x)\n",
    "net = UNet()\nfor epoch in range(10**12):\n    net(torch.rand(1, 1, 32, 32))\n",
)


@pytest.mark.skipif(sys.platform != "linux", reason="the memory limit is reliable on Linux only")
def test_next_class_gets_a_new_process_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = tmp_path / "mine.ipynb"
    cells = [{"cell_type": "code", "source": text} for text in NOTEBOOK]
    path.write_text(json.dumps({"nbformat": 4, "cells": cells}))
    result = check_file(path, timeout=LONG_TIMEOUT, memory_limit_gb=2.0)
    assert messages(result, "pool-upsample")["shapes"] == ("forward pass of PoolUpsampleNet: exceeded the memory limit")
    assert messages(result, "conv-transpose")["shapes"] == (
        "forward pass of ConvTransposeNet: the process ended with exit code 0"
    )
    assert next(report for report in result.reports if report.model == "unet").matches
    assert (result.error, result.notes) == (None, [])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["here", "mine.ipynb"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups")
def test_timeout_kills_the_child_and_its_processes(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    body = (
        "import subprocess, pathlib\nclass UNet(baselines.UNet):\n    def forward(self, x):\n"
        "        sleeper = subprocess.Popen(['sleep', '600'])\n"
        f"        pathlib.Path({str(pid_file)!r}).write_text(str(sleeper.pid))\n        while True: pass\n"
    )
    (tmp_path / "mine.py").write_text(HEADER + body)
    result = check_file(tmp_path / "mine.py", timeout=6.0)
    # On a busy machine the import of PyTorch may exceed the limit, which is a different error.
    message = result.error or messages(result, "unet")["shapes"]
    assert message.endswith("did not finish within 6 s")
    if pid_file.exists():
        assert has_ended(pid_file.read_text())


def has_ended(pid: str) -> bool:
    """Return whether a process has ended. Its entry can remain until its parent process reads its exit code."""
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().split(")")[1].split()[0] == "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="the states of processes are read from /proc")
def test_processes_end_with_the_child_and_with_the_check(tmp_path: Path) -> None:
    """The first class ends its own process, and the second class kills the check. Both start another process."""
    text = "import os, subprocess, time\nimport torch\n"
    for name, end in ("ConvTransposeNet", "os._exit(3)"), ("UNet", "os.kill(int(open('check').read()), 9)"):
        text += (
            f"class {name}(torch.nn.Module):\n    def __init__(self, kernel, num_filters, num_colours, in_channels):\n"
            f"        os.chdir({str(tmp_path)!r})\n        other = subprocess.Popen(['sleep', '600'])\n"
            f"        open('pids', 'a').write(f'{{os.getpid()}} {{other.pid}} ')\n"
            f"        {end}\n        time.sleep(600)\n"
        )
    (tmp_path / "mine.py").write_text(text)
    code = (
        "import os; from pathlib import Path; Path('check').write_text(str(os.getpid()))\n"
        "from chromabox.assignment.check.runner import check_file; check_file(Path('mine.py'))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, timeout=LONG_TIMEOUT)
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 4
    deadline = time.monotonic() + 60
    while not all(map(has_ended, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in pids if not has_ended(pid)] == []


def test_file_without_the_classes_is_reported_with_its_classes(tmp_path: Path) -> None:
    cells = [{"cell_type": "code", "source": text} for text in ("class UNet(:", "class Model: pass\nclass Other: pass")]
    (tmp_path / "mine.ipynb").write_text(json.dumps({"nbformat": 4, "cells": cells}))
    result = check_file(tmp_path / "mine.ipynb", timeout=LONG_TIMEOUT)
    assert result.error == (
        "mine.ipynb defines neither PoolUpsampleNet nor ConvTransposeNet nor UNet; its classes are Model, Other"
    )
    assert result.notes == ["skipped code cell 1 of mine.ipynb: invalid syntax in line 1"]
    assert not result.matches


def test_corrupt_result_file_is_an_error(tmp_path: Path) -> None:
    body = (
        "import os\nclass UNet(baselines.UNet):\n    def forward(self, x):\n        for file in range(3, 30):\n"
        '            try: os.write(file, b\'{"reports": [{"diff": 2}]}\\n\')\n'
        "            except OSError: pass\n        os._exit(1)\n"
    )
    (tmp_path / "mine.py").write_text(HEADER + body)
    with pytest.raises(ChromaboxError, match="corrupted the result file"):
        check_file(tmp_path / "mine.py", timeout=LONG_TIMEOUT)


@pytest.mark.parametrize(
    ("name", "limits", "message"),
    [
        ("nothing.py", {}, "no such file"),
        (".", {}, "chromabox data check"),
        ("mine.txt", {}, "unsupported file type"),
        ("mine.py", {"timeout": 0.0}, "--timeout is 0"),
        ("mine.py", {"timeout": float("nan")}, "--timeout is nan"),
        ("mine.py", {"memory_limit_gb": 0.1}, "--memory-limit is 0.1"),
    ],
)
def test_invalid_files_and_limits_are_rejected(
    tmp_path: Path, name: str, limits: dict[str, float], message: str
) -> None:
    for filename in ("mine.txt", "mine.py"):
        (tmp_path / filename).touch()
    with pytest.raises(UsageError, match=message):
        check_file(tmp_path / name, **limits)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limits")
def test_resource_limits_are_set() -> None:
    """The limits are read back in a separate process."""
    code = (
        "import resource; from chromabox.assignment.check.worker import set_resource_limits;"
        "set_resource_limits(3.0, 7.0);"
        "print(resource.getrlimit(resource.RLIMIT_CPU)[0], resource.getrlimit(resource.RLIMIT_CORE)[0])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["17", "0"]
