"""Train the photo model on a GPU that is available for minutes only, with photographs that arrive in parts.

    python scripts/train_photo_gpu.py pack --data SHARDS --packs FOLDER
    python scripts/train_photo_gpu.py train --packs FOLDER --run RUN
    python scripts/train_photo_gpu.py average --checkpoints FIRST SECOND --weight W --run RUN

``pack`` runs on the machine with the dataset. It writes the model before the first step, and the photographs as small
WebP images in files of at most 46 MiB. ``train`` runs on the machine with the GPU. It starts with the files that are in
the folder and also uses the files that arrive later. RUN/deadline contains the Unix time at which training ends. The
file may be changed during training. The learning rate depends on the fraction of the time that has passed. The side of
the inputs is 160 pixels in the first part of the time, and then 192 pixels. RUN/ema.safetensors contains the averaged
model. ``average`` writes (1 - W) times the weights of the first checkpoint plus W times those of the second one.
"""

import argparse
import io
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import count
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from chromabox.colour.chroma.bins import ChromaBins
from chromabox.colour.data.datasets import center_crop
from chromabox.colour.data.photos import PhotoBatch, PhotoBatches, Photos, StoredPhotos, load_photos, make_photo_batch
from chromabox.colour.models import build_model
from chromabox.colour.models.photonet import PhotoNet
from chromabox.colour.training.loss import photo_loss, soft_cross_entropy
from chromabox.colour.training.recipes import make_photo_recipe
from chromabox.colour.training.train_photo import InitialModel, PhotoConfig, build_optimizers, init_model
from chromabox.colour.weights.checkpoint import model_metadata
from chromabox.colour.weights.onnx_model import read_classes
from chromabox.engine.checkpoint import load_checkpoint, save_checkpoint
from chromabox.engine.distributed import DistInfo
from chromabox.engine.options import lr_factor

PACKED_SIDE, PACKED_ASPECT, WEBP_QUALITY = 192, 1.5, 33
#: Maximum size of the files. The first one leaves space for the model.
MAX_PACK_BYTES, MAX_FIRST_PACK_BYTES = 46 << 20, 20 << 20
BATCH_SIZE = 256
SIZES, SWITCH = (160, 192), 0.6
#: Fraction of the run over which the weights are averaged.
EMA_FRACTION = 0.04
SECONDS_PER_CHECKPOINT, STEPS_PER_LOG = 45, 50


def pack(data: Path, target: Path) -> None:
    """Write ``init.safetensors``, ``val.npz`` and ``p00.npz``, ``p01.npz``, … to the folder ``target``."""
    photos = load_photos(data)
    target.mkdir(parents=True, exist_ok=True)
    recipe = make_photo_recipe("default")
    config = PhotoConfig(data=str(data), recipe_name="default", recipe=recipe, init="efficientnet-lite0")
    torch.manual_seed(config.seed)
    initial = init_model(config, photos, None)
    metadata = {**model_metadata("photo", initial.model_args, initial.bins), "start": initial.init, "seed": config.seed}
    state = {name: value.half() for name, value in initial.model.state_dict().items()}
    save_checkpoint(target / "init.safetensors", {"net": state}, metadata)
    order = np.random.default_rng(config.seed).permutation(len(photos.train)).tolist()
    with Pool() as pool:
        _write_pack(target / "val.npz", pool.imap(_encode, ((photos.val, i) for i in range(0, len(photos.val), 5)), 16))
        files, size, number = [], 0, 0
        for file in pool.imap(_encode, ((photos.train, i) for i in order), 64):
            files.append(file)
            size += len(file)
            if size > (MAX_PACK_BYTES if number else MAX_FIRST_PACK_BYTES):
                _write_pack(target / f"p{number:02}.npz", files)
                files, size, number = [], 0, number + 1
        _write_pack(target / f"p{number:02}.npz", files)


def _encode(item: tuple[Photos, int]) -> bytes:
    photos, index = item
    image = Image.fromarray(photos[index])
    scale = min(1, PACKED_SIDE / min(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    longest = round(PACKED_ASPECT * min(width, height))
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    image = image.crop((left, top, min(width, left + longest), min(height, top + longest)))
    data = io.BytesIO()
    image.save(data, "WEBP", quality=WEBP_QUALITY, method=4)
    return data.getvalue()


def _write_pack(path: Path, files: Iterable[bytes]) -> None:
    files = list(files)
    lengths = np.array([len(file) for file in files], np.int32)
    np.savez(path, lengths=lengths, data=np.frombuffer(b"".join(files), np.uint8))


def _read_pack(path: Path) -> list[bytes]:
    with np.load(path) as pack_file:
        data, ends = pack_file["data"].tobytes(), pack_file["lengths"].cumsum(dtype=np.int64).tolist()
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


class Deadline:
    """Progress of a run whose end can be moved."""

    def __init__(self, path: Path) -> None:
        self.path, self.start = path, time.time()

    def seconds(self) -> float:
        """Return the length of the run in seconds."""
        return max(1.0, float(self.path.read_text()) - self.start)

    def progress(self) -> float:
        """Return the fraction of the time that has passed."""
        return (time.time() - self.start) / self.seconds()


class Batches(IterableDataset[tuple[int, PhotoBatch]]):
    """Training batches without end, prepared in worker processes: the index of the epoch and the batch."""

    def __init__(self, photos: StoredPhotos, first_epoch: int, seed: int, deadline: Deadline) -> None:
        self.photos, self.first_epoch, self.seed, self.deadline = photos, first_epoch, seed, deadline

    def __iter__(self) -> Iterator[tuple[int, PhotoBatch]]:
        torch.set_num_threads(1)
        worker = get_worker_info()
        assert worker is not None
        for epoch in count(self.first_epoch):
            for step in range(worker.id, len(self.photos) // BATCH_SIZE, worker.num_workers):
                size = SIZES[self.deadline.progress() > SWITCH]
                batches = _epoch_batches(self.photos, size, self.seed, epoch)
                yield epoch, batches[step]


@lru_cache(maxsize=1)
def _epoch_batches(photos: StoredPhotos, size: int, seed: int, epoch: int) -> PhotoBatches:
    """Return the batches of an epoch. They are cached because they compute the order of all images."""
    return PhotoBatches(photos, BATCH_SIZE, (size, size), seed, epoch, DistInfo(), PhotoConfig.degraded_fraction)


class Ema:
    """Average of the weights and BatchNorm statistics over the last ``EMA_FRACTION`` of the time."""

    def __init__(self, model: nn.Module) -> None:
        self.values = [value for value in model.state_dict().values() if value.is_floating_point()]
        self.averages = [value.clone() for value in self.values]
        self.last_update = time.time()

    @torch.no_grad()
    def update(self, deadline: Deadline) -> None:
        """Move the averages towards the values, in proportion to the time since the last update."""
        now = time.time()
        # At the start, the average covers less time, so that it does not contain the initial weights.
        window = EMA_FRACTION * min(deadline.seconds(), now - deadline.start)
        torch._foreach_lerp_(self.averages, self.values, min(1.0, (now - self.last_update) / max(window, 1e-3)))
        self.last_update = now

    def copy_to(self, model: nn.Module) -> None:
        """Copy the averages to a model."""
        targets = [value for value in model.state_dict().values() if value.is_floating_point()]
        torch._foreach_copy_(targets, self.averages)


def train(packs: Path, run: Path, *, workers: int, device: str) -> None:
    """Train until the deadline."""
    state, metadata = load_checkpoint(packs / "init.safetensors")
    models = [build_model("photo", **metadata["settings"]).to(device, memory_format=torch.channels_last) for _ in "ab"]
    model, averaged = models[0].train(), models[1].eval()
    model.load_state_dict({name: value.float() for name, value in state["net"].items()})
    bins = read_classes(metadata)
    assert isinstance(bins, ChromaBins)
    assert isinstance(model, PhotoNet)
    recipe = replace(make_photo_recipe("default"), backbone_lr=1e-3)
    optimizers = build_optimizers(recipe, InitialModel(model, metadata["settings"], bins, metadata["start"]))
    peak_lrs = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    val_photos = StoredPhotos(_read_pack(packs / "val.npz"))
    val_batches = [
        make_photo_batch([center_crop(photo) for photo in val_photos[i : i + 50]], SIZES[-1])
        for i in range(0, len(val_photos), 50)
    ]

    deadline, ema = Deadline(run / "deadline"), Ema(model)

    def save(step: int) -> None:
        ema.copy_to(averaged)
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            losses = [soft_cross_entropy(averaged(x.to(device)), y.to(device), bins).item() for x, y in val_batches]
        log(f"step {step}: val_loss {sum(losses) / len(losses):.4f}")
        save_checkpoint(
            run / "ema.safetensors", {"net": averaged.state_dict()}, {**metadata, "recipe": "gpu", "size": SIZES[-1]}
        )

    step = epoch = 0
    saved = logged = time.time()
    losses: list[Tensor] = []
    names: set[Path] = set()
    files: list[bytes] = []
    while deadline.progress() < 1:
        new = sorted(set(packs.glob("p*.npz")) - names)
        files += [file for path in new for file in _read_pack(path)]
        names |= set(new)
        log(f"{len(names)} packs, {len(files)} images")
        dataset = Batches(StoredPhotos(files), epoch, metadata["seed"], deadline)
        for epoch, (lightness, chroma) in DataLoader(
            dataset, batch_size=None, num_workers=workers, prefetch_factor=3, pin_memory=device == "cuda"
        ):
            factor = lr_factor(recipe, deadline.progress())
            for optimizer, lrs in zip(optimizers, peak_lrs, strict=True):
                for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                    group["lr"] = lr * factor
            lightness, chroma = (part.to(device, non_blocking=True) for part in (lightness, chroma))
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                scores = model(lightness.contiguous(memory_format=torch.channels_last)).float()
            batch_losses = photo_loss(scores, chroma, bins, PhotoConfig.mean_weight)
            for optimizer in optimizers:
                optimizer.zero_grad()
            batch_losses["loss"].backward()
            for optimizer in optimizers:
                optimizer.step()
            ema.update(deadline)
            losses.append(batch_losses["cross_entropy"])
            step += 1
            if step % STEPS_PER_LOG == 0:
                rate = STEPS_PER_LOG * BATCH_SIZE / (time.time() - logged)
                mean_loss = torch.stack(losses).mean().item()
                log(f"step {step}, epoch {epoch}, {deadline.progress():.1%}: loss {mean_loss:.4f}, {rate:.0f} images/s")
                losses, logged = [], time.time()
            if time.time() - saved > SECONDS_PER_CHECKPOINT:
                save(step)
                saved = time.time()
            if deadline.progress() >= 1 or set(packs.glob("p*.npz")) - names:
                break
        epoch += 1
    save(step)
    (run / "finished").touch()


def average(checkpoints: list[Path], weight: float, run: Path) -> None:
    """Write the weighted average of two checkpoints to ``average.safetensors``."""
    (first, metadata), (second, _) = (load_checkpoint(path) for path in checkpoints)
    state = {
        name: torch.lerp(value, second["net"][name], weight) if value.is_floating_point() else value
        for name, value in first["net"].items()
    }
    save_checkpoint(run / "average.safetensors", {"net": state}, metadata)


def log(message: str) -> None:
    """Print a message with the time."""
    print(time.strftime("%H:%M:%S"), message, flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("pack", "train", "average"))
    parser.add_argument("--data", type=Path, help="folder of tar shards (pack)")
    parser.add_argument("--packs", type=Path, help="folder of the packed photographs (pack and train)")
    parser.add_argument("--run", type=Path, help="folder of the results (train and average)")
    parser.add_argument("--checkpoints", type=Path, nargs=2, help="two checkpoints (average)")
    parser.add_argument("--weight", type=float, help="weight of the second checkpoint (average)")
    parser.add_argument("--workers", type=int, default=14, help="processes that prepare batches (train)")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (train)")
    args = parser.parse_args()
    if args.command == "pack":
        pack(args.data, args.packs)
    elif args.command == "average":
        average(args.checkpoints, args.weight, args.run)
    else:
        train(args.packs, args.run, workers=args.workers, device=args.device)


if __name__ == "__main__":
    main()
