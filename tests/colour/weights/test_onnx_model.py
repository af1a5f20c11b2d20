"""Untrusted ONNX files: small files are built with onnx's helpers; all but exported models must be rejected."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from chromabox.colour.weights import onnx_model
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


def make_onnx_model(
    nodes: list[onnx.NodeProto] | None = None, *, classes: int = 2, **changes: str | None
) -> ModelProto:
    """Return one 1×1 convolution, logits = weight · grey + bias, with changed metadata (None removes an entry)."""
    initializers = [
        numpy_helper.from_array(WEIGHT[:classes].reshape(-1, 1, 1, 1), "weight"),
        numpy_helper.from_array(BIAS[:classes], "bias"),
    ]
    graph = helper.make_graph(
        nodes or [helper.make_node("Conv", ["grey", "weight", "bias"], ["scores"])],
        "tiny",
        [helper.make_tensor_value_info("grey", TensorProto.FLOAT, ["batch", 1, "height", "width"])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    for key, value in {**PROPERTIES, **changes}.items():
        if value is not None:
            model.metadata_props.add(key=key, value=value)
    return model


def write_model(path: Path, model: ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def test_opened_model_is_called_like_a_pytorch_model(tmp_path: Path) -> None:
    model = load_palette_model(write_model(tmp_path / "net.onnx", make_onnx_model()))
    assert (model.palette.name, model.metadata["net"], model.metadata["seed"]) == ("two", "tiny", 3)
    assert model.network.size_divisor == 4
    grey = torch.rand(3, 1, 8, 12)
    # The formula of the only layer; the input need not be contiguous.
    expected = grey.flip(-1).numpy() * WEIGHT[:, None, None] + BIAS[:, None, None]
    np.testing.assert_allclose(model.network(grey.flip(-1)).numpy(), expected, atol=1e-6)


def test_session_uses_pytorchs_number_of_threads(tmp_path: Path) -> None:
    path, before = write_model(tmp_path / "net.onnx", make_onnx_model()), torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            options = open_onnx(path)[0].session.get_session_options()
            assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, 1)
    finally:
        torch.set_num_threads(before)


def add_external_weight(model: ModelProto) -> None:
    """Refer to an existing file for the weights."""
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")


def add_external_constant(model: ModelProto) -> None:
    tensor = numpy_helper.from_array(BIAS, "elsewhere")
    model.graph.node.append(helper.make_node("Constant", [], ["more"], value=tensor))
    external_tensor = model.graph.node[-1].attribute[0].t
    external_tensor.ClearField("raw_data")
    external_tensor.data_location = TensorProto.EXTERNAL
    external_tensor.external_data.add(key="location", value="../secret")


def add_branch(model: ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["grey"], ["x"], then_branch=inner, else_branch=inner))


def add_large_tensor(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("ConstantOfShape", ["weight"], ["x"]))


def add_function(model: ModelProto) -> None:
    model.functions.append(helper.make_function("own", "f", [], [], [], [helper.make_opsetid("", 18)]))


def add_custom_operator(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Conv", ["grey"], ["x"], domain="com.stranger"))


def rename_input(model: ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "image"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (add_external_weight, "stores tensors in external files"),
        (add_external_constant, "stores tensors in external files"),
        (add_branch, "contains nested graphs"),
        (add_large_tensor, "uses the operators ConstantOfShape"),
        (add_function, "contains functions"),
        (add_custom_operator, r"uses the operators com\.stranger\.Conv"),
        (rename_input, r"has inputs \['image'\]"),
    ],
)
def test_disallowed_content_is_rejected(tmp_path: Path, change: Callable[[ModelProto], None], error: str) -> None:
    model = make_onnx_model()
    change(model)
    path = write_model(tmp_path / "net.onnx", model)
    with pytest.raises(ChromaboxError, match=error) as raised:
        load_model(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


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
        ({"palette": '{"name": "x", "colours": [[5, 5, 5], [0, 0, 0]]}'}, "not a checkpoint of a colourisation model"),
        (
            {"bins": '{"spacing": 10, "centres": [[1, 2]], "frequencies": [1]}'},
            "not a checkpoint of a colourisation model",
        ),
    ],
)
def test_invalid_metadata_is_rejected(tmp_path: Path, changes: dict[str, str | None], error: str) -> None:
    path = write_model(tmp_path / "net.onnx", make_onnx_model(**changes))
    with pytest.raises(ChromaboxError, match=error) as raised:
        load_model(path)
    assert str(path) in str(raised.value)


def test_corrupt_and_oversized_files_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model(tmp_path / "net.onnx", make_onnx_model())
    valid_bytes = path.read_bytes()
    for content in (b"\xff" * 100, valid_bytes[: len(valid_bytes) // 2]):
        path.write_bytes(content)
        with pytest.raises(ChromaboxError, match=r"not an ONNX file"):
            load_model(path)
    path.write_bytes(valid_bytes)
    monkeypatch.setattr(onnx_model, "MAX_MODEL_BYTES", 100)
    with pytest.raises(ChromaboxError, match="of at most 100 bytes"):
        load_model(path)


def test_output_of_another_shape_is_rejected(tmp_path: Path) -> None:
    grey = torch.rand(1, 1, 4, 4)
    fewer, _ = open_onnx(write_model(tmp_path / "fewer.onnx", make_onnx_model(classes=1)))
    with pytest.raises(ChromaboxError, match=r"shape \[1, 1, 4, 4\]; expected \[1, 2, 4, 4\]"):
        fewer(grey)
    matmul_model = make_onnx_model([helper.make_node("MatMul", ["grey", "bias"], ["scores"])])
    failing, _ = open_onnx(write_model(tmp_path / "failing.onnx", matmul_model))
    with pytest.raises(ChromaboxError, match="onnxruntime cannot run the model"):
        failing(grey)


def test_training_mode_is_rejected(tmp_path: Path) -> None:
    model, _ = open_onnx(write_model(tmp_path / "net.onnx", make_onnx_model()))
    assert not model.eval().training
    with pytest.raises(UsageError, match="use the checkpoint from which it was exported"):
        model.train()


@pytest.mark.parametrize("library", ["onnx", "onnxruntime"])
def test_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    path = write_model(tmp_path / "net.onnx", make_onnx_model())
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=rf"{library}.*pip install 'chromabox\[export\]'"):
        load_model(path)
