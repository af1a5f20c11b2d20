"""One trained net of each kind looked into: the numbers behind "why", and where they can be looked up.

Everything is computed from the net that a run left and the first pictures of its data, a few hundred of them, so that
a write-up takes seconds. What was computed last is kept as long as the process, because several questions ask for it.
"""

import math
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from chromabox.assignment.analysis.gradients import (
    LayerGradient,
    ablate_skips,
    initial_model,
    layer_gradients,
    relative_weight_change,
)
from chromabox.assignment.analysis.predictions import (
    AccuracyByEdgeDistance,
    Calibration,
    HighFrequencyStats,
    Predictions,
    VividColourStats,
    accuracy_by_edge_distance,
    calibrate,
    compare_high_frequencies,
    edge_distances,
    grey_edges,
    label_colours,
    predict,
    vivid_colour_stats,
    vivid_colours,
)
from chromabox.assignment.analysis.probing import ProbeScores, probe_layers
from chromabox.colour.data.datasets import LabelledImages
from chromabox.colour.evaluation import metrics
from chromabox.colour.models.baselines import UNet
from chromabox.colour.palette.palette import Palette, decode_labels
from chromabox.colour.training.train import TrainInputs, load_inputs, read_config
from chromabox.colour.weights.checkpoint import load_palette_model

#: Test pictures that the nets' answers are examined on.
NUM_TEST_IMAGES = 500
#: Training pictures that a probe is fitted on, and test pictures that it is judged on.
NUM_PROBE_TRAIN_IMAGES, NUM_PROBE_TEST_IMAGES = 200, 200
#: Test pictures that a UNet is shown with its skips changed.
NUM_ABLATION_IMAGES = 150
#: Training batches that gradients are taken from.
NUM_GRADIENT_BATCHES = 2
#: Bands of distance from the nearest edge, in pixels.
EDGE_DISTANCE_BINS = (0, 1, 2, 3, 4, 6, math.inf)
#: All of these, as ``results.json`` tells them.
SAMPLE_SIZES = {
    "test pictures": NUM_TEST_IMAGES,
    "probe: fitted on training pictures": NUM_PROBE_TRAIN_IMAGES,
    "probe: judged on test pictures": NUM_PROBE_TEST_IMAGES,
    "skips changed on test pictures": NUM_ABLATION_IMAGES,
    "gradients of batches": NUM_GRADIENT_BATCHES,
    "bounds of the bands of distance": EDGE_DISTANCE_BINS,
}
#: What a probe reads together, by name.
PROBE_LAYERS = {"quarter": ("quarter",), "half": ("half",), "input": ("input",)}


@dataclass(frozen=True, eq=False)
class ImageStats:
    """How pictures look beside the true ones."""

    psnr: float
    """Decibels."""
    delta_e: float
    """Mean CIEDE2000 difference."""
    colourfulness: float
    """Hasler & Süsstrunk 2003, mean over the pictures."""


@dataclass(frozen=True, eq=False)
class AnalysisData:
    """What all nets of one comparison stand on."""

    inputs: TrainInputs
    test: LabelledImages
    """The first ``PICTURES`` of the test split."""
    edge_distances: Float64[np.ndarray, "pictures height width"]
    """From each pixel to the nearest edge of the grey picture."""
    is_vivid: Bool[np.ndarray, " colours"]
    grey_stats: ImageStats
    """Of the grey pictures themselves."""
    true_colourfulness: float
    lookup_table_accuracy: float
    """Of "grey value → its most frequent colour" on the whole test split: what needs no net."""


@dataclass(frozen=True, eq=False)
class NetAnalysis:
    """One run's net, looked into."""

    model: str
    run: Path
    predictions: Predictions
    image_stats: ImageStats
    high_frequencies: HighFrequencyStats
    vivid_stats: VividColourStats
    accuracy_by_edge_distance: AccuracyByEdgeDistance
    calibration: Calibration
    probe_scores: dict[str, ProbeScores]
    """By what is read together: see ``SOURCES``."""
    bottleneck_shape: tuple[int, int, int]
    """Channels, height and width of what the probe calls "quarter"."""
    initial_gradients: dict[str, LayerGradient]
    final_gradients: dict[str, LayerGradient]
    weight_change: dict[str, float]
    skip_ablations: dict[str, dict[str, float]]
    """Loss and accuracy with a skip changed, by "which how"; empty for nets without skips."""

    @cached_property
    def to_json(self) -> dict[str, Any]:
        """All numbers as JSON has them, without the answers pixel by pixel; what has no value is None."""
        values = {name: value for name, value in vars(self).items() if name not in ("predictions", "run", "model")}
        relative = {
            when: {layer: one.relative_norm for layer, one in gradients.items()}
            for when, gradients in (("start", self.initial_gradients), ("end", self.final_gradients))
        }
        calibration = {"error": self.calibration.error, "surplus": self.calibration.overconfidence}
        return cast(
            dict[str, Any],
            to_json_value(
                {"run": str(self.run), **values, "relative gradient": relative, "calibration error": calibration}
            ),
        )


def to_json_value(value: Any) -> Any:
    """A value of dataclasses, arrays and numbers as JSON has it; None for what is not finite."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_json_value(asdict(value))
    if isinstance(value, dict):
        return {str(key): to_json_value(one) for key, one in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [to_json_value(one) for one in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


@dataclass(frozen=True)
class _DataKey:
    """What two runs must share to stand on the same ground."""

    data: str
    size: int
    val_fraction: float
    palette: str
    run: Path = field(compare=False)


def load_analysis_data(run: Path) -> AnalysisData:
    """The data of a run with what does not depend on the net."""
    config = read_config(run)
    palette = (run / "palette.json").read_text(encoding="utf-8")
    return _load_analysis_data(_DataKey(config.data, config.size, config.val_fraction, palette, run))


@lru_cache(maxsize=1)
def _load_analysis_data(key: _DataKey) -> AnalysisData:
    inputs = load_inputs(read_config(key.run), key.run)
    train, whole = inputs.data.train, inputs.data.test
    test = whole.select(slice(0, NUM_TEST_IMAGES))
    greys = np.repeat(np.rint(test.grey_sum.numpy() / 3).astype(np.uint8)[..., None], 3, axis=-1)
    table = metrics.grey_lookup_baseline(
        train.grey_sum.numpy(), train.labels.numpy(), whole.grey_sum.numpy(), whole.labels.numpy(), len(inputs.palette)
    )
    return AnalysisData(
        inputs,
        test,
        edge_distances=edge_distances(grey_edges(test.grey[:, 0].numpy())),
        is_vivid=vivid_colours(inputs.palette),
        grey_stats=image_stats(greys, test),
        true_colourfulness=_mean_colourfulness(test.rgb.transpose(0, 2, 3, 1)),
        lookup_table_accuracy=table.accuracy,
    )


def image_stats(rgb: UInt8[np.ndarray, "pictures height width 3"], test: LabelledImages) -> ImageStats:
    """Compare pictures with the true ones."""
    truth = np.ascontiguousarray(test.rgb.transpose(0, 2, 3, 1))
    return ImageStats(metrics.psnr(rgb, truth), metrics.delta_e(rgb, truth), _mean_colourfulness(rgb))


def _mean_colourfulness(rgb: UInt8[np.ndarray, "pictures height width 3"]) -> float:
    return float(np.mean([metrics.colourfulness(np.ascontiguousarray(picture)) for picture in rgb]))


def analyse(run: Path) -> NetAnalysis:
    """Look into the net of a finished run of one of the assignment's three."""
    return _analyse(run, (run / "summary.json").stat().st_mtime_ns)


@lru_cache(maxsize=3)
def _analyse(run: Path, modified_ns: int) -> NetAnalysis:
    """``changed``: when the run ended, so that a run made anew is looked into anew."""
    config, trained, ground = read_config(run), load_palette_model(run), load_analysis_data(run)
    net, test, palette = trained.network, ground.test, trained.palette
    train = ground.inputs.data.train
    start = initial_model(config, palette)
    batches = [_take_batch(train, config.recipe.batch_size, number) for number in range(NUM_GRADIENT_BATCHES)]
    answers = predict(net, test)
    skips = ablate_skips(net, test.select(slice(0, NUM_ABLATION_IMAGES))) if isinstance(net, UNet) else {}
    height, width = test.labels.shape[1:]
    return NetAnalysis(
        model=config.model,
        run=run,
        predictions=answers,
        image_stats=image_stats(decode_labels(answers.labels, palette), test),
        high_frequencies=_high_frequency_stats(answers, test, palette),
        vivid_stats=vivid_colour_stats(answers, test.labels.numpy(), ground.is_vivid),
        accuracy_by_edge_distance=accuracy_by_edge_distance(
            answers.is_correct, ground.edge_distances, EDGE_DISTANCE_BINS
        ),
        calibration=calibrate(answers.confidence, answers.is_correct),
        probe_scores=probe_layers(
            net,
            train.select(slice(0, NUM_PROBE_TRAIN_IMAGES)),
            test.select(slice(0, NUM_PROBE_TEST_IMAGES)),
            palette,
            PROBE_LAYERS,
        ),
        bottleneck_shape=(net.get_submodule("block2.0").out_channels, height // 4, width // 4),  # type: ignore[arg-type]
        initial_gradients=layer_gradients(start, batches),
        final_gradients=layer_gradients(net, batches),
        weight_change=relative_weight_change(start, net),
        skip_ablations={" ".join(key): {"loss": loss, "accuracy": accuracy} for key, (loss, accuracy) in skips.items()},
    )


def _take_batch(train: LabelledImages, size: int, number: int) -> tuple[Any, Any]:
    """A batch in file order; the first again where there are no more."""
    part = train.select(slice(number * size, (number + 1) * size))
    part = part if len(part) else train.select(slice(0, size))
    return part.grey, part.labels


def _high_frequency_stats(predictions: Predictions, test: LabelledImages, palette: Palette) -> HighFrequencyStats:
    import torch

    return compare_high_frequencies(
        label_colours(torch.from_numpy(predictions.labels), palette), label_colours(test.labels, palette)
    )
