"""ONNX Runtime sessions of small models built by onnx's helpers; expected outputs from direct calculation."""

import os
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from chromabox.errors import ChromaboxError, UsageError
from chromabox.runtime import session as session_module
from chromabox.runtime.parallel import num_cores
from chromabox.runtime.session import one_line, open_session, read_session_metadata, resolve_provider

onnx = pytest.importorskip("onnx", reason="the train extra builds the models of these tests")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Write the model y = x + x and return its path."""
    make, floats = onnx.helper, onnx.TensorProto.FLOAT
    values = [make.make_tensor_value_info(name, floats, ["n"]) for name in "xy"]
    graph = make.make_graph([make.make_node("Add", ["x", "x"], ["y"])], "doubling", values[:1], values[1:])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "a.onnx")
    return tmp_path / "a.onnx"


def test_session_runs_the_model(path: Path) -> None:
    session = open_session(path, path.read_bytes(), ["x"], ["y"])
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session.run(["y"], {"x": np.array([1.5, -2.0], np.float32)})[0].tolist() == [3.0, -4.0]


def test_other_input_and_output_names_are_rejected(path: Path) -> None:
    with pytest.raises(ChromaboxError, match=r"has inputs \['x'\] and outputs \['y'\]; expected \['x'\] and \['z'\]"):
        open_session(path, path.read_bytes(), ["x"], ["z"])


def test_invalid_model_raises_a_one_line_error(path: Path) -> None:
    with pytest.raises(ChromaboxError, match=r"a\.onnx: ONNX Runtime cannot open the model") as caught:
        open_session(path, b"not a model", ["x"], ["y"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("threads", "expected"), [(None, num_cores()), (1, 1), (3, 3)])
def test_number_of_threads(path: Path, threads: int | None, expected: int) -> None:
    session = open_session(path, path.read_bytes(), ["x"], ["y"], threads=threads)
    assert session.get_session_options().intra_op_num_threads == expected


@pytest.fixture
def external_bytes() -> bytes:
    """Return the model y = x + w with w in another file."""
    make, floats = onnx.helper, onnx.TensorProto.FLOAT
    values = [make.make_tensor_value_info(name, floats, [1]) for name in "xy"]
    w = onnx.TensorProto(name="w", data_type=floats, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    w.external_data.add(key="location", value="other.bin")
    graph = make.make_graph([make.make_node("Add", ["x", "w"], ["y"])], "external", values[:1], values[1:], [w])
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=8).SerializeToString()


@pytest.mark.parametrize(
    "entry",
    [
        b"\x0a\x08location\x12\x09other.bin",  # As written by protobuf.
        b"\x12\x09other.bin\x0a\x08location",  # The value before the key.
        b"\x0a\x88\x00location\x12\x09other.bi",  # A length of two bytes.
    ],
)
def test_tensors_in_other_files_are_rejected(path: Path, external_bytes: bytes, entry: bytes) -> None:
    original = b"\x0a\x08location\x12\x09other.bin"
    assert original in external_bytes
    with pytest.raises(ChromaboxError, match=r"a\.onnx: the model refers to tensors in other files"):
        open_session(path, external_bytes.replace(original, entry), ["x"], ["y"])


def test_the_word_location_elsewhere_is_accepted(path: Path) -> None:
    model = onnx.load(path)
    model.metadata_props.add(key="classes", value='["location", "location of a dog"]')
    open_session(path, model.SerializeToString(), ["x"], ["y"])


def test_auto_selects_the_best_available_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_provider("cpu") == "CPUExecutionProvider"
    assert resolve_provider() in session_module.onnxruntime.get_available_providers()
    for available, expected in (
        (["CPUExecutionProvider"], "CPUExecutionProvider"),
        (["AzureExecutionProvider", "CPUExecutionProvider"], "CPUExecutionProvider"),
        (["CPUExecutionProvider", "CoreMLExecutionProvider"], "CoreMLExecutionProvider"),
        (["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"], "CUDAExecutionProvider"),
    ):
        monkeypatch.setattr(session_module.onnxruntime, "get_available_providers", lambda names=available: names)
        assert resolve_provider() == expected
    assert resolve_provider("cpu") == "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("tpu", "--device is 'tpu': expected auto, cuda, coreml, directml, cpu"),
        ("directml", "--device directml: this installation of ONNX Runtime supports cuda, cpu only"),
    ],
)
def test_unknown_or_unavailable_device_is_rejected(
    device: str, message: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(session_module.onnxruntime, "get_available_providers", lambda: available)
    with pytest.raises(UsageError, match=message):
        resolve_provider(device)
    with pytest.raises(UsageError, match=message):
        open_session(path, path.read_bytes(), ["x"], ["y"], device=device)


def test_telemetry_is_not_started() -> None:
    """The environment variable must be set before the import."""
    program = "import chromabox.runtime.session, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for value, expected in ((None, "1"), ("0", "0")):
        environment = {**os.environ, "ORT_DISABLE_TELEMETRY": value or ""}
        if value is None:
            del environment["ORT_DISABLE_TELEMETRY"]
        result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert (result.stdout.strip(), result.stderr) == (expected, "")


FORK_PROGRAM = """
import os, signal, sys, warnings
from pathlib import Path
from chromabox.runtime.session import open_session
warnings.simplefilter("ignore")
path = Path(sys.argv[1])
session = open_session(path, path.read_bytes(), ["x"], ["y"], threads=2)
pid = os.fork()
if pid == 0:
    signal.alarm(30)
    if sys.argv[2] == "delete":
        del session
    open_session(path, path.read_bytes(), ["x"], ["y"], threads=2)
    sys.exit(3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize("action", ["keep", "delete"])
def test_forked_process_with_a_session_of_its_parent_exits(action: str, path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    command = [sys.executable, "-c", FORK_PROGRAM, str(path), action]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (3, "")


def double(session: object) -> list[float]:
    return session.run(["y"], {"x": np.array([1.5, -2.0], np.float32)})[0].tolist()  # type: ignore[attr-defined]


def test_pickled_session_opens_the_model_again(path: Path) -> None:
    session = open_session(path, path.read_bytes(), ["x"], ["y"], threads=2)
    restored = pickle.loads(pickle.dumps(session))
    assert double(restored) == [3.0, -4.0]
    assert restored.get_session_options().intra_op_num_threads == 2


def test_pickled_session_of_a_changed_file_is_rejected(path: Path) -> None:
    pickled = pickle.dumps(open_session(path, path.read_bytes(), ["x"], ["y"]))
    for change in (lambda: os.utime(path, ns=(0, 0)), path.unlink):
        change()
        with pytest.raises(ChromaboxError, match=r"a\.onnx: has changed since the model was opened; open the model"):
            pickle.loads(pickled)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_session_of_the_parent_can_be_used_in_a_forked_process(path: Path) -> None:
    session = open_session(path, path.read_bytes(), ["x"], ["y"], threads=2)
    assert double(session) == [3.0, -4.0]
    pid = os.fork()
    if pid == 0:  # Threads of the child share the session, and a process that the child forks opens it again.
        signal.alarm(60)
        with ThreadPoolExecutor(4) as pool:
            is_right = all(result == [3.0, -4.0] for result in pool.map(double, [session] * 8))
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(0 if double(session) == [3.0, -4.0] else 1)
        os._exit(0 if is_right and os.waitpid(grandchild, 0)[1] == 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_metadata_that_are_not_text_are_rejected(path: Path) -> None:
    model = onnx.load(path)
    model.metadata_props.add(key="history", value="damaged")
    content = model.SerializeToString().replace(b"damaged", b"dam\xffged")
    session = open_session(path, content, ["x"], ["y"])
    with pytest.raises(ChromaboxError, match=r"a\.onnx: the metadata is damaged"):
        read_session_metadata(session, path)


def test_one_line_joins_lines_and_limits_the_length() -> None:
    assert one_line(ValueError("first\n  second\n")) == "first second"
    assert len(one_line(ValueError("x" * 500))) == 300
