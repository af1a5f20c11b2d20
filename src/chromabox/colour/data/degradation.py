"""Random degradations of the lightness of photographs, so that a model also learns from inputs like old prints."""

import io

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageFilter

Plane = Float32[np.ndarray, "height width"]


def degrade(lightness: Plane, rng: np.random.Generator) -> Plane:
    """Return the lightness L*/100 of a photograph, degraded like an old print or a scan.

    Each of these degradations is applied with probability 0.4: a gamma of 0.6 to 1.6, which also represents the toning
    of a print; fading, which compresses the range of values; blur; grain; a white or black border; JPEG compression.
    The result is in [0, 1].
    """
    apply = rng.random(6) < 0.4
    if apply[0]:
        lightness = lightness.clip(0, 1) ** np.float32(np.exp(rng.uniform(-0.5, 0.5)))
    if apply[1]:
        black, white = rng.uniform(0, 0.3), rng.uniform(0.7, 1)
        lightness = np.float32(black) + np.float32(white - black) * lightness
    if apply[2]:
        image = Image.fromarray(_to_uint8(lightness)).filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.5)))
        lightness = np.asarray(image, np.float32) / 255
    if apply[3]:
        lightness = lightness + _grain(lightness.shape, rng)
    if apply[4]:
        lightness = _add_border(lightness, rng)
    if apply[5]:
        data = io.BytesIO()
        Image.fromarray(_to_uint8(lightness)).save(data, "JPEG", quality=int(rng.integers(25, 80)))
        with Image.open(data) as image:
            lightness = np.asarray(image, np.float32) / 255
    return lightness.clip(0, 1)


def _grain(shape: tuple[int, ...], rng: np.random.Generator) -> Plane:
    """Return Gaussian noise with a standard deviation of 0.01 to 0.06, in half of the cases with coarser grains."""
    noise = rng.standard_normal(shape, np.float32)
    if rng.random() < 0.5:  # The mean of two by two values, multiplied by 2, has the same standard deviation.
        noise = (noise + np.roll(noise, 1, 0)) * np.float32(0.5)
        noise += np.roll(noise, 1, 1)
    return noise * np.float32(rng.uniform(0.01, 0.06))


def _add_border(lightness: Plane, rng: np.random.Generator) -> Plane:
    """Return the image with a uniform border, each side of which covers up to 6 % of the image."""
    height, width = lightness.shape
    top, bottom, left, right = (rng.uniform(0, 0.06, 4) * (height, height, width, width)).astype(int)
    result = np.full_like(lightness, rng.uniform(0.85, 1) if rng.random() < 0.7 else rng.uniform(0, 0.1))
    result[top : height - bottom, left : width - right] = lightness[top : height - bottom, left : width - right]
    return result


def _to_uint8(lightness: Plane) -> np.ndarray:
    return np.rint(255 * lightness.clip(0, 1)).astype(np.uint8)
