"""Exported nets of every kind against PyTorch, and against onnx's own reference evaluator, which is plain numpy."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

import chromabox
from chromabox.colour.chroma.bins import ChromaBins
from chromabox.colour.inference.predict import ColouriseOptions, colourise_image
from chromabox.colour.models import build_model
from chromabox.colour.palette.palette import Palette
from chromabox.colour.weights import export
from chromabox.colour.weights.checkpoint import (
    PaletteModel,
    PhotoModel,
    load_model,
    model_metadata,
    photo_model_metadata,
)
from chromabox.colour.weights.export import ColourExportReport, export_onnx
from chromabox.colour.weights.onnx_model import OnnxModel
from chromabox.engine.export import MAX_DIFFERENCE
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import ImageData

NETS = {
    "pool-upsample": {"num_filters": 4, "num_colours": 5, "kernel": 4},
    "conv-transpose": {"num_filters": 4, "num_colours": 5, "dilation": 2},
    "unet": {"num_filters": 4, "num_colours": 5},
    "colournet": {"num_colours": 5, "widths": (4, 6, 8), "blocks": (1, 1, 1), "hats": 8},
    "photo": {"num_colours": 6, "widths": (8, 8, 8), "blocks": (1, 1, 1), "frozen": 3},
}
COLOURS = np.random.default_rng(0).random((5, 3), np.float32)
BINS = ChromaBins(
    np.array([[-20, 0], [0, -20], [0, 0], [20, 10], [10, 30], [40, 40]], np.float32),
    np.array([0.1, 0.1, 0.5, 0.1, 0.1, 0.1], np.float32),
    10.0,
)


def shaken(name: str) -> nn.Module:
    """A net whose every parameter and running statistic is random, so that none can be mistaken for its default."""
    net = build_model(name, **NETS[name])
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        for key, buffer in net.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape, generator=generator) * 0.2 + (0.9 if "var" in key else -0.1))
    return net.eval()


def trained_of(name: str) -> PaletteModel | PhotoModel:
    if name == "photo":
        return PhotoModel(shaken(name), BINS, {**photo_model_metadata(NETS[name], BINS), "seed": 7})
    palette = Palette(COLOURS, "five")
    return PaletteModel(shaken(name), palette, {**model_metadata(name, NETS[name], palette), "seed": 7})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory):
    """Net and file by name; each is exported once, because tracing takes seconds."""
    folder = tmp_path_factory.mktemp("onnx")

    @cache
    def of(name: str) -> tuple[PaletteModel | PhotoModel, Path, ColourExportReport]:
        trained, path = trained_of(name), folder / f"{name}.onnx"
        return trained, path, export_onnx(trained, path)

    return of


@pytest.mark.parametrize("name", NETS)
def test_the_file_computes_what_the_net_computes(exported, name: str) -> None:
    trained, path, parity = exported(name)
    assert parity.max_probability_difference <= MAX_DIFFERENCE
    assert parity.num_inputs == 8
    reference = ReferenceEvaluator(onnx.load(path))
    multiple = trained.network.size_divisor
    grey = torch.rand(1, 1, 2 * multiple, multiple, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        scores = trained.network(grey).numpy()
    assert np.ptp(scores, axis=(0, 2, 3)).max() > 1e-2  # else any net would pass
    np.testing.assert_allclose(reference.run(None, {"grey": grey.numpy()})[0], scores, atol=1e-4)
    np.testing.assert_allclose(load_model(path).network(grey).numpy(), scores, atol=1e-4)


@pytest.mark.parametrize("name", ["unet", "photo"])
def test_pictures_come_out_the_same(exported, name: str) -> None:
    trained, path, _ = exported(name)
    rows, columns = np.mgrid[:90, :130]
    grey = (127 + 90 * np.sin(rows / 9) * np.cos(columns / 13) + (columns > 60) * 30).clip(0, 255).astype(np.uint8)
    picture = ImageData(np.repeat(grey[..., None], 3, -1))
    for style in ("natural", "vivid"):
        ours, theirs = (
            colourise_image(picture, each, ColouriseOptions(style=style)) for each in (trained, load_model(path))
        )
        difference = np.abs(ours.pixels.astype(int) - theirs.pixels.astype(int))
        assert difference.max() <= 1
    assert np.ptp(ours.pixels, axis=-1).max() > 5  # it was coloured


def test_the_metadata_say_all_that_is_needed(exported) -> None:
    for name in ("unet", "photo"):
        trained, path, _ = exported(name)
        found = load_model(path)
        assert isinstance(found.network, OnnxModel)
        assert json.loads(json.dumps(trained.metadata)) == found.metadata
        properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert properties["version"] == chromabox.__version__
        assert properties["multiple"] == str(trained.network.size_divisor)
    assert properties["stride"] == "8"
    assert "[batch, classes, height / 8, width / 8]" in properties["output"]
    assert json.loads(properties["looks"]) == [192, 256]
    np.testing.assert_array_equal(found.bins.centres, BINS.centres)


def test_no_file_tells_where_it_was_made(exported) -> None:
    _, path, _ = exported("unet")
    assert b".py" not in path.read_bytes()


def test_a_file_that_computes_something_else_is_not_written(
    exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, path, _ = exported("unet")

    def spoilt(net: nn.Module, opset: int) -> onnx.ModelProto:
        model = onnx.load(path)
        model.ClearField("metadata_props")
        bias = next(tensor for tensor in model.graph.initializer if tensor.name == "last.bias")
        values = onnx.numpy_helper.to_array(bias) + np.float32([0.01, 0, 0, 0, 0])
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        return model

    monkeypatch.setattr(export, "_to_onnx", spoilt)
    (tmp_path / "net.onnx").write_bytes(b"older")
    with pytest.raises(ChromaboxError, match=r"net\.onnx: not written because its outputs would differ from PyTorch"):
        export_onnx(trained, tmp_path / "net.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert (tmp_path / "net.onnx").read_bytes() == b"older"


def test_what_cannot_be_exported_is_refused(exported, tmp_path: Path) -> None:
    trained, path, _ = exported("unet")
    with pytest.raises(UsageError, match=r"net\.pt: expected the suffix \.onnx"):
        export_onnx(trained, tmp_path / "net.pt")
    with pytest.raises(UsageError, match="is an ONNX file already"):
        export_onnx(load_model(path), tmp_path / "again.onnx")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, path, _ = exported("unet")
    monkeypatch.setattr(export, "_to_onnx", lambda net, opset: onnx.load(path))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ChromaboxError, match=r"net\.onnx: cannot be written"):
        export_onnx(trained, tmp_path / "file" / "net.onnx")
