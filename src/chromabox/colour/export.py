"""A trained net as an ONNX file that can be used alone, checked against PyTorch before it gets its name.

The file takes batches and pictures of any size; its metadata say what goes in, what comes out and which colours the
classes are. What the net looks like in the file is left to PyTorch's exporter; that it computes the same is measured.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

import chromabox
from chromabox.colour.onnx_net import FORMAT, INPUT, OUTPUT, OnnxNet, import_onnx, open_onnx
from chromabox.colour.predict import CIFAR_LOOKS, PHOTO_LOOKS
from chromabox.colour.trained import TrainedNet, TrainedPhotoNet
from chromabox.errors import ChromaboxError, UsageError
from chromabox.files.whole import write_whole

if TYPE_CHECKING:
    from onnx import ModelProto

#: The oldest that PyTorch's exporter writes without conversion; every runtime since 2023 reads it.
OPSET = 18
#: A probability may differ by so much between the file and PyTorch, both in float32.
LARGEST_DIFFERENCE = 1e-4
#: Batch, height and width of what the check puts in; the sides in multiples of what the net needs.
CHECKED = ((1, 1, 1), (2, 3, 5), (1, 8, 6), (3, 2, 9))


@dataclass(frozen=True)
class Parity:
    """The largest differences between an exported file and PyTorch, over all inputs of the check."""

    probabilities: float
    scores: float
    inputs: int

    def __str__(self) -> str:
        return (
            f"checked against PyTorch on {self.inputs} inputs: probabilities differ by at most "
            f"{self.probabilities:.1e} ({LARGEST_DIFFERENCE:.0e} is allowed), scores by {self.scores:.1e}"
        )


def export_onnx(trained: TrainedNet | TrainedPhotoNet, path: Path, *, opset: int = OPSET) -> Parity:
    """Write a trained net to ``path``, an ONNX file, after comparing what it computes with PyTorch.

    Args:
        trained: the net, of any kind, in evaluation mode on the CPU.
        path: ends in ``.onnx``; missing folders are made.
        opset: version of ONNX's operators.

    Raises UsageError for another suffix, a net that is an ONNX file already and missing libraries; ChromaboxError if
    PyTorch cannot export the net, the file computes something else or cannot be written. Nothing is left then.
    """
    if path.suffix.lower() != ".onnx":
        raise UsageError(f"{path}: does not end in .onnx; name the file {path.with_suffix('.onnx').name}, say")
    if isinstance(trained.net, OnnxNet):
        raise UsageError(f"{trained.net.path}: is an ONNX file already; give the checkpoint it was exported from")
    model = _converted(trained.net, opset)
    for key, value in _properties(trained).items():
        model.metadata_props.add(key=key, value=value)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as aside:
            aside.write_bytes(model.SerializeToString())
            parity = compare(trained.net, open_onnx(aside)[0])
            # Written so that not-a-number, which no comparison holds for, is refused too.
            if not parity.probabilities <= LARGEST_DIFFERENCE:
                raise ChromaboxError(f"{path}: not written, the file would compute something else; {parity}")
    except OSError as error:
        raise ChromaboxError(f"{path}: cannot be written ({error.strerror or error})") from error
    return parity


@torch.no_grad()
def compare(net: nn.Module, exported: OnnxNet) -> Parity:
    """Both nets on noise and on soft pictures of several sizes and batches, in float32."""
    probabilities, scores = [], []
    inputs = [picture for shape in CHECKED for picture in _pictures(shape, exported.multiple)]
    for grey in inputs:
        ours, theirs = net(grey), exported(grey)
        scores.append((ours - theirs).abs().max())
        probabilities.append((ours.softmax(1) - theirs.softmax(1)).abs().max())
    return Parity(float(torch.stack(probabilities).max()), float(torch.stack(scores).max()), len(inputs))


def _pictures(shape: tuple[int, int, int], multiple: int) -> Iterator[Float[Tensor, "batch 1 height width"]]:
    """Noise, then a soft picture with edges, in [0, 1): as in photographs, the coarse outweighs the fine."""
    generator = torch.Generator().manual_seed(sum(shape))
    batch, rows, columns = shape
    size = rows * multiple, columns * multiple
    yield torch.rand(batch, 1, *size, generator=generator)
    soft = torch.zeros(batch, 1, *size)
    for octave in range(1, 6):
        coarse = torch.rand(batch, 1, 2**octave, 2**octave, generator=generator)
        soft += F.interpolate(coarse, size, mode="nearest" if octave == 2 else "bilinear") / 2**octave
    yield soft * (255 / 256)


def _converted(net: nn.Module, opset: int) -> "ModelProto":
    """The net as PyTorch's exporter writes it, for any batch and any sides that the net can take."""
    import_onnx()
    multiple = net.multiple
    assert isinstance(multiple, int)
    height, width = (multiple * torch.export.Dim(name, min=1) for name in ("rows", "columns"))
    batch = torch.export.Dim("batch", min=1)
    example = torch.zeros(2, 1, 4 * multiple, 5 * multiple)
    try:
        with _quiet():
            program = torch.onnx.export(
                net,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: batch, 2: height, 3: width},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=opset,
                verbose=False,
            )
    except ImportError as error:
        raise UsageError(
            f"exporting needs the library {error.name}: install it with pip install 'chromabox[export]'"
        ) from error
    except Exception as error:  # The exporter has many kinds; each means the same to the user.
        reason = " ".join(str(error).split())[:300]
        raise ChromaboxError(f"this net cannot be exported as ONNX with opset {opset} ({reason})") from error
    assert program is not None
    return _without_traces(program.model_proto)


def _without_traces(model: "ModelProto") -> "ModelProto":
    """The model without the exporter's notes on where in the sources, and in whose folders, each node comes from."""
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, model.graph):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    model.ClearField("metadata_props")
    return model


def _properties(trained: TrainedNet | TrainedPhotoNet) -> dict[str, str]:
    """Everything that is needed to use the file alone, and what the checkpoint said of the net."""
    photo = isinstance(trained, TrainedPhotoNet)
    kind = "bins" if photo else "palette"
    history = {key: value for key, value in trained.description.items() if key not in ("net", "bins", "palette")}
    lightness = "L* of CIELab (D65) divided by 100, 0 to 1"
    value = "8-bit sRGB grey (or the mean of red, green and blue) divided by 256, in [0, 1)"
    colours = "points (a*, b*) of CIELab" if photo else "colours, RGB divided by 256"
    stride = getattr(trained.net, "stride", 1)
    return {
        "format": FORMAT,
        "version": chromabox.__version__,
        "net": str(trained.description["net"]),
        "input": f"float32 [batch, 1, height, width]: {lightness if photo else value}",
        "output": f"float32 [batch, classes, height / {stride}, width / {stride}]: softmax over the classes gives the "
        f"probabilities of {kind}, {colours}, in their order",
        "multiple": str(trained.net.multiple),
        "stride": str(stride),
        "looks": json.dumps(PHOTO_LOOKS if photo else CIFAR_LOOKS),
        kind: json.dumps(trained.description[kind]),
        "history": json.dumps(history),
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch's exporter warns of its own deprecations and of torchvision, which is not needed."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
