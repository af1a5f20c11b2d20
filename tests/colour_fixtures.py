"""Small colourisation models as ONNX files, built without PyTorch's exporter, which takes seconds."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from chromabox.colour.weights.checkpoint import PaletteModel, PhotoModel
from chromabox.colour.weights.export import onnx_metadata
from chromabox.colour.weights.onnx_model import ONNX_INPUT, ONNX_OUTPUT, ColourModel, load_onnx_model


def write_colour_model(
    path: Path, model: PaletteModel | PhotoModel, *, seed: int, scale: float, bias: np.ndarray | None = None
) -> ColourModel:
    """Write and load a file with the metadata of a model, and two random convolutions instead of its network.

    ``scale`` is the standard deviation of the weights of the last layer, and ``bias`` its bias.
    """
    stride = getattr(model.network, "stride", 1)
    num_classes = len(model.bins if isinstance(model, PhotoModel) else model.palette)
    rng = np.random.default_rng(seed)
    kernel, padding = (stride, 0) if stride > 1 else (3, 1)
    tensors = {
        "first": rng.normal(0, 2 / kernel, (8, 1, kernel, kernel)),
        "first_bias": rng.uniform(-0.5, 0.5, 8),
        "last": rng.normal(0, scale, (num_classes, 8, 1, 1)),
        "last_bias": np.zeros(num_classes) if bias is None else bias,
    }
    nodes = [
        helper.make_node(
            "Conv",
            [ONNX_INPUT, "first", "first_bias"],
            ["a"],
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[padding] * 4,
        ),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "last", "last_bias"], [ONNX_OUTPUT]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(ONNX_INPUT, TensorProto.FLOAT, ["batch", 1, "height", "width"])],
        [helper.make_tensor_value_info(ONNX_OUTPUT, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in tensors.items()],
    )
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(file, onnx_metadata(model))
    path.write_bytes(file.SerializeToString())
    return load_onnx_model(path)


def write_feature_network(
    path: Path, *, dtype: int = TensorProto.FLOAT, size: int | str = 8, flat: bool = True, channels: int = 3
) -> Path:
    """Write a network whose features are the means of the channels of each image."""
    nodes = [helper.make_node("Cast", ["images"], ["values"], to=TensorProto.FLOAT)]
    nodes.append(helper.make_node("ReduceMean", ["values"], ["features"], axes=[2, 3], keepdims=int(not flat)))
    shape = ["batch", channels, size, size]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("images", dtype, shape)],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, None)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path
