"""Export of colourisation models to ONNX. A file is saved only if its outputs match those of PyTorch.

The exported file takes batches of any size and images of any height and width that are multiples of the model's size
divisor. The metadata of the file describes the input, the output and the colours of the classes.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

import chromabox
from chromabox.colour.weights.checkpoint import CIFAR_SCALES, PHOTO_SCALES, OnnxNetwork, PaletteModel, PhotoModel
from chromabox.colour.weights.onnx_model import ONNX_FORMAT, ONNX_INPUT, ONNX_OUTPUT, load_onnx_model
from chromabox.engine.export import MAX_DIFFERENCE, require_onnx_suffix, save_verified, to_onnx
from chromabox.errors import UsageError

if TYPE_CHECKING:
    from onnx import ModelProto

#: Shapes of the inputs on which an exported file is compared with PyTorch: batch size, and height and width in
#: multiples of the model's size divisor.
TEST_SHAPES = ((1, 1, 1), (2, 3, 5), (1, 8, 6), (3, 2, 9))


@dataclass(frozen=True)
class ColourExportReport:
    """Maximum difference between the probabilities of an exported file and those of PyTorch, over all test inputs."""

    max_difference: float
    num_inputs: int

    def __str__(self) -> str:
        return (
            f"checked against PyTorch on {self.num_inputs} inputs: probabilities differ by at most "
            f"{self.max_difference:.1e} (limit: {MAX_DIFFERENCE:.0e})"
        )


def export_onnx(colour_model: PaletteModel | PhotoModel, path: Path) -> ColourExportReport:
    """Export a colourisation model to an ONNX file. The outputs are compared with those of PyTorch first.

    Args:
        colour_model: a model in evaluation mode on the CPU.
        path: path of the output, which ends in ``.onnx``. Missing folders are created.

    Raise UsageError if the suffix is not ``.onnx``, the model was itself loaded from an ONNX file, or a required
    library is not installed. Raise ChromaboxError if PyTorch cannot export the model, the outputs differ, or the file
    cannot be written. In these cases, an existing file is left unchanged and no partial file is left behind.
    """
    require_onnx_suffix(path)
    if isinstance(colour_model.network, OnnxNetwork):
        raise UsageError(
            f"{colour_model.network.model.path}: the model is already an ONNX file; "
            "use the checkpoint from which it was exported"
        )
    network, metadata = colour_model.network, onnx_metadata(colour_model)

    def compare(file: Path) -> ColourExportReport:
        return compare_outputs(network, OnnxNetwork(load_onnx_model(file)).eval())

    return save_verified(path, to_colour_onnx(network), metadata, compare)


@torch.no_grad()
def compare_outputs(network: nn.Module, exported: OnnxNetwork) -> ColourExportReport:
    """Compare the outputs of a model and of its ONNX file in float32, on batches of noise and of smooth images."""
    inputs = [grey for shape in TEST_SHAPES for grey in _test_images(shape, exported.size_divisor)]
    differences = [(network(grey).softmax(1) - exported(grey).softmax(1)).abs().max() for grey in inputs]
    return ColourExportReport(torch.stack(differences).max().item(), len(inputs))  # torch.max propagates NaN.


def _test_images(shape: tuple[int, int, int], size_divisor: int) -> Iterator[Float[Tensor, "batch 1 height width"]]:
    """Yield a batch of noise, then a batch of smooth images with edges, both in [0, 1).

    Low frequencies dominate in the smooth images, as they do in photographs.
    """
    generator = torch.Generator().manual_seed(sum(shape))
    batch, rows, columns = shape
    size = rows * size_divisor, columns * size_divisor
    yield torch.rand(batch, 1, *size, generator=generator)
    smooth = torch.zeros(batch, 1, *size)
    for octave in range(1, 6):
        coarse = torch.rand(batch, 1, 2**octave, 2**octave, generator=generator)
        smooth += F.interpolate(coarse, size, mode="nearest" if octave == 2 else "bilinear") / 2**octave
    yield smooth * (255 / 256)


def to_colour_onnx(network: nn.Module, *, optimize: bool = True) -> "ModelProto":
    """Export a model to ONNX for any batch size, and any height and width divisible by ``network.size_divisor``."""
    divisor = network.size_divisor
    assert isinstance(divisor, int)
    height, width = (divisor * torch.export.Dim(name, min=1) for name in ("rows", "columns"))
    dynamic = {0: torch.export.Dim("batch", min=1), 2: height, 3: width}
    example = torch.zeros(2, 1, 4 * divisor, 5 * divisor)
    return to_onnx(network, example, dynamic, [ONNX_INPUT], [ONNX_OUTPUT], optimize=optimize)


def onnx_metadata(model: PaletteModel | PhotoModel) -> dict[str, str]:
    """Return the metadata that other programs need to use the exported file, and the metadata of the checkpoint."""
    is_photo = isinstance(model, PhotoModel)
    class_key = "bins" if is_photo else "palette"
    history = {key: value for key, value in model.metadata.items() if key not in ("net", "bins", "palette")}
    lightness = "L* of CIELAB (D65) divided by 100, 0 to 1"
    grey = "8-bit sRGB grey (or the mean of red, green and blue) divided by 256, in [0, 1)"
    colours = "points (a*, b*) of CIELAB" if is_photo else "RGB values divided by 256"
    stride = getattr(model.network, "stride", 1)
    return {
        "format": ONNX_FORMAT,
        "version": chromabox.__version__,
        "net": str(model.metadata["net"]),
        "input": f"float32 [batch, 1, height, width]: {lightness if is_photo else grey}",
        "output": f"float32 [batch, classes, height / {stride}, width / {stride}]: softmax over the classes gives "
        f"their probabilities; the entry {class_key} lists the classes in order, as {colours}",
        "multiple": str(model.network.size_divisor),
        "stride": str(stride),
        "looks": json.dumps(PHOTO_SCALES if is_photo else CIFAR_SCALES),
        class_key: json.dumps(model.metadata[class_key]),
        "history": json.dumps(history),
    }
