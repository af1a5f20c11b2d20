"""ONNX files from anywhere: small ones are built here with onnx's own helpers, and all but nets of ours are refused."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from chromabox.colour.weights import onnx_model as onnx_net
from chromabox.colour.weights.checkpoint import load_model, load_palette_model
from chromabox.colour.weights.onnx_model import ONNX_FORMAT, open_onnx
from chromabox.errors import ChromaboxError, UsageError

WEIGHT, BIAS = np.array([1.0, -2.0], np.float32), np.array([0.5, 0.25], np.float32)
PROPERTIES = {
    "format": ONNX_FORMAT,
    "net": "tiny",
    "palette": json.dumps({"name": "two", "colours": [[0.1, 0.2, 0.3], [0.9, 0.5, 0.0]]}),
    "history": json.dumps({"seed": 3}),
    "multiple": "4",
    "stride": "1",
}


def model_of(nodes: list[onnx.NodeProto] | None = None, *, classes: int = 2, **changes: str | None) -> ModelProto:
    """One 1×1 convolution: scores = weight · grey + bias; changed metadata, None for an entry that is missing."""
    initial = [
        numpy_helper.from_array(WEIGHT[:classes].reshape(-1, 1, 1, 1), "weight"),
        numpy_helper.from_array(BIAS[:classes], "bias"),
    ]
    graph = helper.make_graph(
        nodes or [helper.make_node("Conv", ["grey", "weight", "bias"], ["scores"])],
        "tiny",
        [helper.make_tensor_value_info("grey", TensorProto.FLOAT, ["batch", 1, "height", "width"])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)],
        initial,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    for key, value in {**PROPERTIES, **changes}.items():
        if value is not None:
            model.metadata_props.add(key=key, value=value)
    return model


def written(path: Path, model: ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def test_a_file_is_called_like_the_net_it_came_from(tmp_path: Path) -> None:
    trained = load_palette_model(written(tmp_path / "net.onnx", model_of()))
    assert (trained.palette.name, trained.metadata["net"], trained.metadata["seed"]) == ("two", "tiny", 3)
    assert trained.network.size_divisor == 4
    grey = torch.rand(3, 1, 8, 12)
    # The formula of the one layer, by hand; the input need not be contiguous.
    right = grey.flip(-1).numpy() * WEIGHT[:, None, None] + BIAS[:, None, None]
    np.testing.assert_allclose(trained.network(grey.flip(-1)).numpy(), right, atol=1e-6)


def test_it_runs_on_as_many_threads_as_pytorch(tmp_path: Path) -> None:
    path, before = written(tmp_path / "net.onnx", model_of()), torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            options = open_onnx(path)[0].session.get_session_options()
            assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, 1)
    finally:
        torch.set_num_threads(before)


def outside(model: ModelProto) -> None:
    """The weights are said to lie in a file that is there."""
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")


def outside_in_a_constant(model: ModelProto) -> None:
    tensor = numpy_helper.from_array(BIAS, "elsewhere")
    model.graph.node.append(helper.make_node("Constant", [], ["more"], value=tensor))
    outside_tensor = model.graph.node[-1].attribute[0].t
    outside_tensor.ClearField("raw_data")
    outside_tensor.data_location = TensorProto.EXTERNAL
    outside_tensor.external_data.add(key="location", value="../secret")


def branching(model: ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["grey"], ["x"], then_branch=inner, else_branch=inner))


def a_bomb(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("ConstantOfShape", ["weight"], ["x"]))


def a_function(model: ModelProto) -> None:
    model.functions.append(helper.make_function("own", "f", [], [], [], [helper.make_opsetid("", 18)]))


def a_strange_domain(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Conv", ["grey"], ["x"], domain="com.stranger"))


def another_input(model: ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "image"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (outside, "keeps its numbers in other files"),
        (outside_in_a_constant, "keeps its numbers in other files"),
        (branching, "holds graphs inside its graph"),
        (a_bomb, "uses the operators ConstantOfShape"),
        (a_function, "holds functions"),
        (a_strange_domain, r"uses the operators com\.stranger\.Conv"),
        (another_input, r"has inputs \['image'\]"),
    ],
)
def test_what_no_net_of_ours_holds_is_refused(tmp_path: Path, change: Callable[[ModelProto], None], error: str) -> None:
    model = model_of()
    change(model)
    path = written(tmp_path / "net.onnx", model)
    with pytest.raises(ChromaboxError, match=error) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"format": None}, "not an ONNX file of chromabox"),
        ({"format": "other"}, "not an ONNX file of chromabox"),
        ({"palette": None}, "metadata is damaged"),
        ({"palette": "[1, 2"}, "metadata is damaged"),
        ({"palette": "{}"}, "metadata is damaged"),
        ({"history": "[]"}, "metadata is damaged"),
        ({"multiple": "0"}, "metadata is damaged"),
        ({"multiple": "100000"}, "metadata is damaged"),
        ({"stride": "3"}, "metadata is damaged"),
        ({"palette": '{"name": "x", "colours": [[5, 5, 5], [0, 0, 0]]}'}, "not a checkpoint of a colour net"),
        ({"bins": '{"spacing": 10, "centres": [[1, 2]], "frequencies": [1]}'}, "not a checkpoint of a colour net"),
    ],
)
def test_metadata_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, str | None], error: str) -> None:
    path = written(tmp_path / "net.onnx", model_of(**changes))
    with pytest.raises(ChromaboxError, match=error) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


def test_damaged_and_huge_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "net.onnx", model_of())
    whole = path.read_bytes()
    for content in (b"\xff" * 100, whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ChromaboxError, match=r"not an ONNX file"):
            load_model(path)
    path.write_bytes(whole)
    monkeypatch.setattr(onnx_net, "MAX_MODEL_BYTES", 100)
    with pytest.raises(ChromaboxError, match="the nets of chromabox have less"):
        load_model(path)


def test_scores_of_another_shape_are_refused(tmp_path: Path) -> None:
    grey = torch.rand(1, 1, 4, 4)
    fewer, _ = open_onnx(written(tmp_path / "fewer.onnx", model_of(classes=1)))
    with pytest.raises(ChromaboxError, match=r"shape \[1, 1, 4, 4\]; \[1, 2, 4, 4\] is right"):
        fewer(grey)
    wrong = model_of([helper.make_node("MatMul", ["grey", "bias"], ["scores"])])
    failing, _ = open_onnx(written(tmp_path / "failing.onnx", wrong))
    with pytest.raises(ChromaboxError, match="onnxruntime cannot run it"):
        failing(grey)


def test_it_cannot_be_trained(tmp_path: Path) -> None:
    net, _ = open_onnx(written(tmp_path / "net.onnx", model_of()))
    assert not net.eval().training
    with pytest.raises(UsageError, match="give the checkpoint it was exported from"):
        net.train()


@pytest.mark.parametrize("library", ["onnx", "onnxruntime"])
def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    path = written(tmp_path / "net.onnx", model_of())
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=rf"{library}.*pip install 'chromabox\[export\]'"):
        load_model(path)
