"""Colourisation of one image of any size.

The model predicts at a few fixed scales, whatever the size of the image. A photo model also predicts on the
horizontally flipped image. The predictions are merged at every position, weighted by their certainty. The merged
distribution and the user's constraints determine a small chroma map (constraints/constraints.py). The chroma map is
combined with the lightness of the image at full size (chroma/recolour.py).
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32
from PIL import Image

from chromabox.colour.chroma.distribution import ChromaDistribution, merge_distributions, softmax
from chromabox.colour.chroma.lab import lightness_to_grey
from chromabox.colour.chroma.recolour import apply_chroma, lightness, resize_planes
from chromabox.colour.constraints.constraints import ColourConstraints, ColourPrediction, apply_constraints
from chromabox.colour.constraints.hints import read_hints
from chromabox.colour.inference.network_input import Plane, prepare_lightness, reduced_size, resize_plane
from chromabox.colour.weights.onnx_model import ColourModel
from chromabox.io.images import ImageData, Pixels

StyleName = Literal["natural", "vivid"]

#: Maximum ratio of the long to the short side of the model's input. Longer images are compressed to this ratio.
MAX_ASPECT_RATIO = 4


@dataclass(frozen=True)
class Style:
    """Parameters with which predictions are decoded into colours."""

    temperature: float
    """Temperature of the annealed mean, 0 to 1."""
    gain: float
    """Factor of a* and b*."""
    full_confidence: float = 0.0
    """Confidence below which a* and b* are reduced in proportion to the confidence."""


#: The values were chosen on validation photographs. docs/log.md contains the results.
STYLES: dict[StyleName, Style] = {
    "natural": Style(temperature=0.3, gain=0.9, full_confidence=0.6),
    "vivid": Style(temperature=0.35, gain=1.6, full_confidence=0.5),
}


@dataclass(frozen=True, kw_only=True)
class ColouriseOptions:
    """Options for colourisation, apart from the model."""

    style: StyleName = "natural"
    temperature: float | None = None
    """Temperature that overrides the temperature of the style: 0 (the most likely colour) to 1 (the mean)."""
    constraints: ColourConstraints = field(default_factory=ColourConstraints)
    hints: Path | None = None
    """Path of an image with hints painted on a transparent layer, which is resized to the colourised image."""

    @property
    def effective_temperature(self) -> float:
        """``temperature`` if it is set, otherwise the temperature of the style."""
        return STYLES[self.style].temperature if self.temperature is None else self.temperature


def colourise_image(image: ImageData, model: ColourModel, options: ColouriseOptions | None = None) -> ImageData:
    """Return the colourised image. Bit depth, alpha, EXIF, colour profile and resolution are preserved.

    Only the lightness of a colour image is used. If ``options`` is None, the defaults are used, with the style
    ``natural``.
    """
    return apply_prediction(image, predict_colours(image.pixels, model, options or ColouriseOptions()))


def apply_prediction(image: ImageData, prediction: ColourPrediction) -> ImageData:
    """Return the image with the predicted colours and unchanged lightness."""
    pixels = apply_chroma(image.pixels, prediction.chroma, chroma_hook=prediction.chroma_hook)
    return replace(image, pixels=pixels, is_grey=False)


def predict_chroma(
    pixels: Pixels, model: ColourModel, options: ColouriseOptions | None = None
) -> Float32[np.ndarray, "small_height small_width 2"]:
    """Return only the small chroma map (a* and b* of CIELAB), which video colourisation requires.

    The lightness is not prepared (see :func:`predict_colours`): if that changed between frames, a video would flicker.
    """
    return predict_colours(pixels, model, options or ColouriseOptions(), prepare=False).chroma


def predict_colours(
    pixels: Pixels, model: ColourModel, options: ColouriseOptions, *, prepare: bool = True
) -> ColourPrediction:
    """Return the small chroma map of an image, with the predicted distribution and the rules of the constraints.

    ``prepare`` improves the input of a photo model for old prints, see :func:`network_input.prepare_lightness`.
    """
    plane, distribution = _predict(pixels, model, prepare)
    style = STYLES[options.style]
    size, constraints = (pixels.shape[0], pixels.shape[1]), options.constraints
    if options.hints is not None:
        constraints = replace(constraints, hints=read_hints(options.hints, size))
    return apply_constraints(
        distribution,
        constraints,
        options.effective_temperature,
        size,
        gain=style.gain,
        full_confidence=style.full_confidence,
        guide=plane,
    )


def predict_distribution(pixels: Pixels, model: ColourModel) -> ChromaDistribution:
    """Return the predicted distribution, merged over all scales, at the output size of the largest scale."""
    return _predict(pixels, model, True)[1]


def _predict(pixels: Pixels, model: ColourModel, prepare: bool) -> tuple[Plane, ChromaDistribution]:
    """Return the reduced lightness of the image, and the distribution that is predicted from it."""
    plane = _downsampled_lightness(pixels, 2 * max(model.scales))
    model_input = prepare_lightness(plane) if prepare and model.is_photo else plane
    if model.is_photo and min(plane.shape) > model.scales[0]:
        # Details that only large images have would make the prediction depend on the size of the image.
        model_input = resize_plane(model_input, *reduced_size(plane, model.scales[0]))
    predictions = [_predict_at_scale(model_input, model, side) for side in model.scales]
    height, width = predictions[-1].shape[1:]
    lightness_map = resize_plane(plane, height, width).clip(0, 100)
    # If the model is very certain, the probabilities of other classes are 0 in float32. Keep their logarithms finite.
    smallest = np.finfo(np.float32).tiny
    resized = (np.log(np.maximum(resize_planes(probs, height, width), smallest)) for probs in predictions)
    distributions = [ChromaDistribution(log_probs, model.centres, lightness_map) for log_probs in resized]
    return plane, merge_distributions(distributions)


def _downsampled_lightness(pixels: Pixels, side: int) -> Plane:
    """Return the lightness L* (0 to 100) of the image, reduced to a short side of about ``side`` pixels.

    Smaller images keep their size. Large images are averaged over whole blocks before the lightness is computed. This
    approximation is fast and does not affect the prediction noticeably.
    """
    pixels_8bit = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
    # Longer images are compressed to the maximum ratio of the sides anyway.
    short = max(1, min(pixels_8bit.shape[:2]) // side)
    factors = [max(short, length // (MAX_ASPECT_RATIO * side)) for length in pixels_8bit.shape[:2]]
    factor = factors[1], factors[0]
    reduced = pixels_8bit if factor == (1, 1) else np.asarray(Image.fromarray(pixels_8bit).reduce(factor))
    return lightness(reduced)


def _predict_at_scale(plane: Plane, model: ColourModel, side: int) -> Float32[np.ndarray, "classes height width"]:
    """Return the class probabilities at one scale, at which the short side has about ``side`` pixels.

    The probabilities of a photo model are averaged over the image and the horizontally flipped image.
    """
    divisor, scale = model.size_divisor, side / min(plane.shape)
    height, width = (
        max(divisor, round(min(length * scale, MAX_ASPECT_RATIO * side) / divisor) * divisor) for length in plane.shape
    )
    model_input = resize_plane(plane, height, width).clip(0, 100)
    if model.is_photo:
        model_input /= 100
        both = softmax(model.predict(np.stack([model_input, model_input[:, ::-1]])[:, None]), 1)
        return (both[0] + both[1, ..., ::-1]) / 2
    # Palette models expect the mean of R, G and B divided by 256. ``lightness_to_grey`` returns sRGB values in [0, 1].
    grey = lightness_to_grey(model_input) * np.float32(255 / 256)
    return softmax(model.predict(grey[None, None]), 1)[0]
