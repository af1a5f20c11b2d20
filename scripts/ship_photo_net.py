"""Copy a trained photo model into the package as the default model of ``chromabox colour``.

    python scripts/ship_photo_net.py runs/photo --data SHARDS [--note TEXT]

The kernels of the convolutions are stored as 8-bit integers with one scale per output channel. The kernels of depthwise
convolutions, which are small and lose more by rounding, and the other weights are stored as float16. Inference converts
them to float32 when the file is opened. The script evaluates the model before and after this rounding on the validation
images. The metadata contains the training settings and the results.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import torch
from onnxscript import optimizer
from torch import nn

from chromabox.colour.data.photos import load_photos
from chromabox.colour.training.train_photo import NUM_DECODED, validate_photo
from chromabox.colour.weights.checkpoint import OnnxNetwork, PhotoModel, load_model
from chromabox.colour.weights.export import compare_outputs, onnx_metadata, to_colour_onnx
from chromabox.colour.weights.onnx_model import BUNDLED_MODEL, load_onnx_model
from chromabox.engine.export import save_verified

#: Side length of the images in the evaluation.
SIZE = 192

Quantised = dict[str, tuple[np.ndarray, np.ndarray]]
"""For each kernel, its name, the integers and the scales [out, 1, 1, 1]."""


def quantise(network: nn.Module) -> Quantised:
    """Round the weights of a model to values that can be stored exactly. Return the integers and scales of kernels."""
    state, quantised = network.state_dict(), {}
    for name, value in state.items():
        if value.ndim == 4 and value.shape[1] > 1:
            scale = (value.abs().amax((1, 2, 3), keepdim=True) / 127).clamp(min=1e-12)
            integers = (value / scale).round()
            quantised[name] = integers.to(torch.int8).numpy(), scale.numpy()
            state[name] = integers * scale
        elif value.is_floating_point():
            state[name] = value.half()
    network.load_state_dict(state)
    return quantised


def export_quantised(model: PhotoModel, quantised: Quantised, path: Path) -> None:
    """Export a model to ONNX. Nodes at the start of the graph convert the stored weights to float32."""
    # BatchNorm is not folded in the file, because folded weights are not exact in float16. ONNX Runtime folds it.
    graph = onnx_ir.serde.deserialize_model(to_colour_onnx(model.network, optimize=False))
    optimizer.inline(graph)
    optimizer.fold_constants(graph)
    optimizer.remove_unused_nodes(graph)
    exported = onnx_ir.serde.serialize_model(graph)
    initializers, conversions = [], []
    to_array, from_array, make_node = onnx.numpy_helper.to_array, onnx.numpy_helper.from_array, onnx.helper.make_node
    for tensor in exported.graph.initializer:
        name, values = tensor.name, to_array(tensor)
        half = values.astype(np.float16) if values.dtype == np.float32 else values
        if name in quantised:
            integers, scale = quantised[name]
            initializers += [from_array(integers, f"{name}_int8"), from_array(scale, f"{name}_scale")]
            conversions.append(make_node("Cast", [f"{name}_int8"], [f"{name}_float"], to=onnx.TensorProto.FLOAT))
            conversions.append(make_node("Mul", [f"{name}_float", f"{name}_scale"], [name]))
        elif values.dtype == np.float32 and values.size > 1 and (half == values).all():
            initializers.append(from_array(half, f"{name}_half"))
            conversions.append(make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT))
        else:
            initializers.append(onnx.TensorProto.FromString(tensor.SerializeToString()))
    nodes = [*conversions, *(onnx.NodeProto.FromString(node.SerializeToString()) for node in exported.graph.node)]
    del exported.graph.initializer[:], exported.graph.node[:]
    exported.graph.initializer.extend(initializers)
    exported.graph.node.extend(nodes)
    report = save_verified(
        path,
        exported,
        onnx_metadata(model),
        lambda file: compare_outputs(model.network, OnnxNetwork(load_onnx_model(file)).eval()),
    )
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB; {report}")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder or checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="folder of tar shards")
    parser.add_argument("--note", default="", help="text for the metadata")
    options = parser.parse_args()
    model = load_model(options.run)
    if not isinstance(model, PhotoModel):
        sys.exit(f"{options.run}: expected a photo model")
    photos = load_photos(options.data)
    before = validate_photo(model.network, model.bins, photos.val[:NUM_DECODED], SIZE)
    quantised = quantise(model.network)
    after = validate_photo(model.network, model.bins, photos.val[:NUM_DECODED], SIZE)
    print(f"float32: {before}\nrounded: {after}")
    metadata = {"net": "photo", "settings": model.metadata["settings"], "bins": model.metadata["bins"]}
    metadata |= {"start": "efficientnet-lite0", "seed": 0, "note": options.note}
    metadata |= {"photographs": {"train": len(photos.train), "val": len(photos.val)}, "measured_on_val": after}
    export_quantised(replace(model, metadata=metadata), quantised, BUNDLED_MODEL)


if __name__ == "__main__":
    main()
