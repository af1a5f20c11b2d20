"""Models for inference: files built with onnx's helpers, of which all but exported models are rejected."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from skimage.color import rgb2lab

from chromabox.colour.weights import onnx_model
from chromabox.colour.weights.checkpoint import OnnxNetwork, load_palette_model
from chromabox.colour.weights.onnx_model import ONNX_FORMAT, load_onnx_model
from chromabox.errors import ChromaboxError, UsageError

WEIGHT, BIAS = np.array([1.0, -2.0], np.float32), np.array([0.5, 0.25], np.float32)
PROPERTIES = {
    "format": ONNX_FORMAT,
    "net": "tiny",
    "palette": json.dumps({"name": "two", "colours": [[0.1, 0.2, 0.3], [0.9, 0.5, 0.0]]}),
    "history": json.dumps({"seed": 3}),
    "multiple": "4",
    "stride": "1",
    "looks": "[32]",
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


def test_predict_computes_the_logits_and_the_metadata_is_read(tmp_path: Path) -> None:
    path = write_model(tmp_path / "net.onnx", make_onnx_model(looks="[32, 40]"))
    model = load_onnx_model(path)
    assert (model.path, model.metadata["net"], model.metadata["seed"], model.is_photo) == (path, "tiny", 3, False)
    assert model.output.name == "two"
    assert (model.size_divisor, model.stride, model.scales) == (4, 1, (32, 40))
    colours = np.rint(np.array([[[0.1, 0.2, 0.3], [0.9, 0.5, 0.0]]]) * 256) / 255
    np.testing.assert_allclose(model.centres, rgb2lab(colours)[0, :, 1:], atol=0.01)
    grey = np.random.default_rng(0).random((3, 1, 8, 12), np.float32)[..., ::-1]  # not contiguous
    # The formula of the only layer.
    np.testing.assert_allclose(model.predict(grey), grey * WEIGHT[:, None, None] + BIAS[:, None, None], atol=1e-6)


def test_file_is_called_like_a_pytorch_model(tmp_path: Path) -> None:
    model = load_palette_model(write_model(tmp_path / "net.onnx", make_onnx_model()))
    assert (model.palette.name, model.metadata["net"], model.metadata["seed"]) == ("two", "tiny", 3)
    assert model.network.size_divisor == 4
    grey = torch.rand(3, 1, 8, 12)
    # The input need not be contiguous.
    expected = grey.flip(-1).numpy() * WEIGHT[:, None, None] + BIAS[:, None, None]
    np.testing.assert_allclose(model.network(grey.flip(-1)).numpy(), expected, atol=1e-6)


def test_threads_and_device_are_those_of_the_session(tmp_path: Path) -> None:
    path = write_model(tmp_path / "net.onnx", make_onnx_model())
    for threads in (1, 2):
        session = load_onnx_model(path, threads=threads, device="cpu").session
        options = session.get_session_options()
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, 1)
        assert session.get_providers() == ["CPUExecutionProvider"]
    with pytest.raises(UsageError, match="--device is 'abacus'"):
        load_onnx_model(path, device="abacus")


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


def add_custom_operator(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Conv", ["grey"], ["x"], domain="com.stranger"))


def rename_input(model: ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "image"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (add_external_weight, "refers to tensors in other files"),
        (add_external_constant, "refers to tensors in other files"),
        (add_custom_operator, "ONNX Runtime cannot open the model"),
        (rename_input, r"has inputs \['image'\]"),
    ],
)
def test_other_models_are_rejected(tmp_path: Path, change: Callable[[ModelProto], None], error: str) -> None:
    model = make_onnx_model()
    change(model)
    assert_rejected(write_model(tmp_path / "net.onnx", model), error)


def assert_rejected(path: Path, error: str) -> None:
    """Assert that the file is rejected with one line that names it."""
    with pytest.raises(ChromaboxError, match=error) as raised:
        load_onnx_model(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500
    assert raised.value.exit_code == 1


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"format": None}, "not a Chromabox ONNX file"),
        ({"format": "other"}, "not a Chromabox ONNX file"),
        ({"palette": None}, "metadata is damaged"),
        ({"palette": "[1, 2"}, "metadata is damaged"),
        ({"palette": "{}"}, "metadata is damaged"),
        ({"palette": '{"name": "x", "colours": [[5, 5, 5], [0, 0, 0]]}'}, "metadata is damaged"),
        ({"palette": '{"name": "x", "colours": [[1, 1, 1], [0, 0]]}'}, "metadata is damaged"),
        ({"palette": '{"name": "x", "colours": [[1, 1, 1], [0, 0, 1%s]]}' % ("0" * 400)}, "metadata is damaged"),
        ({"bins": '{"spacing": 10, "centres": [[1, 2]], "frequencies": [1]}'}, "metadata is damaged"),
        ({"bins": "[]"}, "metadata is damaged"),
        ({"net": None}, "metadata is damaged"),
        ({"history": "[]"}, "metadata is damaged"),
        ({"history": "[" * 100_000}, "metadata is damaged"),
        ({"multiple": None}, "metadata is damaged"),
        ({"multiple": "0"}, "metadata is damaged"),
        ({"multiple": "100000"}, "metadata is damaged"),
        ({"stride": "3"}, "metadata is damaged"),
        ({"stride": "many"}, "metadata is damaged"),
        ({"looks": None}, "metadata is damaged"),
        ({"looks": "[]"}, "metadata is damaged"),
        ({"looks": "[0]"}, "metadata is damaged"),
        ({"looks": "[100000]"}, "metadata is damaged"),
        ({"looks": "[Infinity]"}, "metadata is damaged"),
        ({"looks": "32"}, "metadata is damaged"),
        ({"looks": json.dumps([32] * 100)}, "metadata is damaged"),
    ],
)
def test_invalid_metadata_is_rejected(tmp_path: Path, changes: dict[str, str | None], error: str) -> None:
    assert_rejected(write_model(tmp_path / "net.onnx", make_onnx_model(**changes)), error)


def test_corrupt_and_oversized_files_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model(tmp_path / "net.onnx", make_onnx_model())
    valid_bytes = path.read_bytes()
    for content in (b"", b"\xff" * 100, valid_bytes[: len(valid_bytes) // 2]):
        path.write_bytes(content)
        assert_rejected(path, "ONNX Runtime cannot open the model|has inputs")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ChromaboxError, match=r"folder\.onnx: cannot be read"):
        load_onnx_model(tmp_path / "folder.onnx")
    path.write_bytes(valid_bytes)
    monkeypatch.setattr(onnx_model, "MAX_MODEL_BYTES", 100)
    assert_rejected(path, "of at most 100 bytes")


def test_output_of_another_shape_is_rejected(tmp_path: Path) -> None:
    grey = np.zeros((1, 1, 4, 4), np.float32)
    fewer = load_onnx_model(write_model(tmp_path / "fewer.onnx", make_onnx_model(classes=1)))
    with pytest.raises(ChromaboxError, match=r"shape \[1, 1, 4, 4\]; expected \[1, 2, 4, 4\]"):
        fewer.predict(grey)
    matmul_model = make_onnx_model([helper.make_node("MatMul", ["grey", "bias"], ["scores"])])
    failing = load_onnx_model(write_model(tmp_path / "failing.onnx", matmul_model))
    with pytest.raises(ChromaboxError, match=r"failing\.onnx: ONNX Runtime cannot run the model"):
        failing.predict(grey)


def test_training_mode_is_rejected(tmp_path: Path) -> None:
    network = OnnxNetwork(load_onnx_model(write_model(tmp_path / "net.onnx", make_onnx_model())))
    assert not network.eval().training
    with pytest.raises(UsageError, match="use the checkpoint from which it was exported"):
        network.train()
