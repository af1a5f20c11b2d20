"""Put a run's best net into the package as the one that ``chromabox colour`` uses when none is named.

Weights are stored in half precision (the net is run in float32); the description says how they were made and what they
measure, both taken from the run and from the test split, not typed.

    chromabox train colournet --data cifar10:all --palette cifar24 --epochs 3 -o runs/shipped
    python scripts/ship_colour_net.py runs/shipped
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from chromabox.colour.data import load_colour_data
from chromabox.colour.evaluate import evaluate
from chromabox.colour.trained import SHIPPED, load_trained
from chromabox.engine.checkpoint import save_checkpoint

ASSETS = Path(__file__).parents[1] / "src" / "chromabox" / "assets"


def halved(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


def main() -> None:
    run = Path(sys.argv[1])
    trained = load_trained(run)
    trained.net.load_state_dict({name: halved(value) for name, value in trained.net.state_dict().items()})
    config = json.loads((run / "config.json").read_text())
    data = load_colour_data(config["data"], trained.palette, size=config["size"])
    rows = {row.name: asdict(row) for row in evaluate(trained, data).rows if row.name.startswith("net")}
    description: dict[str, Any] = {
        key: trained.description[key] for key in ("net", "settings", "palette", "data", "seed")
    }
    description |= {"recipe": config["recipe"], "versions": config["versions"], "measured_on_test_split": rows}
    state = {"net": {name: halved(value) for name, value in trained.net.state_dict().items()}}
    save_checkpoint(ASSETS / SHIPPED, state, description)
    print(f"{ASSETS / SHIPPED}: {(ASSETS / SHIPPED).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
