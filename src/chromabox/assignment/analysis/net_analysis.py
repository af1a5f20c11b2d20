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

from chromabox.assignment.analysis.gradients import LayerGradient, ablate_skips, layer_gradients, moved, net_at_start
from chromabox.assignment.analysis.predictions import (
    Answers,
    ByDistance,
    Calibration,
    DetailKept,
    Vividness,
    answer,
    by_distance,
    calibrate,
    colour_maps,
    detail_kept,
    edge_distances,
    grey_edges,
    vivid_colours,
    vividness,
)
from chromabox.assignment.analysis.probing import Recovered, recover
from chromabox.colour.data.datasets import Pictures
from chromabox.colour.evaluation import metrics
from chromabox.colour.models.baselines import UNet
from chromabox.colour.palette.palette import Palette, labels_to_rgb
from chromabox.colour.training.train import Inputs, load_inputs, read_config
from chromabox.colour.weights.checkpoint import load_palette_net

#: Test pictures that the nets' answers are examined on.
PICTURES = 500
#: Training pictures that a probe is fitted on, and test pictures that it is judged on.
FITTED, PROBED = 200, 200
#: Test pictures that a UNet is shown with its skips changed.
ABLATED = 150
#: Training batches that gradients are taken from.
GRADIENT_BATCHES = 2
#: Bands of distance from the nearest edge, in pixels.
BOUNDS = (0, 1, 2, 3, 4, 6, math.inf)
#: All of these, as ``results.json`` tells them.
EXTENT = {
    "test pictures": PICTURES,
    "probe: fitted on training pictures": FITTED,
    "probe: judged on test pictures": PROBED,
    "skips changed on test pictures": ABLATED,
    "gradients of batches": GRADIENT_BATCHES,
    "bounds of the bands of distance": BOUNDS,
}
#: What a probe reads together, by name.
SOURCES = {"quarter": ("quarter",), "half": ("half",), "input": ("input",)}


@dataclass(frozen=True, eq=False)
class Looks:
    """How pictures look beside the true ones."""

    psnr: float
    """Decibels."""
    delta_e: float
    """Mean CIEDE2000 difference."""
    colourfulness: float
    """Hasler & Süsstrunk 2003, mean over the pictures."""


@dataclass(frozen=True, eq=False)
class Ground:
    """What all nets of one comparison stand on."""

    inputs: Inputs
    test: Pictures
    """The first ``PICTURES`` of the test split."""
    distances: Float64[np.ndarray, "pictures height width"]
    """From each pixel to the nearest edge of the grey picture."""
    vivid: Bool[np.ndarray, " colours"]
    grey: Looks
    """Of the grey pictures themselves."""
    truth_colourfulness: float
    table_accuracy: float
    """Of "grey value → its most frequent colour" on the whole test split: what needs no net."""


@dataclass(frozen=True, eq=False)
class Examined:
    """One run's net, looked into."""

    net: str
    run: Path
    answers: Answers
    looks: Looks
    detail: DetailKept
    vividness: Vividness
    by_distance: ByDistance
    calibration: Calibration
    recovered: dict[str, Recovered]
    """By what is read together: see ``SOURCES``."""
    bottleneck: tuple[int, int, int]
    """Channels, height and width of what the probe calls "quarter"."""
    start: dict[str, LayerGradient]
    end: dict[str, LayerGradient]
    moved: dict[str, float]
    skips: dict[str, dict[str, float]]
    """Loss and accuracy with a skip changed, by "which how"; empty for nets without skips."""

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """All numbers as JSON has them, without the answers pixel by pixel; what has no value is None."""
        values = {name: value for name, value in vars(self).items() if name not in ("answers", "run", "net")}
        relative = {when: {layer: one.relative for layer, one in vars(self)[when].items()} for when in ("start", "end")}
        calibration = {"error": self.calibration.error, "surplus": self.calibration.surplus}
        return cast(
            dict[str, Any],
            plain({"run": str(self.run), **values, "relative gradient": relative, "calibration error": calibration}),
        )


def plain(value: Any) -> Any:
    """A value of dataclasses, arrays and numbers as JSON has it; None for what is not finite."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(one) for one in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


@dataclass(frozen=True)
class _Kind:
    """What two runs must share to stand on the same ground."""

    data: str
    size: int
    hold_out: float
    palette: str
    run: Path = field(compare=False)


def ground_of(run: Path) -> Ground:
    """The data of a run with what does not depend on the net."""
    config = read_config(run)
    palette = (run / "palette.json").read_text(encoding="utf-8")
    return _ground(_Kind(config.data, config.size, config.hold_out, palette, run))


@lru_cache(maxsize=1)
def _ground(kind: _Kind) -> Ground:
    inputs = load_inputs(read_config(kind.run), kind.run)
    train, whole = inputs.data.train, inputs.data.test
    test = whole.take(slice(0, PICTURES))
    greys = np.repeat(np.rint(test.grey_sum.numpy() / 3).astype(np.uint8)[..., None], 3, axis=-1)
    table = metrics.grey_lookup_baseline(
        train.grey_sum.numpy(), train.labels.numpy(), whole.grey_sum.numpy(), whole.labels.numpy(), len(inputs.palette)
    )
    return Ground(
        inputs,
        test,
        distances=edge_distances(grey_edges(test.grey[:, 0].numpy())),
        vivid=vivid_colours(inputs.palette),
        grey=looks(greys, test),
        truth_colourfulness=_colourfulness(test.rgb.transpose(0, 2, 3, 1)),
        table_accuracy=table.accuracy,
    )


def looks(rgb: UInt8[np.ndarray, "pictures height width 3"], test: Pictures) -> Looks:
    """Compare pictures with the true ones."""
    truth = np.ascontiguousarray(test.rgb.transpose(0, 2, 3, 1))
    return Looks(metrics.psnr(rgb, truth), metrics.delta_e(rgb, truth), _colourfulness(rgb))


def _colourfulness(rgb: UInt8[np.ndarray, "pictures height width 3"]) -> float:
    return float(np.mean([metrics.colourfulness(np.ascontiguousarray(picture)) for picture in rgb]))


def examine(run: Path) -> Examined:
    """Look into the net of a finished run of one of the assignment's three."""
    return _examine(run, (run / "summary.json").stat().st_mtime_ns)


@lru_cache(maxsize=3)
def _examine(run: Path, changed: int) -> Examined:
    """``changed``: when the run ended, so that a run made anew is looked into anew."""
    config, trained, ground = read_config(run), load_palette_net(run), ground_of(run)
    net, test, palette = trained.net, ground.test, trained.palette
    train = ground.inputs.data.train
    start = net_at_start(config, palette)
    batches = [_batch(train, config.recipe.batch_size, number) for number in range(GRADIENT_BATCHES)]
    answers = answer(net, test)
    skips = ablate_skips(net, test.take(slice(0, ABLATED))) if isinstance(net, UNet) else {}
    height, width = test.labels.shape[1:]
    return Examined(
        net=config.net,
        run=run,
        answers=answers,
        looks=looks(labels_to_rgb(answers.labels, palette), test),
        detail=_detail(answers, test, palette),
        vividness=vividness(answers, test.labels.numpy(), ground.vivid),
        by_distance=by_distance(answers.right, ground.distances, BOUNDS),
        calibration=calibrate(answers.confidence, answers.right),
        recovered=recover(net, train.take(slice(0, FITTED)), test.take(slice(0, PROBED)), palette, SOURCES),
        bottleneck=(net.get_submodule("block2.0").out_channels, height // 4, width // 4),  # type: ignore[arg-type]
        start=layer_gradients(start, batches),
        end=layer_gradients(net, batches),
        moved=moved(start, net),
        skips={" ".join(key): {"loss": loss, "accuracy": accuracy} for key, (loss, accuracy) in skips.items()},
    )


def _batch(train: Pictures, size: int, number: int) -> tuple[Any, Any]:
    """A batch in file order; the first again where there are no more."""
    part = train.take(slice(number * size, (number + 1) * size))
    part = part if len(part) else train.take(slice(0, size))
    return part.grey, part.labels


def _detail(answers: Answers, test: Pictures, palette: Palette) -> DetailKept:
    import torch

    return detail_kept(colour_maps(torch.from_numpy(answers.labels), palette), colour_maps(test.labels, palette))
