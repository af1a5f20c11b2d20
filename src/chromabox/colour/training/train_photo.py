"""From a folder of photographs to a run folder: the photo net's own training, by the same loop as all others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from chromabox.colour.chroma.bins import ChromaBins, fit_bins
from chromabox.colour.chroma.lab import lab_to_rgb, rgb_to_lab
from chromabox.colour.chroma.recolour import resize_planes
from chromabox.colour.data.photos import (
    Photo,
    PhotoBatch,
    PhotoDataset,
    center_crop,
    load_photos,
    make_photo_batch,
    make_photo_batches,
    num_photo_batches,
)
from chromabox.colour.evaluation.metrics import colourfulness, delta_e, psnr
from chromabox.colour.models import num_trainable_parameters
from chromabox.colour.models.photonet import PhotoNet
from chromabox.colour.training.loss import BinScores, decode_mean, soft_cross_entropy
from chromabox.colour.training.recipes import InitName, TrainRecipe
from chromabox.colour.training.train import lr_schedule
from chromabox.colour.weights.checkpoint import PhotoModel, load_model, photo_model_metadata
from chromabox.engine.autotune import RuntimeConfig, autotune, resolve_device
from chromabox.engine.checkpoint import write_json
from chromabox.engine.distributed import DistInfo, broadcast_object, convert_sync_batchnorm
from chromabox.engine.logger import EpochRecord, read_metrics
from chromabox.engine.optim import Muon
from chromabox.engine.runs import read_config_values, write_config
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.engine.trainer import TrainSchedule, TrainTask, fit
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.darknet_weights import load_yolov3_tiny, unpack_layers

#: Layers that stay as they come from YOLOv3-tiny: edges and textures at full, half and quarter size, where most of the
#: arithmetic is.
NUM_FROZEN_LAYERS = 3
#: Temperature of the annealed mean by which epochs are judged.
VAL_TEMPERATURE = 0.7
#: PSNR, in dB, as which an exactly right picture counts: a little above that of a single wrong value.
MAX_PSNR = 100.0
#: Validation pictures that are decoded for PSNR, ΔE2000 and colourfulness; the loss is measured on all of them.
NUM_DECODED = 200


@dataclass(frozen=True, kw_only=True)
class PhotoConfig:
    """One training run, complete: what stands in ``config.json``."""

    recipe_name: str
    recipe: TrainRecipe
    data: str
    init: InitName | str = "auto"
    """What the net begins as: ``shipped`` or a checkpoint (fine-tuning), ``yolov3-tiny`` (its first layers), ``none``;
    ``auto``: yolov3-tiny where its file can be had, else none."""
    seed: int = 0
    size: int = 192
    """Side in pixels of the squares that the net sees; a multiple of 32."""
    bin_spacing: float = 10.0
    """Of the chroma bins."""
    accumulate: int = 1
    patience: int | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    runtime: RuntimeConfig | None = None
    model: str = "photo"


@dataclass(frozen=True)
class InitialModel:
    """A net as it is before the first step, its bins, and what it was begun from."""

    model: PhotoNet
    model_args: dict[str, Any]
    bins: ChromaBins
    init: str


def train_photo(
    config: PhotoConfig,
    folder: Path,
    *,
    options: RuntimeOptions | None = None,
    dist_info: DistInfo | None = None,
    resume: bool = False,
    log: Callable[[str], None] = print,
    on_epoch_end: Callable[[EpochRecord, nn.Module, ChromaBins, PhotoDataset], None] = lambda *_: None,
) -> dict[str, Any]:
    """Train a photo net into ``folder`` and return its summary (what is written as ``summary.json``).

    ``options`` is asked where ``config.execution`` is None. ``after_epoch`` is called in the main process after each
    epoch, with the record, the net, its bins and the photographs.
    """
    dist_info = dist_info or DistInfo()
    if config.size < 64 or config.size % PhotoNet.size_divisor:
        raise UsageError(
            f"size is {config.size}: the photo net needs a multiple of {PhotoNet.size_divisor}, at least 64"
        )
    photographs = load_photos(Path(config.data), log if dist_info.is_main else lambda line: None)
    torch.manual_seed(config.seed)
    begun = init_model(config, photographs, folder if resume else None)
    if config.runtime is None:
        execution = _autotune(config, options or RuntimeOptions(), begun, photographs) if dist_info.is_main else None
        config = replace(config, init=begun.init, runtime=broadcast_object(execution, dist_info))
    assert config.runtime is not None
    convert_sync_batchnorm(begun.model, dist_info)
    job, plan = build_photo_task(config, begun, photographs, dist_info)
    if dist_info.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        write_config(folder, config)
        write_json(folder / "bins.json", begun.bins.as_json())
        total = sum(parameter.numel() for parameter in begun.model.parameters())
        log(
            f"photo, {config.recipe_name} recipe, begun from {begun.init}: {total:,} parameters, "
            f"{num_trainable_parameters(begun.model):,} of them trained; {len(begun.bins)} chroma bins; "
            f"{len(photographs.train):,} + {len(photographs.val):,} photographs; running on {config.runtime}"
        )
    trained = fit(
        job,
        plan,
        folder=folder,
        runtime=config.runtime,
        dist_info=dist_info,
        resume=resume,
        on_epoch_end=lambda record, net: on_epoch_end(record, net, begun.bins, photographs),
    )
    return broadcast_object(_write_summary(config, folder, trained, begun) if dist_info.is_main else {}, dist_info)


def init_model(config: PhotoConfig, photos: PhotoDataset, resume_from: Path | None) -> InitialModel:
    """The net and its bins before the first step; a run that goes on has in its folder all that it began from."""
    if resume_from is not None:
        return _load_photo_model(resume_from / "last.safetensors")
    if config.init not in ("auto", "yolov3-tiny", "none"):
        tuned = _load_photo_model(None if config.init == "shipped" else Path(config.init))
        return replace(tuned, init=config.init)
    numbers = None if config.init == "none" else _load_yolo_weights(required=config.init == "yolov3-tiny")
    bins = _fit_bins(photos, config.bin_spacing)
    settings = {**config.model_args, "num_colours": len(bins), "frozen": 0 if numbers is None else NUM_FROZEN_LAYERS}
    net = PhotoNet(**settings)
    if numbers is not None:
        _copy_encoder(net, numbers)
    _init_bias_from_frequencies(net, bins)
    return InitialModel(net, settings, bins, "none" if numbers is None else "yolov3-tiny")


def _load_photo_model(path: Path | None) -> InitialModel:
    """A photo net from a checkpoint (None: the shipped one), to be trained on; UsageError for any other net."""
    trained = load_model(path)
    if not isinstance(trained, PhotoModel) or not isinstance(trained.network, PhotoNet):
        name = trained.metadata.get("net")
        raise UsageError(f"start: {path or 'the shipped net'} is a {name}; fine-tuning needs a photo net's checkpoint")
    trained.network.train()
    description = trained.metadata
    return InitialModel(trained.network, description["settings"], trained.bins, description.get("start", "none"))


def _load_yolo_weights(*, required: bool) -> Any:
    """YOLOv3-tiny's numbers; None where no source has them, unless they are ``needed``."""
    try:
        return load_yolov3_tiny()[0].values
    except ChromaboxError:
        if required:
            raise
        return None


def _copy_encoder(model: PhotoNet, weights: Any) -> None:
    """Put YOLOv3-tiny's first layers into the encoder; the kernel on red, green and blue is summed for grey."""
    channels = (3, *PhotoNet.ENCODER_CHANNELS[1:])
    shapes = [(outputs, inputs, 3) for inputs, outputs in pairwise(channels)]
    for layer, given in zip(model.encode, unpack_layers(weights, shapes), strict=True):
        kernel = given["kernel"].sum(1, keepdims=True) if given["kernel"].shape[1] == 3 else given["kernel"]
        state = {"0.weight": kernel, "1.weight": given["weight"], "1.bias": given["bias"]}
        state |= {"1.running_mean": given["mean"], "1.running_var": given["variance"]}
        layer.load_state_dict({name: torch.tensor(value) for name, value in state.items()}, strict=False)


@torch.no_grad()
def _init_bias_from_frequencies(model: PhotoNet, bins: ChromaBins) -> None:
    """Let the last layer say nearly the bins' frequencies, so that training need not begin by learning them."""
    last = model.head[-1]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    last.bias.copy_(torch.from_numpy(np.log(bins.frequencies)))
    last.weight.mul_(0.1)


def _fit_bins(photos: PhotoDataset, spacing: float) -> ChromaBins:
    if not spacing > 0:
        raise UsageError(f"spacing is {spacing}: the distance between chroma bins is a number above 0, 10 say")
    step = max(1, len(photos.train) // 2000)
    subsampled = (image[::4, ::4].reshape(-1, 3) for image in photos.train[::step])
    return fit_bins((rgb_to_lab(pixels)[:, 1:] for pixels in subsampled), spacing)


def _compute_losses(forward: Callable[[Tensor], Tensor], batch: PhotoBatch, bins: ChromaBins) -> dict[str, Tensor]:
    lightness, chroma = batch
    return {"loss": soft_cross_entropy(forward(lightness), chroma, bins)}


def _autotune(
    config: PhotoConfig, options: RuntimeOptions, initial: InitialModel, photos: PhotoDataset
) -> RuntimeConfig:
    count = min(config.recipe.batch_size, len(photos.train))
    lightness, chroma = make_photo_batch(
        [center_crop(picture) for picture in photos.train[:count]], config.size, PhotoNet.stride
    )
    device = resolve_device(options)
    batch = (lightness.to(device), chroma.to(device))
    steps = config.recipe.epochs * (len(photos.train) // count)
    return autotune(options, initial.model, lambda call: _compute_losses(call, batch, initial.bins)["loss"], steps)


def build_photo_task(
    config: PhotoConfig, initial: InitialModel, photos: PhotoDataset, dist_info: DistInfo
) -> tuple[TrainTask[PhotoBatch], TrainSchedule]:
    recipe = config.recipe
    assert config.runtime is not None
    plan = TrainSchedule(
        epochs=recipe.epochs,
        batches_per_epoch=num_photo_batches(len(photos.train), recipe.batch_size, dist_info),
        accumulate=config.accumulate,
        monitor="val_loss",
        patience=config.patience,
    )
    plan = replace(
        plan,
        ema_decay=max(0.0, 1 - 1 / (recipe.ema_fraction * plan.total_steps)),
        ema_warmup_steps=plan.total_steps / 50,
    )
    optimisers = _build_optimizers(recipe, initial)
    description = photo_model_metadata(initial.model_args, initial.bins)
    description |= {"recipe": config.recipe_name, "data": Path(config.data).name, "size": config.size}
    description |= {"seed": config.seed, "start": initial.init}
    val = [center_crop(picture) for picture in photos.val]
    device = config.runtime.device
    job = TrainTask(
        model=initial.model,
        optimizers=optimisers,
        batches=make_photo_batches(
            photos.train,
            recipe.batch_size,
            size=config.size,
            stride=PhotoNet.stride,
            seed=config.seed,
            dist_info=dist_info,
            device=device,
        ),
        compute_loss=lambda call, batch: _compute_losses(call, batch, initial.bins),
        validate=lambda net: validate_photo(net, initial.bins, val, config.size, device),
        lr_schedule=lr_schedule(recipe, optimisers, plan.total_steps),
        checkpoint_metadata=lambda: description,
    )
    return job, plan


def _build_optimizers(recipe: TrainRecipe, initial: InitialModel) -> list[torch.optim.Optimizer]:
    """Muon for the decoder's kernels, AdamW for its vectors, and a gentle AdamW for the encoder that comes trained."""
    trainable = [(name, parameter) for name, parameter in initial.model.named_parameters() if parameter.requires_grad]
    gentle = initial.init != "none" and recipe.backbone_lr > 0
    encoder = [parameter for name, parameter in trainable if gentle and name.startswith("encode.")]
    others = [parameter for name, parameter in trainable if not (gentle and name.startswith("encode."))]
    kernels = [parameter for parameter in others if parameter.ndim == 4 and parameter.shape[1] > 1]
    rest = [parameter for parameter in others if not (parameter.ndim == 4 and parameter.shape[1] > 1)]
    groups = [{"params": rest, "lr": recipe.adamw_lr}]
    if encoder:
        groups.append({"params": encoder, "lr": recipe.backbone_lr})
    return [
        Muon(kernels, lr=recipe.lr, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.01),
    ]


@torch.no_grad()
def validate_photo(
    model: nn.Module, bins: ChromaBins, crops: list[Photo], size: int, device: str = "cpu"
) -> dict[str, float]:
    """Loss on all squares, and on the first ``DECODED`` how much better than grey the decoded pictures are.

    ``val_psnr_gain`` is in dB over the picture without chroma (mean over pictures), ``val_delta_e_cut`` the share of
    its mean CIEDE2000 that is gone, ``val_colourfulness`` a part of the originals'.
    """
    loss = torch.zeros((), dtype=torch.float64)
    gains, differences, vividness = [], [], []
    for first in range(0, len(crops), 50):
        part = crops[first : first + 50]
        lightness, chroma = make_photo_batch(part, size, PhotoNet.stride)
        scores = model(lightness.to(device)).float().cpu()
        loss += soft_cross_entropy(scores, chroma, bins).double() * len(part)
        if first < NUM_DECODED:
            for square, decoded in zip(part, decode_predictions(scores, bins, part), strict=True):
                grey = decode_chroma(torch.zeros(1, 2, 1, 1), [square])[0]
                gains.append(min(MAX_PSNR, psnr(decoded, square)) - psnr(grey, square))
                differences.append(
                    (delta_e(decoded[::2, ::2], square[::2, ::2]), delta_e(grey[::2, ::2], square[::2, ::2]))
                )
                vividness.append((colourfulness(decoded), colourfulness(square)))
    left, before = np.mean(differences, 0)
    ours, theirs = np.mean(vividness, 0)
    return {
        "val_loss": loss.item() / len(crops),
        "val_psnr_gain": float(np.mean(gains)),
        "val_delta_e_cut": float(1 - left / before),
        "val_colourfulness": float(ours / theirs),
    }


@torch.no_grad()
def photo_sample_grid(
    model: nn.Module, bins: ChromaBins, photos: Sequence[Photo], *, size: int = 192, num_images: int = 8
) -> list[list[Photo]]:
    """Rows grey | truth | prediction of the first pictures' central squares."""
    squares = [center_crop(photograph) for photograph in photos[:num_images]]
    lightness, _ = make_photo_batch(squares, size, PhotoNet.stride)
    device = next(model.parameters()).device
    coloured = decode_predictions(model(lightness.to(device)).float().cpu(), bins, squares)
    greys = decode_chroma(torch.zeros(len(squares), 2, 1, 1), squares)
    return [[grey, truth, ours] for grey, truth, ours in zip(greys, squares, coloured, strict=True)]


def decode_predictions(scores: BinScores, bins: ChromaBins, crops: list[Photo]) -> list[Photo]:
    """Square pictures in the colours of the net's scores: the annealed mean, brought up bilinearly."""
    return decode_chroma(decode_mean((scores / VAL_TEMPERATURE).softmax(1), bins), crops)


def decode_chroma(chroma: Float[Tensor, "batch 2 height width"], crops: list[Photo]) -> list[Photo]:
    """The squares' own lightness with the given chroma, in 8 bits."""
    decoded = []
    for square, small in zip(crops, chroma, strict=True):
        lab = rgb_to_lab(square)
        lab[..., 1:] = np.moveaxis(resize_planes(small.numpy(), *square.shape[:2]), 0, -1)
        decoded.append(lab_to_rgb(lab))
    return decoded


def read_photo_config(folder: Path) -> PhotoConfig | None:
    """The configuration of a photo run's folder; None if the run is of another net or there is none."""
    try:
        values = read_config_values(folder)
        if values["model"] != "photo":
            return None
        values["recipe"] = TrainRecipe(**values["recipe"])
        values["runtime"] = RuntimeConfig(**values["runtime"])
        return PhotoConfig(**values)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_summary(config: PhotoConfig, folder: Path, model: nn.Module, initial: InitialModel) -> dict[str, Any]:
    records = read_metrics(folder)
    best = min(records, key=lambda record: record["val_loss"])
    summary = {
        "net": "photo",
        "recipe": config.recipe_name,
        "data": config.data,
        "start": initial.init,
        "seed": config.seed,
        "bins": len(initial.bins),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "epochs": int(records[-1]["epoch"]),
        **{name: value for name, value in best.items() if name not in ("epoch", "seconds")},
        "best_epoch": int(best["epoch"]),
        "seconds": round(sum(record["seconds"] for record in records), 3),
    }
    write_json(folder / "summary.json", summary)
    return summary
