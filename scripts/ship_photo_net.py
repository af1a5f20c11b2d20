"""Put a run's best photo net into the package as the one that ``chromabox colour`` uses when none is named.

Weights are stored in half precision (the net is run in float32); the description says how they were made and what they
measure on the run's own validation pictures with the halved weights, measured here, not typed.

    chromabox train photo --data photos/ -o runs/shipped
    python scripts/ship_photo_net.py runs/shipped [what else should be known of it]
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


def halved(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


def main() -> None:
    run = Path(sys.argv[1])
    trained = load_model(run)
    if not isinstance(trained, PhotoModel):
        sys.exit(f"{run}: not the run of a photo net")
    trained.network.load_state_dict({name: halved(value) for name, value in trained.network.state_dict().items()})
    config = json.loads((run / "config.json").read_text())
    photographs = load_photos(Path(config["data"]))
    squares = [center_crop(photograph) for photograph in photographs.val]
    measured = validate_photo(trained.network, trained.bins, squares, config["size"])
    keys = ("net", "settings", "bins", "data", "size", "seed", "start", "epoch")
    description: dict[str, Any] = {key: trained.metadata[key] for key in keys}
    description |= {"recipe": config["recipe"], "versions": config["versions"]}
    description["photographs"] = {"train": len(photographs.train), "val": len(photographs.val)}
    description["measured_on_val"] = measured
    description["epochs_run"] = len(read_metrics(run))
    description["note"] = " ".join(sys.argv[2:])
    state = {"net": {name: halved(value) for name, value in trained.network.state_dict().items()}}
    save_checkpoint(ASSETS / DEFAULT_CHECKPOINT, state, description)
    print(f"{ASSETS / DEFAULT_CHECKPOINT}: {(ASSETS / DEFAULT_CHECKPOINT).stat().st_size / 1e6:.1f} MB; {measured}")


if __name__ == "__main__":
    main()
