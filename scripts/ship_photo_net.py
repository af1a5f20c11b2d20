"""Copy the best photo model of a run into the package as the default model of ``chromabox colour``.

The weights are stored in half precision, while inference uses float32. The script evaluates the half-precision weights
on the validation images of the run. The metadata contains the training settings and these metrics.

    chromabox train photo --data photos/ -o runs/bundled
    python scripts/ship_photo_net.py runs/bundled [NOTE ...]
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import torch
from onnxscript import optimizer

from chromabox.colour.data.datasets import center_crop
from chromabox.colour.data.photos import load_photos
from chromabox.colour.training.train_photo import validate_photo
from chromabox.colour.weights.checkpoint import OnnxNetwork, PhotoModel, load_model
from chromabox.colour.weights.export import compare_outputs, onnx_metadata, to_colour_onnx
from chromabox.colour.weights.onnx_model import BUNDLED_MODEL, load_onnx_model
from chromabox.engine.export import save_verified
from chromabox.engine.logger import read_metrics


def to_half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


def export_half(model: PhotoModel, path: Path) -> None:
    """Export a model to ONNX. Weights that are exact in float16 are stored as float16 and converted on loading."""
    # BatchNorm is not folded in the file, because folded weights are not exact in float16. ONNX Runtime folds it.
    graph = onnx_ir.serde.deserialize_model(to_colour_onnx(model.network, optimize=False))
    optimizer.inline(graph)
    optimizer.fold_constants(graph)
    optimizer.remove_unused_nodes(graph)
    exported = onnx_ir.serde.serialize_model(graph)
    initializers, casts = [], []
    for tensor in exported.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        half = values.astype(np.float16) if values.dtype == np.float32 else values
        if values.dtype == np.float32 and values.size > 1 and (half == values).all():
            initializers.append(onnx.numpy_helper.from_array(half, f"{tensor.name}_half"))
            casts.append(
                onnx.helper.make_node("Cast", [f"{tensor.name}_half"], [tensor.name], to=onnx.TensorProto.FLOAT)
            )
        else:
            initializers.append(onnx.TensorProto.FromString(tensor.SerializeToString()))
    nodes = [*casts, *(onnx.NodeProto.FromString(node.SerializeToString()) for node in exported.graph.node)]
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
    run = Path(sys.argv[1])
    model = load_model(run)
    if not isinstance(model, PhotoModel):
        sys.exit(f"{run}: expected a run of a photo model")
    model.network.load_state_dict({name: to_half(value) for name, value in model.network.state_dict().items()})
    config = json.loads((run / "config.json").read_text())
    dataset = load_photos(Path(config["data"]))
    crops = [center_crop(photo) for photo in dataset.val]
    metrics = validate_photo(model.network, model.bins, crops, config["size"])
    keys = ("net", "settings", "bins", "data", "size", "seed", "start", "epoch")
    metadata: dict[str, Any] = {key: model.metadata[key] for key in keys}
    metadata |= {"recipe": config["recipe"], "versions": config["versions"]}
    metadata["photographs"] = {"train": len(dataset.train), "val": len(dataset.val)}
    metadata["measured_on_val"] = metrics
    metadata["epochs_run"] = len(read_metrics(run))
    metadata["note"] = " ".join(sys.argv[2:])
    export_half(replace(model, metadata=metadata), BUNDLED_MODEL)
    print(metrics)


if __name__ == "__main__":
    main()
