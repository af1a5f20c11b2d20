"""Detection without the packages of training, in other processes, and in several threads."""

import json
import multiprocessing
import multiprocessing.connection
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import chromabox
from import_fixtures import NOT_FOR_INFERENCE, run_without

API_PROGRAM = """
import sys, chromabox
detections = chromabox.detect(sys.argv[1], weights=sys.argv[2], confidence=0.3)
print(detections.xyxy.tolist())
"""
CLI_PROGRAM = """
from chromabox.__main__ import main
main()
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(path)
    return path


def detect_boxes(image: Path, exported: Path) -> list[list[float]]:
    return chromabox.detect(image, weights=exported, confidence=0.3).xyxy.tolist()


def test_function_without_packages_of_training(image: Path, exported: Path) -> None:
    result = run_without(NOT_FOR_INFERENCE, API_PROGRAM, image, exported)
    assert (result.returncode, result.stderr) == (0, "")
    expected = detect_boxes(image, exported)
    assert len(expected) > 3
    np.testing.assert_allclose(json.loads(result.stdout), expected, atol=1e-3)


@pytest.mark.parametrize("output", ["out.jpg", "boxes.json", "boxes.csv"])
def test_command_without_packages_of_training(output: str, image: Path, exported: Path, tmp_path: Path) -> None:
    arguments = ("detect", image, "-o", tmp_path / output, "--weights", exported, "--confidence", 0.3)
    result = run_without(NOT_FOR_INFERENCE, CLI_PROGRAM, *arguments)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert f"boxes: {len(detect_boxes(image, exported))}" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == [output]


def test_command_with_weights_that_need_pytorch(image: Path, tmp_path: Path) -> None:
    weights = tmp_path / "a.weights"
    weights.write_bytes(b"anything")
    arguments = ("detect", image, "-o", tmp_path / "out.jpg", "--weights", weights)
    result = run_without(NOT_FOR_INFERENCE, CLI_PROGRAM, *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(
        f"chromabox: {weights}: loading a model that is not an exported .onnx file requires torch"
    )
    assert "pip install 'chromabox[train]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def send_boxes(connection: multiprocessing.connection.Connection, image: Path, exported: Path) -> None:
    connection.send(detect_boxes(image, exported))
    connection.close()


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_detection_in_a_child_process_after_detection_in_the_parent(method: str, image: Path, exported: Path) -> None:
    expected = detect_boxes(image, exported)
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_boxes, args=(sender, image, exported))
    process.start()
    sender.close()
    try:
        assert receiver.poll(60), "the child process does not answer"
        assert receiver.recv() == expected
    finally:
        process.join(10)
        process.kill()
    assert process.exitcode == 0
    assert detect_boxes(image, exported) == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_detection_after_fork(image: Path, exported: Path) -> None:
    expected = detect_boxes(image, exported)
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        os._exit(0 if detect_boxes(image, exported) == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_detection_in_four_threads(image: Path, exported: Path) -> None:
    expected = detect_boxes(image, exported)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: detect_boxes(image, exported), range(16)))
    assert all(result == expected for result in results)
