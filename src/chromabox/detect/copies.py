"""A trained detector in the forms that other programs read, each read back and compared before it is told of."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from chromabox.detect.cfg import write_cfg
from chromabox.detect.export import export_detector
from chromabox.detect.kinds import DARKNET
from chromabox.detect.weights import TrainedDetector, load_detector, write_darknet
from chromabox.errors import ChromaboxError


def write_copies(trained: TrainedDetector, folder: Path) -> Iterator[str]:
    """Write ``best.onnx``, and of darknet's kind ``best.weights``, ``best.cfg`` and ``best.names``; a line on each.

    What cannot be written, since a library is missing or a file would find something else, is told of instead: the
    detector itself is saved already.
    """
    trained = replace(trained, net=copy.deepcopy(trained.net).cpu().eval())
    try:
        yield f"for any ONNX runtime: {folder}/best.onnx; {export_detector(trained, folder / 'best.onnx')}"
    except ChromaboxError as error:
        yield f"no best.onnx: {error}"
    if trained.kind != DARKNET:
        return
    try:
        write_darknet_copy(trained, folder / "best.weights")
        yield f"for darknet: {folder}/best.weights with best.cfg and best.names; read back they are the same to the bit"
    except ChromaboxError as error:
        yield f"no best.weights: {error}"


def write_darknet_copy(trained: TrainedDetector, path: Path) -> None:
    """Write darknet's three files: ``path``, the net as .cfg beside it, and the classes as .names, a line each.

    Raises ChromaboxError, and leaves none of them, if what is read back is not the same net.
    """
    files = path, path.with_suffix(".cfg"), path.with_suffix(".names")
    seen = int(trained.description.get("source", {}).get("seen", 0))
    write_cfg(replace(trained.architecture, size=trained.size), files[1])
    files[2].write_text("".join(f"{name}\n" for name in trained.classes), encoding="utf-8")
    write_darknet(path, trained.net, seen)
    back = load_detector(path)
    ours, theirs = trained.net.state_dict(), back.net.state_dict()
    same = back.architecture.layers == trained.architecture.layers and ours.keys() == theirs.keys()
    # Batches are counted by PyTorch alone.
    if not same or not all(torch.equal(ours[name], theirs[name]) for name in ours if "num_batches" not in name):
        for file in files:
            file.unlink()
        raise ChromaboxError(f"{path}: not written, darknet's files would hold another net; use the .safetensors file")
