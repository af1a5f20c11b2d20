"""Fréchet distance: SciPy's matrix square root, and a network written with onnx.helper."""

import hashlib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto
from PIL import Image
from scipy.linalg import sqrtm

from chromabox.colour.evaluation.frechet import FeatureNetwork, frechet_distance
from chromabox.colour.evaluation.image_scores import score_folders
from chromabox.errors import ChromaboxError
from colour_fixtures import write_feature_network


@pytest.mark.parametrize("sizes", [(40, 50), (5, 4)])
def test_distance_equals_the_definition_with_a_matrix_square_root(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.normal(shift, 1 + shift, (n, 6)) @ rng.normal(size=(6, 6)) for shift, n in enumerate(sizes))
    covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = sqrtm((covariances[0] + 1e-12 * np.eye(6)) @ (covariances[1] + 1e-12 * np.eye(6)))
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(sum(covariances) - 2 * root.real)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("features", [np.zeros((1, 3)), np.full((4, 3), np.nan)])
def test_too_few_or_invalid_features_are_rejected(features: np.ndarray) -> None:
    with pytest.raises(ChromaboxError, match="finite features of two or more images"):
        frechet_distance(features, np.zeros((4, 3)))


@pytest.mark.parametrize(("dtype", "scale"), [(TensorProto.FLOAT, 255), (TensorProto.UINT8, 1)])
@pytest.mark.parametrize("size", [8, "side"])
def test_features_of_images_of_any_size(tmp_path: Path, dtype: int, scale: float, size: int | str) -> None:
    network = FeatureNetwork(write_feature_network(tmp_path / "n.onnx", dtype=dtype, size=size))
    images = [np.full((5 + i, 9, 3), (i, 2 * i, 3 * i), np.uint8) for i in range(40)]
    expected = np.outer(np.arange(40), [1, 2, 3]) / scale
    np.testing.assert_allclose(network.extract(images), expected, rtol=1e-3)
    assert network.size == ([8, 8] if size == 8 else [299, 299])


def test_scores_name_the_network_and_the_library(tmp_path: Path) -> None:
    network = write_feature_network(tmp_path / "means.onnx")
    rng, means = np.random.default_rng(1), []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        colours = rng.integers(0, 256, (6, 3), np.uint8)
        for i, colour in enumerate(colours):
            Image.fromarray(np.broadcast_to(colour, (8, 8, 3))).save(tmp_path / folder / f"{i}.png")
        means.append(colours / 255)
    report = score_folders(tmp_path / "a", tmp_path / "b", fid_network=network)
    result = report.as_json()["fid"]
    assert result["distance"] == pytest.approx(frechet_distance(*means), rel=1e-4)
    assert result["sha256"] == hashlib.sha256(network.read_bytes()).hexdigest()
    assert (result["images"], result["features"], result["network"]) == (6, 3, "means.onnx")
    assert result["backend"] == f"onnxruntime {onnxruntime.__version__}"
    single = score_folders(tmp_path / "a" / "0.png", tmp_path / "b" / "0.png", fid_network=network)
    assert "fid" not in single.as_json()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 1}, r"expected tensor\(float\) or tensor\(uint8\) and \[batch, 3, height, width\]"),
        ({"dtype": TensorProto.INT32}, "has the type tensor.int32"),
        ({"flat": False}, r"has the shape \[1, 3, 1, 1\]; expected \[1, features\]"),
    ],
)
def test_other_networks_are_rejected(tmp_path: Path, options: dict[str, object], message: str) -> None:
    path = write_feature_network(tmp_path / "n.onnx", **options)  # type: ignore[arg-type]
    with pytest.raises(ChromaboxError, match=message):
        FeatureNetwork(path)
