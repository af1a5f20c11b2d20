"""From a folder of photographs to a run folder: the photo net's own training, by the same loop as all others."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from chromabox.colour.chroma.bins import ChromaBins, Scores, fit_bins
from chromabox.colour.chroma.lab import lab_from_rgb, rgb_from_lab
from chromabox.colour.data.photos import (
    Batch,
    Photograph,
    Photographs,
    central_square,
    load_photographs,
    photo_batches,
    photo_steps,
    show,
)
from chromabox.colour.evaluation.metrics import colourfulness, delta_e, psnr
from chromabox.colour.models import count_parameters
from chromabox.colour.models.photonet import PhotoNet
from chromabox.colour.training.recipes import Recipe, Start
from chromabox.colour.training.train import schedule_of
from chromabox.colour.weights.checkpoint import TrainedPhotoNet, describe_photo_net, load_trained
from chromabox.engine.autotune import Execution, choose_execution, device_of
from chromabox.engine.checkpoint import write_json
from chromabox.engine.distributed import World, from_main, synchronise_batch_norm
from chromabox.engine.logger import Record, read_metrics
from chromabox.engine.optim import KernelMuon
from chromabox.engine.runs import versions
from chromabox.engine.runtime_options import ExecutionOptions
from chromabox.engine.trainer import Job, Plan, fit
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.darknet_weights import convolutions, yolov3_tiny_file

#: Layers that stay as they come from YOLOv3-tiny: edges and textures at full, half and quarter size, where most of the
#: arithmetic is.
FROZEN_LAYERS = 3
#: Temperature of the annealed mean by which epochs are judged.
TEMPERATURE = 0.7
#: PSNR, in dB, as which an exactly right picture counts: a little above that of a single wrong value.
EXACT = 100.0
#: Validation pictures that are decoded for PSNR, ΔE2000 and colourfulness; the loss is measured on all of them.
DECODED = 200


@dataclass(frozen=True, kw_only=True)
class PhotoConfig:
    """One training run, complete: what stands in ``config.json``."""

    recipe_name: str
    recipe: Recipe
    data: str
    start: Start | str = "auto"
    """What the net begins as: ``shipped`` or a checkpoint (fine-tuning), ``yolov3-tiny`` (its first layers), ``none``;
    ``auto``: yolov3-tiny where its file can be had, else none."""
    seed: int = 0
    size: int = 192
    """Side in pixels of the squares that the net sees; a multiple of 32."""
    spacing: float = 10.0
    """Of the chroma bins."""
    accumulate: int = 1
    patience: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    execution: Execution | None = None
    net: str = "photo"


@dataclass(frozen=True)
class Beginning:
    """A net as it is before the first step, its bins, and what it was begun from."""

    net: PhotoNet
    settings: dict[str, Any]
    bins: ChromaBins
    start: str


def train_photo(
    config: PhotoConfig,
    folder: Path,
    *,
    options: ExecutionOptions | None = None,
    world: World | None = None,
    resume: bool = False,
    say: Callable[[str], None] = print,
    after_epoch: Callable[[Record, nn.Module, ChromaBins, Photographs], None] = lambda *_: None,
) -> dict[str, Any]:
    """Train a photo net into ``folder`` and return its summary (what is written as ``summary.json``).

    ``options`` is asked where ``config.execution`` is None. ``after_epoch`` is called in the main process after each
    epoch, with the record, the net, its bins and the photographs.
    """
    world = world or World()
    if config.size < 64 or config.size % PhotoNet.multiple:
        raise UsageError(f"size is {config.size}: the photo net needs a multiple of {PhotoNet.multiple}, at least 64")
    photographs = load_photographs(Path(config.data), say if world.is_main else lambda line: None)
    torch.manual_seed(config.seed)
    begun = begin(config, photographs, folder if resume else None)
    if config.execution is None:
        execution = _probe(config, options or ExecutionOptions(), begun, photographs) if world.is_main else None
        config = replace(config, start=begun.start, execution=from_main(execution, world))
    assert config.execution is not None
    synchronise_batch_norm(begun.net, world)
    job, plan = _job_and_plan(config, begun, photographs, world)
    if world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", {**asdict(config), "versions": versions()})
        write_json(folder / "bins.json", begun.bins.as_json())
        total = sum(parameter.numel() for parameter in begun.net.parameters())
        say(
            f"photo, {config.recipe_name} recipe, begun from {begun.start}: {total:,} parameters, "
            f"{count_parameters(begun.net):,} of them trained; {len(begun.bins)} chroma bins; "
            f"{len(photographs.train):,} + {len(photographs.val):,} photographs; running on {config.execution}"
        )
    trained = fit(
        job,
        plan,
        folder=folder,
        execution=config.execution,
        world=world,
        resume=resume,
        after_epoch=lambda record, net: after_epoch(record, net, begun.bins, photographs),
    )
    return from_main(_summary(config, folder, trained, begun) if world.is_main else {}, world)


def begin(config: PhotoConfig, photographs: Photographs, run: Path | None) -> Beginning:
    """The net and its bins before the first step; a run that goes on has in its folder all that it began from."""
    if run is not None:
        return _photo_net(run / "last.safetensors")
    if config.start not in ("auto", "yolov3-tiny", "none"):
        tuned = _photo_net(None if config.start == "shipped" else Path(config.start))
        return replace(tuned, start=config.start)
    numbers = None if config.start == "none" else _darknet(needed=config.start == "yolov3-tiny")
    bins = _fit_bins(photographs, config.spacing)
    settings = {**config.settings, "num_colours": len(bins), "frozen": 0 if numbers is None else FROZEN_LAYERS}
    net = PhotoNet(**settings)
    if numbers is not None:
        _take_layers(net, numbers)
    _begin_at_frequencies(net, bins)
    return Beginning(net, settings, bins, "none" if numbers is None else "yolov3-tiny")


def _photo_net(path: Path | None) -> Beginning:
    """A photo net from a checkpoint (None: the shipped one), to be trained on; UsageError for any other net."""
    trained = load_trained(path)
    if not isinstance(trained, TrainedPhotoNet) or not isinstance(trained.net, PhotoNet):
        name = trained.description.get("net")
        raise UsageError(f"start: {path or 'the shipped net'} is a {name}; fine-tuning needs a photo net's checkpoint")
    trained.net.train()
    description = trained.description
    return Beginning(trained.net, description["settings"], trained.bins, description.get("start", "none"))


def _darknet(*, needed: bool) -> Any:
    """YOLOv3-tiny's numbers; None where no source has them, unless they are ``needed``."""
    try:
        return yolov3_tiny_file()[0].numbers
    except ChromaboxError:
        if needed:
            raise
        return None


def _take_layers(net: PhotoNet, numbers: Any) -> None:
    """Put YOLOv3-tiny's first layers into the encoder; the kernel on red, green and blue is summed for grey."""
    channels = (3, *PhotoNet.ENCODER[1:])
    shapes = [(outputs, inputs, 3) for inputs, outputs in pairwise(channels)]
    for layer, given in zip(net.encode, convolutions(numbers, shapes), strict=True):
        kernel = given["kernel"].sum(1, keepdims=True) if given["kernel"].shape[1] == 3 else given["kernel"]
        state = {"0.weight": kernel, "1.weight": given["weight"], "1.bias": given["bias"]}
        state |= {"1.running_mean": given["mean"], "1.running_var": given["variance"]}
        layer.load_state_dict({name: torch.tensor(value) for name, value in state.items()}, strict=False)


@torch.no_grad()
def _begin_at_frequencies(net: PhotoNet, bins: ChromaBins) -> None:
    """Let the last layer say nearly the bins' frequencies, so that training need not begin by learning them."""
    last = net.head[-1]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    last.bias.copy_(torch.from_numpy(np.log(bins.frequencies)))
    last.weight.mul_(0.1)


def _fit_bins(photographs: Photographs, spacing: float) -> ChromaBins:
    if not spacing > 0:
        raise UsageError(f"spacing is {spacing}: the distance between chroma bins is a number above 0, 10 say")
    step = max(1, len(photographs.train) // 2000)
    thinned = (torch.from_numpy(picture[::4, ::4].copy())[None] for picture in photographs.train[::step])
    return fit_bins((lab_from_rgb(rgb)[0, 1:].flatten(1) for rgb in thinned), spacing)


def soft_cross_entropy(scores: Scores, chroma: Float[Tensor, "batch 2 height width"], bins: ChromaBins) -> Tensor:
    """Cross-entropy in nats against the soft targets, averaged over all places; in float32 whatever the scores are."""
    chosen, weights = bins.soft_targets(chroma)
    logarithms = scores.float().log_softmax(1).gather(1, chosen)
    return -(logarithms * weights).sum(1).mean()


def _losses(call: Callable[[Tensor], Tensor], batch: Batch, bins: ChromaBins) -> dict[str, Tensor]:
    lightness, chroma = batch
    return {"loss": soft_cross_entropy(call(lightness), chroma, bins)}


def _probe(config: PhotoConfig, options: ExecutionOptions, begun: Beginning, photographs: Photographs) -> Execution:
    count = min(config.recipe.batch_size, len(photographs.train))
    lightness, chroma = show(
        [central_square(picture) for picture in photographs.train[:count]], config.size, PhotoNet.stride
    )
    device = device_of(options)
    batch = (lightness.to(device), chroma.to(device))
    steps = config.recipe.epochs * (len(photographs.train) // count)
    return choose_execution(options, begun.net, lambda call: _losses(call, batch, begun.bins)["loss"], steps)


def _job_and_plan(
    config: PhotoConfig, begun: Beginning, photographs: Photographs, world: World
) -> tuple[Job[Batch], Plan]:
    recipe = config.recipe
    assert config.execution is not None
    plan = Plan(
        epochs=recipe.epochs,
        steps_per_epoch=photo_steps(len(photographs.train), recipe.batch_size, world),
        accumulate=config.accumulate,
        watch="val_loss",
        patience=config.patience,
    )
    plan = replace(
        plan, average_decay=max(0.0, 1 - 1 / (recipe.average * plan.updates)), average_ramp=plan.updates / 50
    )
    optimisers = _optimisers(recipe, begun)
    description = describe_photo_net(begun.settings, begun.bins)
    description |= {"recipe": config.recipe_name, "data": Path(config.data).name, "size": config.size}
    description |= {"seed": config.seed, "start": begun.start}
    val = [central_square(picture) for picture in photographs.val]
    device = config.execution.device
    job = Job(
        net=begun.net,
        optimisers=optimisers,
        batches=photo_batches(
            photographs.train,
            recipe.batch_size,
            size=config.size,
            stride=PhotoNet.stride,
            seed=config.seed,
            world=world,
            device=device,
        ),
        losses=lambda call, batch: _losses(call, batch, begun.bins),
        validate=lambda net: validate_photo(net, begun.bins, val, config.size, device),
        schedule=schedule_of(recipe, optimisers, plan.updates),
        describe=lambda: description,
    )
    return job, plan


def _optimisers(recipe: Recipe, begun: Beginning) -> list[torch.optim.Optimizer]:
    """Muon for the decoder's kernels, AdamW for its vectors, and a gentle AdamW for the encoder that comes trained."""
    trainable = [(name, parameter) for name, parameter in begun.net.named_parameters() if parameter.requires_grad]
    gentle = begun.start != "none" and recipe.gentle_learning_rate > 0
    encoder = [parameter for name, parameter in trainable if gentle and name.startswith("encode.")]
    others = [parameter for name, parameter in trainable if not (gentle and name.startswith("encode."))]
    kernels = [parameter for parameter in others if parameter.ndim == 4 and parameter.shape[1] > 1]
    rest = [parameter for parameter in others if not (parameter.ndim == 4 and parameter.shape[1] > 1)]
    groups = [{"params": rest, "lr": recipe.other_learning_rate}]
    if encoder:
        groups.append({"params": encoder, "lr": recipe.gentle_learning_rate})
    return [
        KernelMuon(kernels, lr=recipe.learning_rate, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.01),
    ]


@torch.no_grad()
def validate_photo(
    net: nn.Module, bins: ChromaBins, squares: list[Photograph], size: int, device: str = "cpu"
) -> dict[str, float]:
    """Loss on all squares, and on the first ``DECODED`` how much better than grey the decoded pictures are.

    ``val_psnr_gain`` is in dB over the picture without chroma (mean over pictures), ``val_delta_e_cut`` the share of
    its mean CIEDE2000 that is gone, ``val_colourfulness`` a part of the originals'.
    """
    loss = torch.zeros((), dtype=torch.float64)
    gains, differences, vividness = [], [], []
    for first in range(0, len(squares), 50):
        part = squares[first : first + 50]
        lightness, chroma = show(part, size, PhotoNet.stride)
        scores = net(lightness.to(device)).float().cpu()
        loss += soft_cross_entropy(scores, chroma, bins).double() * len(part)
        if first < DECODED:
            for square, decoded in zip(part, decode_squares(scores, bins, part), strict=True):
                grey = decode_chroma(torch.zeros(1, 2, 1, 1), [square])[0]
                gains.append(min(EXACT, psnr(decoded, square)) - psnr(grey, square))
                differences.append(
                    (delta_e(decoded[::2, ::2], square[::2, ::2]), delta_e(grey[::2, ::2], square[::2, ::2]))
                )
                vividness.append((colourfulness(decoded), colourfulness(square)))
    left, before = np.mean(differences, 0)
    ours, theirs = np.mean(vividness, 0)
    return {
        "val_loss": loss.item() / len(squares),
        "val_psnr_gain": float(np.mean(gains)),
        "val_delta_e_cut": float(1 - left / before),
        "val_colourfulness": float(ours / theirs),
    }


@torch.no_grad()
def photo_sheet(
    net: nn.Module, bins: ChromaBins, photographs: Sequence[Photograph], *, size: int = 192, count: int = 8
) -> list[list[Photograph]]:
    """Rows grey | truth | prediction of the first pictures' central squares."""
    squares = [central_square(photograph) for photograph in photographs[:count]]
    lightness, _ = show(squares, size, PhotoNet.stride)
    device = next(net.parameters()).device
    coloured = decode_squares(net(lightness.to(device)).float().cpu(), bins, squares)
    greys = decode_chroma(torch.zeros(len(squares), 2, 1, 1), squares)
    return [[grey, truth, ours] for grey, truth, ours in zip(greys, squares, coloured, strict=True)]


def decode_squares(scores: Scores, bins: ChromaBins, squares: list[Photograph]) -> list[Photograph]:
    """Square pictures in the colours of the net's scores: the annealed mean, brought up bilinearly."""
    return decode_chroma(bins.mean((scores / TEMPERATURE).softmax(1)), squares)


def decode_chroma(chroma: Float[Tensor, "batch 2 height width"], squares: list[Photograph]) -> list[Photograph]:
    """The squares' own lightness with the given chroma, in 8 bits."""
    decoded = []
    for square, small in zip(squares, chroma, strict=True):
        lab = lab_from_rgb(torch.from_numpy(square.copy())[None])
        lab[:, 1:] = F.interpolate(small[None], lab.shape[-2:], mode="bilinear")
        decoded.append((rgb_from_lab(lab)[0] * 255).round().byte().numpy())
    return decoded


def read_photo_config(folder: Path) -> PhotoConfig | None:
    """The configuration of a photo run's folder; None if the run is of another net or there is none."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["net"] != "photo":
            return None
        values.pop("versions", None)
        values["recipe"] = Recipe(**values["recipe"])
        values["execution"] = Execution(**values["execution"])
        return PhotoConfig(**values)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _summary(config: PhotoConfig, folder: Path, net: nn.Module, begun: Beginning) -> dict[str, Any]:
    records = read_metrics(folder)
    best = min(records, key=lambda record: record["val_loss"])
    summary = {
        "net": "photo",
        "recipe": config.recipe_name,
        "data": config.data,
        "start": begun.start,
        "seed": config.seed,
        "bins": len(begun.bins),
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "epochs": int(records[-1]["epoch"]),
        **{name: value for name, value in best.items() if name not in ("epoch", "seconds")},
        "best_epoch": int(best["epoch"]),
        "seconds": round(sum(record["seconds"] for record in records), 3),
    }
    write_json(folder / "summary.json", summary)
    return summary
