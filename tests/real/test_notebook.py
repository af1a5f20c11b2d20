"""The lesson runs from top to bottom in its instant tier, on real data, and holds no outputs of its own."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from chromabox.detect.weights.load import download_pretrained
from chromabox.errors import ChromaboxError
from chromabox.io.cifar10 import load_cifar10

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "handout.ipynb"
#: The handout's questions.
QUESTIONS = ["A.1", "A.2", "A.3", "B.1", "B.2", "B.3", "B.4", "B.5", "C.1", "C.2", "C.3", "D.1", "D.2"]


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> nbformat.NotebookNode:
    """The notebook after it ran in a folder of its own."""
    try:
        load_cifar10("test", ("horse",))
    except ChromaboxError as error:
        pytest.skip(f"THE REAL CIFAR-10 CANNOT BE REACHED, SO THE NOTEBOOK IS NOT RUN: {error}")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHROMABOX_TIER", "instant")
        patch.setenv("CHROMABOX_RUNS", str(folder / "runs"))
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def said(notebook: nbformat.NotebookNode) -> str:
    """All that was printed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def test_it_is_stored_without_outputs() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]


def test_every_question_has_its_heading() -> None:
    text = "\n".join(
        cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "markdown"
    )
    assert re.findall(r"^## ([A-D]\.\d)", text, re.MULTILINE) == QUESTIONS


def test_it_runs_and_its_nets_learn(executed: nbformat.NotebookNode) -> None:
    right = dict(re.findall(r"^([\w-]+): ([\d.]+) % right, loss", said(executed), re.MULTILINE))
    # Always the most frequent colour gets 6.7 %; the order of the three nets is the published one.
    assert 20 < float(right["pool-upsample-quick"]) < float(right["conv-transpose-quick"]) < float(right["unet-quick"])


def test_what_is_written_by_hand_is_the_packages_own(executed: nbformat.NotebookNode) -> None:
    assert "largest difference: 0.0e+00" in said(executed)


def test_frozen_layers_have_not_moved(executed: nbformat.NotebookNode) -> None:
    try:
        download_pretrained("yolov3-tiny")
    except ChromaboxError as error:
        pytest.skip(f"YOLOV3-TINY CANNOT BE REACHED, SO THE NOTEBOOK FREEZES NOTHING: {error}")
    moved = ast.literal_eval(re.findall(r"^\{.*\}$", said(executed), re.MULTILINE)[-1])
    assert {layer for layer, most in moved.items() if most == 0} == {0, 2, 4, 6, 8}
    assert all(most > 0 for layer, most in moved.items() if layer >= 10)
