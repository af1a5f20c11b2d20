"""Convolutions in ONNX files written by the onnx package; expected values from its reader and reference evaluator."""

from pathlib import Path

import numpy as np
import pytest

from chromabox.engine.darknet_weights import BN_EPSILON, pack_layers, read_onnx_convolutions, read_onnx_metadata
from chromabox.errors import ChromaboxError

onnx = pytest.importorskip("onnx", reason="the onnx package writes the files of these tests")


def model(raw: bool = True, epsilon: float | None = 1e-3) -> "onnx.ModelProto":
    """Return a model of two convolutions, the first with BatchNorm; the initializers are not sorted by name."""
    random = np.random.default_rng(0)
    arrays = {
        "net_10/kernel:0": random.standard_normal((5, 4, 1, 1)),
        "net_10/bias:0": random.standard_normal(5),
        "net_2/kernel:0": random.standard_normal((4, 3, 3, 3)),
        **{name: random.uniform(0.5, 2, 4) for name in ("scale", "offset", "mean", "variance")},
    }
    make_tensor = onnx.numpy_helper.from_array if raw else _as_floats
    tensors = [make_tensor(array.astype(np.float32), name) for name, array in arrays.items()]
    tensors.append(onnx.numpy_helper.from_array(np.array([1, -1, 2], np.int64), "shape"))
    attributes = {} if epsilon is None else {"epsilon": epsilon}
    nodes = [
        onnx.helper.make_node("Conv", ["in", "net_2/kernel:0"], ["a"], pads=[1, 1, 1, 1]),
        onnx.helper.make_node("BatchNormalization", ["a", "scale", "offset", "mean", "variance"], ["b"], **attributes),
        onnx.helper.make_node("LeakyRelu", ["b"], ["c"], alpha=0.1),
        onnx.helper.make_node("Conv", ["c", "net_10/kernel:0", "net_10/bias:0"], ["out"]),
    ]
    value_info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "net",
        [value_info("in", onnx.TensorProto.FLOAT, [1, 3, 6, 6])],
        [value_info("out", onnx.TensorProto.FLOAT, [1, 5, 6, 6])],
        tensors,
    )
    return onnx.helper.make_model(graph)


def _as_floats(array: np.ndarray, name: str) -> "onnx.TensorProto":
    return onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, array.shape, array.ravel())


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("epsilon", [1e-3, None])
def test_values_are_equal_to_the_onnx_package(tmp_path: Path, raw: bool, epsilon: float | None) -> None:
    proto = model(raw, epsilon)
    onnx.save(proto, tmp_path / "a.onnx")
    expected = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    first, second = read_onnx_convolutions(tmp_path / "a.onnx")
    np.testing.assert_array_equal(first["kernel"], expected["net_2/kernel:0"])
    np.testing.assert_array_equal(first["bias"], expected["offset"])
    np.testing.assert_array_equal(first["weight"], expected["scale"])
    np.testing.assert_array_equal(first["mean"], expected["mean"])
    np.testing.assert_allclose(first["variance"], expected["variance"] + (epsilon or 1e-5), rtol=1e-6)
    assert second.keys() == {"kernel", "bias"}
    np.testing.assert_array_equal(second["kernel"], expected["net_10/kernel:0"])
    np.testing.assert_array_equal(second["bias"], expected["net_10/bias:0"])


def test_packed_layers_compute_the_same_outputs(tmp_path: Path) -> None:
    """Compare BatchNorm with Darknet's epsilon after the conversion with onnx's reference evaluator."""
    import torch
    from onnx.reference import ReferenceEvaluator
    from torch.nn import functional as F

    proto = model()
    onnx.save(proto, tmp_path / "a.onnx")
    image = np.random.default_rng(1).standard_normal((1, 3, 6, 6)).astype(np.float32)
    [expected] = ReferenceEvaluator(proto).run(None, {"in": image})
    values = torch.from_numpy(pack_layers(read_onnx_convolutions(tmp_path / "a.onnx"), BN_EPSILON))
    bias, weight, mean, variance, kernel, last_bias, last_kernel = values.split([4, 4, 4, 4, 108, 5, 20])
    out = F.conv2d(torch.from_numpy(image), kernel.view(4, 3, 3, 3), padding=1)
    out = F.leaky_relu(F.batch_norm(out, mean, variance, weight, bias, eps=BN_EPSILON), 0.1)
    out = F.conv2d(out, last_kernel.view(5, 4, 1, 1), last_bias)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "content", [b"", b"\x00", b"not a protobuf at all", b"\x0a\xff", b"\x3a\x05ab", b"\xff" * 20, b"\x08\x07"]
)
def test_other_files_are_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(ChromaboxError, match=r"a\.onnx: the file is not an ONNX model .*or is damaged"):
        read_onnx_convolutions(tmp_path / "a.onnx")


def test_truncated_files_are_rejected(tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "a.onnx")
    content = (tmp_path / "a.onnx").read_bytes()
    for size in range(0, len(content) - 1, 7):
        (tmp_path / "a.onnx").write_bytes(content[:size])
        with pytest.raises(ChromaboxError, match=r"a\.onnx: (the file is not an ONNX model|contains no convolution)"):
            read_onnx_convolutions(tmp_path / "a.onnx")


def test_graph_without_convolutions_and_missing_file_are_rejected(tmp_path: Path) -> None:
    graph = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "a.onnx")
    with pytest.raises(ChromaboxError, match=r"a\.onnx: contains no convolution"):
        read_onnx_convolutions(tmp_path / "a.onnx")
    with pytest.raises(ChromaboxError, match=r"none\.onnx: cannot be read \(No such file"):
        read_onnx_convolutions(tmp_path / "none.onnx")


def test_metadata_are_equal_to_the_onnx_package(tmp_path: Path) -> None:
    proto = model()
    assert proto.metadata_props == []
    onnx.save(proto, tmp_path / "a.onnx")
    assert read_onnx_metadata(tmp_path / "a.onnx") == {}
    metadata = {"format": "1", "größe": "12 €", "empty": ""}
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    onnx.save(proto, tmp_path / "a.onnx")
    assert read_onnx_metadata(tmp_path / "a.onnx") == metadata
    (tmp_path / "b.onnx").write_bytes((tmp_path / "a.onnx").read_bytes()[:-3])
    with pytest.raises(ChromaboxError, match=r"b\.onnx: the file is not an ONNX model or is damaged; use another file"):
        read_onnx_metadata(tmp_path / "b.onnx")


def test_weights_in_another_file_and_large_files_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = model()
    (tmp_path / "weights.bin").write_bytes(proto.graph.initializer[0].raw_data)
    onnx.external_data_helper.set_external_data(proto.graph.initializer[0], "weights.bin")
    proto.graph.initializer[0].ClearField("raw_data")
    (tmp_path / "a.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(
        ChromaboxError, match=r"a\.onnx: the file is not an ONNX model of .*the weights are stored in another file"
    ):
        read_onnx_convolutions(tmp_path / "a.onnx")
    monkeypatch.setattr("chromabox.engine.darknet_weights.MAX_ONNX_BYTES", 100)
    with pytest.raises(ChromaboxError, match=r"a\.onnx: has .*; expected an ONNX file of at most 100 bytes"):
        read_onnx_metadata(tmp_path / "a.onnx")
