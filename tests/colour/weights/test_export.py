"""Exported models of every architecture, compared with PyTorch and with onnx's reference evaluator (plain numpy)."""

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
    OnnxNetwork,
    PaletteModel,
    PhotoModel,
    load_model,
    model_metadata,
)
from chromabox.colour.weights.export import ColourExportReport, export_onnx
from chromabox.colour.weights.onnx_model import load_onnx_model
from chromabox.engine.export import MAX_DIFFERENCE
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import ImageData

MODEL_ARGS = {
    "pool-upsample": {"num_filters": 4, "num_colours": 5, "kernel": 4},
    "conv-transpose": {"num_filters": 4, "num_colours": 5, "dilation": 2},
    "unet": {"num_filters": 4, "num_colours": 5},
    "colournet": {"num_colours": 5, "widths": (4, 6, 8), "blocks": (1, 1, 1), "hats": 8},
    "photo": {"num_colours": 6, "widths": (8, 8, 8, 8), "blocks": (1, 1, 1, 1), "frozen": 3},
}
COLOURS = np.random.default_rng(0).random((5, 3), np.float32)
BINS = ChromaBins(
    np.array([[-20, 0], [0, -20], [0, 0], [20, 10], [10, 30], [40, 40]], np.float32),
    np.array([0.1, 0.1, 0.5, 0.1, 0.1, 0.1], np.float32),
    10.0,
)


def make_random_model(name: str) -> nn.Module:
    """Return a model whose parameters and BatchNorm statistics are all random, so that none has its default value."""
    model = build_model(name, **MODEL_ARGS[name])
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        for key, buffer in model.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape, generator=generator) * 0.2 + (0.9 if "var" in key else -0.1))
    return model.eval()


def make_colour_model(name: str) -> PaletteModel | PhotoModel:
    if name == "photo":
        return PhotoModel(make_random_model(name), BINS, {**model_metadata(name, MODEL_ARGS[name], BINS), "seed": 7})
    palette = Palette(COLOURS, "five")
    metadata = {**model_metadata(name, MODEL_ARGS[name], palette), "seed": 7}
    return PaletteModel(make_random_model(name), palette, metadata)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory):
    """Return a function from a name to model, file and report; models are exported once because that takes seconds."""
    folder = tmp_path_factory.mktemp("onnx")

    @cache
    def export_model(name: str) -> tuple[PaletteModel | PhotoModel, Path, ColourExportReport]:
        model, path = make_colour_model(name), folder / f"{name}.onnx"
        return model, path, export_onnx(model, path)

    return export_model


@pytest.mark.parametrize("name", MODEL_ARGS)
def test_exported_file_matches_pytorch_and_reference_evaluator(exported, name: str) -> None:
    model, path, report = exported(name)
    assert report.max_difference <= MAX_DIFFERENCE
    assert report.num_inputs == 8
    reference = ReferenceEvaluator(onnx.load(path))
    divisor = model.network.size_divisor
    grey = torch.rand(1, 1, 2 * divisor, divisor, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        logits = model.network(grey).numpy()
    assert np.ptp(logits, axis=(0, 2, 3)).max() > 1e-2  # otherwise any model would pass
    np.testing.assert_allclose(reference.run(None, {"grey": grey.numpy()})[0], logits, atol=1e-4)
    opened = load_onnx_model(path)
    assert (opened.size_divisor, opened.stride) == (divisor, getattr(model.network, "stride", 1))
    np.testing.assert_allclose(opened.predict(grey.numpy()), logits, atol=1e-4)
    np.testing.assert_allclose(load_model(path).network(grey).numpy(), logits, atol=1e-4)


@pytest.mark.parametrize("name", ["unet", "photo"])
def test_images_colourised_by_the_file_match_pytorch(exported, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path, _ = exported(name)
    rows, columns = np.mgrid[:90, :130]
    grey = (127 + 90 * np.sin(rows / 9) * np.cos(columns / 13) + (columns > 60) * 30).clip(0, 255).astype(np.uint8)
    image = ImageData(np.repeat(grey[..., None], 3, -1))
    opened = load_onnx_model(path)

    @torch.no_grad()
    def predict_by_pytorch(self: object, grey: np.ndarray) -> np.ndarray:
        return model.network(torch.from_numpy(grey)).numpy()

    for style in ("natural", "vivid"):
        actual = colourise_image(image, opened, ColouriseOptions(style=style))
        with monkeypatch.context() as patch:
            patch.setattr(type(opened), "predict", predict_by_pytorch)
            expected = colourise_image(image, opened, ColouriseOptions(style=style))
        difference = np.abs(expected.pixels.astype(int) - actual.pixels.astype(int))
        assert difference.max() <= 1
    assert np.ptp(expected.pixels, axis=-1).max() > 5  # the image is not grey


def test_metadata_describes_the_model_completely(exported) -> None:
    for name in ("unet", "photo"):
        model, path, _ = exported(name)
        loaded = load_model(path)
        assert isinstance(loaded.network, OnnxNetwork)
        assert load_onnx_model(path).metadata == loaded.metadata
        assert json.loads(json.dumps(model.metadata)) == loaded.metadata
        properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert properties["version"] == chromabox.__version__
        assert properties["multiple"] == str(model.network.size_divisor)
    assert properties["stride"] == "4"
    assert "[batch, classes, height / 4, width / 4]" in properties["output"]
    assert json.loads(properties["looks"]) == [160, 224]
    np.testing.assert_array_equal(loaded.bins.centres, BINS.centres)


def test_file_contains_no_source_paths(exported) -> None:
    _, path, _ = exported("unet")
    assert b".py" not in path.read_bytes()


def test_file_with_different_outputs_is_not_written(exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path, _ = exported("unet")

    def export_modified(network: nn.Module) -> onnx.ModelProto:
        onnx_model = onnx.load(path)
        onnx_model.ClearField("metadata_props")
        bias = next(tensor for tensor in onnx_model.graph.initializer if tensor.name == "last.bias")
        values = onnx.numpy_helper.to_array(bias) + np.float32([0.01, 0, 0, 0, 0])
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        return onnx_model

    monkeypatch.setattr(export, "to_colour_onnx", export_modified)
    (tmp_path / "net.onnx").write_bytes(b"existing")
    with pytest.raises(ChromaboxError, match=r"net\.onnx: not written because its outputs would differ from PyTorch"):
        export_onnx(model, tmp_path / "net.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert (tmp_path / "net.onnx").read_bytes() == b"existing"


def test_wrong_suffix_and_onnx_models_are_rejected(exported, tmp_path: Path) -> None:
    model, path, _ = exported("unet")
    with pytest.raises(UsageError, match=r"net\.pt: expected the suffix \.onnx"):
        export_onnx(model, tmp_path / "net.pt")
    with pytest.raises(UsageError, match="is already an ONNX file"):
        export_onnx(load_model(path), tmp_path / "copy.onnx")
    assert not list(tmp_path.iterdir())


def test_unwritable_path_is_named(exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path, _ = exported("unet")
    monkeypatch.setattr(export, "to_colour_onnx", lambda network: onnx.load(path))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ChromaboxError, match=r"net\.onnx: cannot be written"):
        export_onnx(model, tmp_path / "file" / "net.onnx")
