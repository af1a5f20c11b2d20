"""Copy the best photo model of a run into the package as the default model of ``chromabox colour``.

Weights are stored in half precision (inference uses float32). The metadata contains the training settings, and metrics
of the half-precision weights on the validation images of the run, which are computed by this script.

    chromabox train photo --data photos/ -o runs/bundled
    python scripts/ship_photo_net.py runs/bundled [NOTE ...]
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from chromabox.colour.data.photos import center_crop, load_photos
from chromabox.colour.training.train_photo import validate_photo
from chromabox.colour.weights.checkpoint import DEFAULT_CHECKPOINT, PhotoModel, load_model
from chromabox.engine.checkpoint import save_checkpoint
from chromabox.engine.logger import read_metrics

ASSETS = Path(__file__).parents[1] / "src" / "chromabox" / "assets"


def to_half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


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
    state = {"net": {name: to_half(value) for name, value in model.network.state_dict().items()}}
    save_checkpoint(ASSETS / DEFAULT_CHECKPOINT, state, metadata)
    print(f"{ASSETS / DEFAULT_CHECKPOINT}: {(ASSETS / DEFAULT_CHECKPOINT).stat().st_size / 1e6:.1f} MB; {metrics}")


if __name__ == "__main__":
    main()
