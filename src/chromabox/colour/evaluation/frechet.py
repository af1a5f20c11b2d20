"""Fréchet distance between the features of colourised images and of their originals (FID).

Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", section 3. The
features come from an ONNX file of the user, because scores are comparable only for the same network and weights. The
usual network is InceptionV3 with 2048 features. Few images give a distance that is too large: compare results only for
equal numbers of images.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from jaxtyping import Float64, UInt8
from PIL import Image

from chromabox.errors import ChromaboxError
from chromabox.io.atomic import read_bytes
from chromabox.runtime.session import one_line, open_session

#: Side length in pixels to which images are resized if the network accepts any size.
DEFAULT_SIDE = 299
#: Maximum file size in bytes.
MAX_NETWORK_BYTES = 1 << 30

Features = Float64[np.ndarray, "_ features"]


@dataclass(frozen=True)
class FrechetScore:
    """A Fréchet distance with the information that is required to compare it with other results."""

    distance: float
    images: int
    features: int
    """Number of features. With fewer images, the covariances have no full rank, and the distance is too large."""
    backend: str
    """Library that computed the features, with its version."""
    network: str
    """Name of the ONNX file."""
    sha256: str
    """Hash of the ONNX file."""


class FeatureNetwork:
    """ONNX file with the input ``images`` [batch, 3, height, width] and the output ``features`` [batch, features].

    The images are RGB, from 0 to 1 if the input is float32 and from 0 to 255 if it is uint8. Raise ChromaboxError for
    any other file.
    """

    def __init__(self, path: Path) -> None:
        data = read_bytes(path, "an ONNX file", MAX_NETWORK_BYTES)
        self.path, self.sha256 = path, hashlib.sha256(data).hexdigest()
        self.session = open_session(path, data, ["images"], ["features"])
        [network_input] = self.session.get_inputs()
        shape, self.is_float = network_input.shape, network_input.type == "tensor(float)"
        if len(shape) != 4 or shape[1] != 3 or network_input.type not in ("tensor(float)", "tensor(uint8)"):
            raise ChromaboxError(
                f"{path}: the input has the type {network_input.type} and the shape {shape}; "
                "expected tensor(float) or tensor(uint8) and [batch, 3, height, width]"
            )
        self.size = [side if isinstance(side, int) else DEFAULT_SIDE for side in shape[:1:-1]]
        self.extract([np.zeros((1, 1, 3), np.uint8)])  # An unsuitable output is an error before images are read.

    def extract(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Features:
        """Return the features of images. They are resized bilinearly (with antialiasing), without keeping the ratio.

        Raise ChromaboxError if the network cannot be run or its output has the wrong shape.
        """
        size = self.size[0], self.size[1]
        resized = [Image.fromarray(image).resize(size, Image.Resampling.BILINEAR) for image in images]
        batch = np.stack([np.asarray(image).transpose(2, 0, 1) for image in resized])
        try:
            values = batch.astype(np.float32) / 255 if self.is_float else batch
            (features,) = self.session.run(["features"], {"images": values})
        except Exception as error:  # ONNX Runtime's exceptions have no other common base class.
            raise ChromaboxError(f"{self.path}: ONNX Runtime cannot run the network ({one_line(error)})") from error
        if features.ndim != 2 or len(features) != len(batch):
            raise ChromaboxError(
                f"{self.path}: the output has the shape {list(features.shape)}; expected [{len(batch)}, features]"
            )
        return features.astype(np.float64)

    def score(self, originals: Features, coloured: Features) -> FrechetScore:
        """Return the distance between the features of the originals and of the colourised images."""
        backend = f"onnxruntime {onnxruntime.__version__}"
        distance = frechet_distance(originals, coloured)
        return FrechetScore(distance, len(originals), originals.shape[1], backend, self.path.name, self.sha256)


def frechet_distance(first: Features, second: Features) -> float:
    """Return the squared Fréchet distance between Gaussians with the means and covariances of two sets of features.

    It is |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½). With centred features X, Σ = XᵀX / (n − 1). The eigenvalues of Σ₁Σ₂
    are therefore the squares of the singular values of X₁X₂ᵀ / √((n₁ − 1)(n₂ − 1)), whose sum is the trace of the
    square root. Raise ChromaboxError if a set has fewer than two rows or values that are not finite.
    """
    if min(len(first), len(second)) < 2 or not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ChromaboxError("Fréchet distance: expected finite features of two or more images")
    means = [features.mean(0) for features in (first, second)]
    centred = [
        (features - mean) / np.sqrt(len(features) - 1) for features, mean in zip((first, second), means, strict=True)
    ]
    shared = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    traces = sum(float((part**2).sum()) for part in centred)
    return float(((means[0] - means[1]) ** 2).sum() + traces - 2 * shared)
