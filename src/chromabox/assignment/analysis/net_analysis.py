"""Analysis of trained models: the numbers that the report uses to explain their results.

Only a few hundred images of the dataset are analysed, so that a report takes seconds. The latest results are cached in
memory, because several sections of the report use them.
"""

import math
from dataclasses import asdict, dataclass, is_dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float64, UInt8

from chromabox.assignment.analysis import gradients, pixels
from chromabox.assignment.analysis.probing import probe_layers
from chromabox.colour.data.datasets import LabelledImages
from chromabox.colour.evaluation import metrics
from chromabox.colour.models.baselines import UNet
from chromabox.colour.palette.palette import decode_labels
from chromabox.colour.training.train import TrainConfig, TrainInputs, load_inputs
from chromabox.colour.weights.checkpoint import load_palette_model
from chromabox.engine.runs import RunDir
from chromabox.report.document.model import Source

#: Name of the file with all numbers of the analyses, next to the figures of a report.
RESULTS_FILE = "results.json"
#: Numbers of test images for the analysis of predictions and for the ablation of skip connections.
NUM_TEST_IMAGES, NUM_ABLATION_IMAGES = 500, 150
#: Number of training images to which probes are fitted, and number of test images on which they are evaluated.
NUM_PROBE_IMAGES = 200
#: Number of training batches on which gradients are computed.
NUM_GRADIENT_BATCHES = 2
#: Bounds of the bins for the distance from the nearest edge, in pixels.
EDGE_DISTANCE_BINS = (0, 1, 2, 3, 4, 6, math.inf)
#: The numbers and bounds above, by their keys in ``results.json``.
SAMPLE_SIZES = {
    "test pictures": NUM_TEST_IMAGES,
    "probe: fitted on training pictures": NUM_PROBE_IMAGES,
    "probe: judged on test pictures": NUM_PROBE_IMAGES,
    "skips changed on test pictures": NUM_ABLATION_IMAGES,
    "gradients of batches": NUM_GRADIENT_BATCHES,
    "bounds of the bands of distance": EDGE_DISTANCE_BINS,
}


@dataclass(frozen=True, eq=False)
class AnalysisData:
    """Test images shared by all models of a comparison, and numbers that do not depend on the model."""

    inputs: TrainInputs
    test: LabelledImages
    """The first :data:`NUM_TEST_IMAGES` images of the test split."""
    edge_distances: Float64[np.ndarray, "images height width"]
    """Distance in pixels from each pixel to the nearest edge of the greyscale image."""
    grey_stats: dict[str, float]
    """Result of :func:`image_stats` for the greyscale images."""
    true_colourfulness: float
    """Mean colourfulness of the original images."""
    lookup_table_accuracy: float
    """Accuracy of a lookup table from grey values to their most frequent colours, on the whole test split."""


@dataclass(frozen=True, eq=False)
class NetAnalysis:
    """Analysis of the model of one run."""

    model: str
    run: Path
    predictions: pixels.Predictions
    image_stats: dict[str, float]
    high_frequencies: dict[str, float]
    vivid_stats: dict[str, float]
    accuracy_by_edge_distance: pixels.AccuracyByEdgeDistance
    calibration: pixels.Calibration
    probe_scores: dict[str, dict[str, float]]
    """Result of :func:`~chromabox.assignment.analysis.probing.probe_layers`."""
    bottleneck_shape: tuple[int, int, int]
    """Channels, height and width of the output of block 2, which the probes call "quarter"."""
    initial_gradients: dict[str, gradients.LayerGradient]
    final_gradients: dict[str, gradients.LayerGradient]
    weight_change: dict[str, float]
    skip_ablations: dict[str, dict[str, float]]
    """Loss and accuracy, keyed by ablated skip connection and ablation, for example "half zeroed"."""

    @cached_property
    def to_json(self) -> dict[str, Any]:
        """All numbers, except the per-pixel predictions, as JSON values. Non-finite numbers become None."""
        values = {name: value for name, value in vars(self).items() if name not in ("predictions", "run", "model")}
        relative = {
            when: {layer: gradient.relative_norm for layer, gradient in layers.items()}
            for when, layers in (("start", self.initial_gradients), ("end", self.final_gradients))
        }
        calibration = {"error": self.calibration.error, "surplus": self.calibration.overconfidence}
        values = {"run": str(self.run), **values, "relative gradient": relative, "calibration error": calibration}
        return cast(dict[str, Any], to_json_value(values))

    @property
    def source(self) -> Source:
        """The numbers in the form of ``results.json``, with the name of the model, for use in texts and tables."""
        return Source({"model": self.model, **self.to_json}, f"{RESULTS_FILE}: nets > {self.model} > ")


def to_json_value(value: Any) -> Any:
    """Convert dataclasses, arrays and numbers to JSON values. Non-finite numbers become None."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_json_value(asdict(value))
    if isinstance(value, dict):
        return {str(key): to_json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [to_json_value(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


#: The data loaded last, keyed by the settings on which they depend.
_data_cache: dict[tuple[str, int, float, str], AnalysisData] = {}


def load_analysis_data(run: Path) -> AnalysisData:
    """Return the data for the analysis of a run. Runs with the same dataset and palette share one result."""
    config = RunDir(run).load_config(TrainConfig)
    key = (config.data, config.size, config.val_fraction, (run / "palette.json").read_text(encoding="utf-8"))
    if key in _data_cache:
        return _data_cache[key]
    inputs = load_inputs(config, run)
    train, full_test = inputs.data.train, inputs.data.test
    test = full_test.select(slice(0, NUM_TEST_IMAGES))
    grey_rgb = np.repeat(np.rint(test.grey_sum.numpy() / 3).astype(np.uint8)[..., None], 3, axis=-1)
    train_pixels, test_pixels = ((split.grey_sum.numpy(), split.labels.numpy()) for split in (train, full_test))
    data = AnalysisData(
        inputs,
        test,
        edge_distances=pixels.edge_distances(pixels.grey_edges(test.grey[:, 0].numpy())),
        grey_stats=image_stats(grey_rgb, test),
        true_colourfulness=_mean_colourfulness(test.rgb.transpose(0, 2, 3, 1)),
        lookup_table_accuracy=metrics.grey_lookup_baseline(*train_pixels, *test_pixels, len(inputs.palette)).accuracy,
    )
    _data_cache.clear()
    _data_cache[key] = data
    return data


def image_stats(rgb: UInt8[np.ndarray, "images height width 3"], test: LabelledImages) -> dict[str, float]:
    """Compare images with the test images.

    Return the ``psnr`` in dB, the mean CIEDE2000 colour difference ``delta_e``, and the mean ``colourfulness`` of the
    images.
    """
    truth = np.ascontiguousarray(test.rgb.transpose(0, 2, 3, 1))
    scores = {"psnr": metrics.psnr(rgb, truth), "delta_e": metrics.delta_e(rgb, truth)}
    return {**scores, "colourfulness": _mean_colourfulness(rgb)}


def _mean_colourfulness(rgb: UInt8[np.ndarray, "images height width 3"]) -> float:
    return float(np.mean([metrics.colourfulness(np.ascontiguousarray(image)) for image in rgb]))


def analyse(run: Path) -> NetAnalysis:
    """Analyse the model of a finished run, which is one of the assignment's three models."""
    return _analyse(run, (run / "summary.json").stat().st_mtime_ns)


@lru_cache(maxsize=3)
def _analyse(run: Path, finished_ns: int) -> NetAnalysis:
    """Analyse the model of a run. ``finished_ns`` only lets the cache distinguish runs that had the same folder."""
    config, palette_model, data = RunDir(run).load_config(TrainConfig), load_palette_model(run), load_analysis_data(run)
    model, test, palette = palette_model.network, data.test, palette_model.palette
    train, size = data.inputs.data.train, config.recipe.batch_size
    start = gradients.initial_model(config, palette)
    # The first batches in file order. If there are not enough images, the first batch is used again.
    starts = [start if start < len(train) else 0 for start in range(0, NUM_GRADIENT_BATCHES * size, size)]
    selected = [train.select(slice(start, start + size)) for start in starts]
    batches = [(images.grey, images.labels) for images in selected]
    predictions = pixels.predict(model, test)
    skips = gradients.ablate_skips(model, test.select(slice(0, NUM_ABLATION_IMAGES))) if isinstance(model, UNet) else {}
    height, width = test.labels.shape[1:]
    predicted_colours = pixels.label_colours(torch.from_numpy(predictions.labels), palette)
    probe_train, probe_test = (images.select(slice(0, NUM_PROBE_IMAGES)) for images in (train, test))
    return NetAnalysis(
        model=config.model,
        run=run,
        predictions=predictions,
        image_stats=image_stats(decode_labels(predictions.labels, palette), test),
        high_frequencies=pixels.compare_high_frequencies(predicted_colours, pixels.label_colours(test.labels, palette)),
        vivid_stats=pixels.vivid_colour_stats(predictions, test.labels.numpy(), pixels.vivid_colours(palette)),
        accuracy_by_edge_distance=pixels.accuracy_by_edge_distance(
            predictions.is_correct, data.edge_distances, EDGE_DISTANCE_BINS
        ),
        calibration=pixels.calibrate(predictions.confidence, predictions.is_correct),
        probe_scores=probe_layers(model, probe_train, probe_test, palette),
        bottleneck_shape=(model.get_submodule("block2.0").out_channels, height // 4, width // 4),  # type: ignore[arg-type]
        initial_gradients=gradients.layer_gradients(start, batches),
        final_gradients=gradients.layer_gradients(model, batches),
        weight_change=gradients.relative_weight_change(start, model),
        skip_ablations={" ".join(key): {"loss": loss, "accuracy": accuracy} for key, (loss, accuracy) in skips.items()},
    )
