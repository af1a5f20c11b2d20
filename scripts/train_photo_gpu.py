"""Train the photo model on a GPU that is available for minutes only, with photographs that arrive in parts.

    python scripts/train_photo_gpu.py pack --data SHARDS --packs FOLDER
    python scripts/train_photo_gpu.py train --packs FOLDER --run RUN
    python scripts/train_photo_gpu.py average --checkpoints FIRST SECOND --weight W --run RUN

``pack`` runs on the machine with the dataset. It writes the model before the first step, and the photographs as small
WebP images in files of at most 46 MiB. ``train`` runs on the machine with the GPU. It starts with the files that are in
the folder and also uses the files that arrive later. They are decoded into the memory of the GPU, where batches are
prepared. RUN/deadline contains the Unix time at which training ends. The file may be changed during training. The
learning rate depends on the fraction of the time that has passed. RUN/ema.safetensors contains the averaged model with
the lowest validation loss. ``average`` writes (1 - W) times the weights of the first checkpoint plus W times those of
the second one.
"""

import argparse
import io
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from math import inf
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from chromabox.colour.chroma.bins import ChromaBins
from chromabox.colour.chroma.lab import KNEE_CUBE, KNEE_SLOPE, WHITE_POINT, XYZ_FROM_RGB
from chromabox.colour.data.datasets import center_crop
from chromabox.colour.data.photos import PhotoBatch, Photos, StoredPhotos, load_photos, make_photo_batch
from chromabox.colour.models import build_model
from chromabox.colour.models.photonet import InvertedResidual, PhotoNet
from chromabox.colour.training.loss import photo_loss, soft_cross_entropy
from chromabox.colour.training.recipes import make_photo_recipe
from chromabox.colour.training.train_photo import InitialModel, PhotoConfig, build_optimizers, init_model
from chromabox.colour.weights.checkpoint import model_metadata
from chromabox.colour.weights.onnx_model import read_classes
from chromabox.engine.checkpoint import load_checkpoint, save_checkpoint
from chromabox.engine.options import lr_factor

PACKED_SIDE, PACKED_ASPECT, WEBP_QUALITY = 192, 1.5, 33
CANVAS_WIDTH = round(PACKED_ASPECT * PACKED_SIDE)
#: Maximum size of the files. The first one leaves space for the model.
MAX_PACK_BYTES, MAX_FIRST_PACK_BYTES = 46 << 20, 20 << 20
BATCH_SIZE = 256
#: Sides of the inputs, and sides to which they are reduced before, so that the model does not depend on fine details.
SIZES, SHARPNESS = (160, 192, 224), (96, 128, 160, 192)
DEGRADED_FRACTION, DROP_PATH = 0.1, 0.15
#: Fraction of the run over which the weights are averaged.
EMA_FRACTION = 0.04
SECONDS_PER_CHECKPOINT, STEPS_PER_LOG = 45, 50


def pack(data: Path, target: Path, init: str) -> None:
    """Write ``init.safetensors``, ``val.npz`` and ``p00.npz``, ``p01.npz``, … to the folder ``target``."""
    photos = load_photos(data)
    target.mkdir(parents=True, exist_ok=True)
    recipe = make_photo_recipe("default")
    config = PhotoConfig(data=str(data), recipe_name="default", recipe=recipe, init=init)
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


class Canvases(Dataset[tuple[Tensor, int, bool]]):
    """Decoded photographs: pixels uint8 [3, ``PACKED_SIDE``, ``CANVAS_WIDTH``], width of the image, is it transposed.

    The short side of an image fills the height. Portraits are transposed. The last column is repeated on the right.
    """

    def __init__(self, files: list[bytes]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int, bool]:
        """Return one photograph."""
        with Image.open(io.BytesIO(self.files[index])) as file:
            image = file.convert("RGB")
        is_portrait = image.height > image.width
        if is_portrait:
            image = image.transpose(Image.Transpose.TRANSPOSE)
        width = min(CANVAS_WIDTH, round(image.width * PACKED_SIDE / image.height))
        pixels = np.asarray(image.resize((width, PACKED_SIDE), Image.Resampling.BICUBIC))
        canvas = np.pad(pixels, ((0, 0), (0, CANVAS_WIDTH - width), (0, 0)), mode="edge")
        return torch.from_numpy(canvas).movedim(-1, 0).contiguous(), width, is_portrait


class PhotoStore:
    """Decoded photographs in the memory of the GPU (166 kB each)."""

    def __init__(self, capacity: int, device: str) -> None:
        self.pixels = torch.empty(capacity, 3, PACKED_SIDE, CANVAS_WIDTH, dtype=torch.uint8, device=device)
        self.widths = torch.empty(capacity, device=device)
        self.transposed = torch.empty(capacity, dtype=torch.bool, device=device)
        self.count = 0

    def add(self, files: list[bytes], workers: int) -> None:
        """Decode photographs and append them."""
        for parts in DataLoader(Canvases(files), batch_size=64, num_workers=workers):
            rows = slice(self.count, self.count + len(parts[0]))
            for stored, part in zip((self.pixels, self.widths, self.transposed), parts, strict=True):
                stored[rows] = part.to(stored.device)
            self.count = rows.stop

    def random_crops(self, indices: Tensor) -> Tensor:
        """Return random crops, flipped at random: sRGB in [0, 1], [batch, 3, ``PACKED_SIDE``, ``PACKED_SIDE``]."""
        widths, transposed = self.widths[indices], self.transposed[indices]

        def uniform(low: float, high: float) -> Tensor:
            return torch.empty_like(widths).uniform_(low, high)

        # Parts of the height and the width of the canvas, with a random aspect ratio.
        side = torch.where(uniform(0, 1) < 0.3, 1.0, uniform(0.45, 1)) * PACKED_SIDE
        stretch = uniform(-0.1, 0.1).exp()
        height, width = (side / stretch).clamp(max=PACKED_SIDE), torch.minimum(side * stretch, widths)
        top, left = uniform(0, 1) * (PACKED_SIDE - height), uniform(0, 1) * (widths - width)
        scale_x, shift_x = width / CANVAS_WIDTH, (2 * left + width) / CANVAS_WIDTH - 1
        scale_y, shift_y = height / PACKED_SIDE, (2 * top + height) / PACKED_SIDE - 1
        flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
        zero = torch.zeros_like(flip)
        upright = torch.stack([flip * scale_x, zero, shift_x, zero, scale_y, shift_y], 1)
        turned = torch.stack([zero, scale_x, shift_x, flip * scale_y, zero, shift_y], 1)
        theta = torch.where(transposed[:, None], turned, upright).reshape(-1, 2, 3)
        grid = F.affine_grid(theta, [len(indices), 3, PACKED_SIDE, PACKED_SIDE], align_corners=False)
        return F.grid_sample(self.pixels[indices] / 255, grid, padding_mode="border", align_corners=False)


def rgb_to_lab(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """Return L*/100 [batch, 1, …] and chroma (a*, b*) [batch, 2, …] of sRGB in [0, 1], as chroma/lab.py does."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    matrix = torch.from_numpy(XYZ_FROM_RGB / WHITE_POINT[:, None].astype(np.float32)).to(rgb)
    xyz = torch.einsum("dc,bchw->bdhw", matrix, linear)
    x, y, z = torch.where(
        xyz > float(KNEE_CUBE), xyz.clamp(min=1e-6) ** (1 / 3), xyz / float(KNEE_SLOPE) + 4 / 29
    ).unbind(1)
    return (1.16 * y - 0.16)[:, None], torch.stack([500 * (x - y), 200 * (y - z)], 1)


def degrade(lightness: Tensor) -> Tensor:
    """Return lightness, a part of which has a random gamma, range or grain, or a border, see data/degradation.py."""
    count, _, height, width = lightness.shape

    def uniform(low: float, high: float) -> Tensor:
        return lightness.new_empty(count, 1, 1, 1).uniform_(low, high)

    def chosen() -> Tensor:
        return (uniform(0, 1) < DEGRADED_FRACTION).float()

    lightness = lightness.clamp(1e-4, 1) ** (chosen() * uniform(-0.5, 0.5)).exp()
    black, white = chosen() * uniform(0, 0.3), 1 - chosen() * uniform(0, 0.3)
    lightness = black + (white - black) * lightness + chosen() * uniform(0.01, 0.06) * torch.randn_like(lightness)
    rows, columns = (torch.linspace(0, 1, length, device=lightness.device) for length in (height, width))
    (top, bottom), (left, right) = ((chosen() * uniform(0, 0.06), 1 - chosen() * uniform(0, 0.06)) for _ in range(2))
    rows, columns = rows[:, None], columns[None, :]
    is_inside = (rows >= top) & (rows <= bottom) & (columns >= left) & (columns <= right)
    return torch.where(is_inside, lightness, (uniform(0, 1) < 0.7) * uniform(0.85, 1)).clamp(0, 1)


def resize(images: Tensor, side: int) -> Tensor:
    """Return square images, resized with anti-aliasing."""
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)


def make_batch(store: PhotoStore, indices: Tensor) -> PhotoBatch:
    """Return inputs of a random size and the chroma at 1/4 of it. Each quarter of the inputs has its own sharpness."""
    lightness, chroma = rgb_to_lab(store.random_crops(indices))
    size, *sharpness = (random.choice(sides) for sides in (SIZES, *4 * [SHARPNESS]))
    quarters = zip(degrade(lightness).chunk(4), sharpness, strict=True)
    inputs = torch.cat([resize(resize(quarter, seen), size) for quarter, seen in quarters])
    return inputs, resize(chroma, size // PhotoNet.stride)


def add_drop_path(model: PhotoNet) -> None:
    """Omit residual blocks of the encoder at random during training (Huang et al. 2016, "Deep networks with
    stochastic depth"), with a probability that increases from 0 to ``DROP_PATH``.
    """
    blocks = [block for block in model.encoder.modules() if isinstance(block, InvertedResidual)]

    def hook_of(keep: float) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def drop(layers: nn.Module, inputs: object, output: Tensor) -> Tensor:
            if not layers.training:
                return output
            mask = torch.rand(len(output), 1, 1, 1, device=output.device) < keep
            return output * mask / keep

        return drop

    for index, block in enumerate(blocks):
        if block.is_residual:
            block.layers.register_forward_hook(hook_of(1 - DROP_PATH * index / len(blocks)))


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


def train(packs: Path, run: Path, *, capacity: int, peak: float, workers: int, device: str) -> None:
    """Train until the deadline."""
    state, metadata = load_checkpoint(packs / "init.safetensors")
    models = [build_model("photo", **metadata["settings"]).to(device, memory_format=torch.channels_last) for _ in "ab"]
    model, averaged = models[0].train(), models[1].eval()
    random.seed(metadata["seed"])
    torch.manual_seed(metadata["seed"])
    bins = read_classes(metadata)
    assert isinstance(bins, ChromaBins)
    assert isinstance(model, PhotoNet)
    model.load_state_dict({name: value.float() for name, value in state["net"].items()})
    add_drop_path(model)
    recipe = replace(make_photo_recipe("default"), backbone_lr=1e-3)
    optimizers = build_optimizers(recipe, InitialModel(model, metadata["settings"], bins, metadata["start"]))
    peak_lrs = [[peak * group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    val_batches = [
        (resize(resize(lightness, seen), size), chroma)
        for size, seen in ((192, 192), (160, 128))
        for lightness, chroma in _val_batches(_read_pack(packs / "val.npz"), size)
    ]
    deadline, ema, best_loss = Deadline(run / "deadline"), Ema(model), inf

    def save(step: int) -> None:
        nonlocal best_loss
        ema.copy_to(averaged)
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            losses = [soft_cross_entropy(averaged(x.to(device)), y.to(device), bins).item() for x, y in val_batches]
        half = len(losses) // 2
        log(f"step {step}: val_loss {sum(losses[:half]) / half:.4f}, of soft images {sum(losses[half:]) / half:.4f}")
        if sum(losses) < best_loss:
            best_loss = sum(losses)
            contents = {"net": averaged.state_dict()}
            save_checkpoint(run / "ema.safetensors", contents, {**metadata, "recipe": "gpu", "size": PACKED_SIDE})

    store = PhotoStore(capacity, device)
    step, saved, logged = 0, time.time(), time.time()
    losses: list[Tensor] = []
    names: set[Path] = set()
    while deadline.progress() < 1:
        new = sorted(set(packs.glob("p*.npz")) - names)
        for path in new:
            store.add(_read_pack(path), workers)
            names.add(path)
        log(f"{len(names)} packs, {store.count} images")
        order = torch.randperm(store.count, device=device)
        for indices in order[: len(order) // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE):
            factor = lr_factor(recipe, deadline.progress())
            for optimizer, lrs in zip(optimizers, peak_lrs, strict=True):
                for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                    group["lr"] = lr * factor
            lightness, chroma = make_batch(store, indices)
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
                mean_loss = torch.stack(losses).mean().item()
                rate = STEPS_PER_LOG * BATCH_SIZE / (time.time() - logged)
                log(f"step {step}, {deadline.progress():.1%}: loss {mean_loss:.4f}, {rate:.0f} images/s")
                losses, logged = [], time.time()
            if time.time() - saved > SECONDS_PER_CHECKPOINT:
                save(step)
                saved = time.time()
            if deadline.progress() >= 1 or set(packs.glob("p*.npz")) - names:
                break
    save(step)
    (run / "finished").touch()


def _val_batches(files: list[bytes], size: int) -> Iterator[PhotoBatch]:
    photos = StoredPhotos(files)
    for start in range(0, len(photos), 50):
        yield make_photo_batch([center_crop(photo) for photo in photos[start : start + 50]], size)


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
    parser.add_argument(
        "--init", default="efficientnet-lite0", help="initial weights: an encoder or a checkpoint (pack)"
    )
    parser.add_argument("--capacity", type=int, default=160_000, help="maximum number of photographs (train)")
    parser.add_argument("--peak", type=float, default=1.0, help="factor of the learning rates (train)")
    parser.add_argument("--workers", type=int, default=14, help="processes that decode photographs (train)")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (train)")
    args = parser.parse_args()
    if args.command == "pack":
        pack(args.data, args.packs, args.init)
    elif args.command == "average":
        average(args.checkpoints, args.weight, args.run)
    else:
        options = {name: getattr(args, name) for name in ("capacity", "peak", "workers", "device")}
        train(args.packs, args.run, **options)


if __name__ == "__main__":
    main()
