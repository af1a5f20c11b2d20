"""Read mutated files with the readers of Chromabox, and report every fault.

    python scripts/fuzz.py --inputs 100000 --seed 0 --kind image
    python scripts/fuzz.py --inputs 2000 --kind all --keep faults/

The script makes small valid files in all formats that a reader supports. An input is one of these files, changed at
random: bytes are overwritten, inserted, deleted, repeated or truncated, numbers in headers and in text are replaced by
extreme ones, and parts of other files are inserted. Changed PNG chunks get a correct checksum. In a zip archive (.pt),
one member is changed, usually the pickle, and instructions that would execute code are inserted. An input depends only
on the kind, the seed of the run and its number, so that a fault can be reproduced.

Each input must be read, or rejected with a ChromaboxError of one line that names the file, within 2 s of processor time
and 512 MB of additional memory. Python's audit events must show that reading it has started no process and written
no file. The files are read in a child process, whose address space is limited by ``setrlimit``
and which is restarted after a crash or after 60 s without a result. The script requires Linux.

Options:
    --inputs N      number of inputs of each kind (default 1000)
    --seed S        seed of the mutations (default 0)
    --kind KINDS    image, hints, palette, cfg, yaml, labels, run, manifest, checkpoint, onnx, detector, darknet, pickle
                    or all (default image)
    --first N       number of the first input (default 0)
    --keep FOLDER   folder in which the inputs with faults are saved

The last line of each kind counts the inputs that were read, rejected and faulty, and gives the maximum time and memory.
The exit code is 1 if there are faults. The kinds checkpoint, onnx, detector, darknet and pickle require the extra
``train``.
"""

import argparse
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import pickletools
import random
import re
import resource
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from chromabox.errors import ChromaboxError

MAX_SECONDS = 2.0
MAX_BYTES, MAX_ADDRESS_SPACE = 512 << 20, 2 << 30
#: Wall-clock time after which the child process is killed. It is long, because other processes may use the cores.
HANG_SECONDS = 60
Files = dict[str, bytes]


@dataclass(frozen=True)
class Kind:
    """Reader under test: a function that returns valid files by name, and the function that reads a file.

    ``prepare`` writes other files into the folder that the reader requires, such as the images of a dataset.
    """

    valid_files: Callable[[], Files]
    read: Callable[[Path], object]
    prepare: Callable[[Path], object] = lambda folder: None


def encode(pixels: np.ndarray | Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image = pixels.copy() if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def image_files() -> Files:
    """Return small images in all formats, modes and compressions that are read, with metadata."""
    import imagecodecs
    import tifffile

    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (20, 28, 3), np.uint8)
    rgb[5:15, 5:20] = (200, 40, 40)
    grey, alpha = rgb[..., 0].copy(), rgb[..., 1].copy()
    rgba, grey16, rgb16 = np.dstack([rgb, alpha]), grey.astype(np.uint16) * 257, rgb.astype(np.uint16) * 257
    bits, indexed = Image.fromarray(grey > 127), Image.fromarray(rgb).quantize(16)
    cmyk, frames = Image.fromarray(rgb).convert("CMYK"), [Image.fromarray(rgb), Image.fromarray(rgb[::-1].copy())]
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif.get_ifd(0x8769)[0x9003] = 6, "a house", "2001:02:03 04:05:06"
    metadata: dict[str, Any] = {"exif": exif, "dpi": (300, 300)}

    def encode_frames(image_format: str) -> bytes:  # Pillow stores options of the last format in the appended images.
        return encode(frames[0], image_format, save_all=True, append_images=[frames[1].copy()])

    files = {
        "rgb.jpg": encode(rgb, "JPEG", **metadata),
        "grey.jpg": encode(grey, "JPEG", comment="a house"),
        "cmyk.jpg": encode(cmyk, "JPEG"),
        "progressive.jpg": encode(rgb, "JPEG", progressive=True, subsampling=2),
        "pictures.jpg": encode_frames("MPO"),
        "rgb.png": encode(rgb, "PNG", **metadata),
        "rgba.png": encode(rgba, "PNG"),
        "grey.png": encode(grey, "PNG", icc_profile=b"\0" * 128),
        "grey-alpha.png": encode(np.dstack([grey, alpha]), "PNG"),
        "bits.png": encode(bits, "PNG"),
        "palette.png": encode(indexed, "PNG", transparency=3),
        "grey16.png": imagecodecs.png_encode(grey16),
        "rgb16.png": imagecodecs.png_encode(rgb16),
        "animated.png": encode_frames("PNG"),
        "bits.tif": encode(bits, "TIFF", compression="group4"),
        "palette.tif": encode(indexed, "TIFF", compression="packbits"),
        "cmyk.tif": encode(cmyk, "TIFF"),
        "rgba.tif": encode(rgba, "TIFF", compression="tiff_deflate"),
        "jpeg.tif": encode(rgb, "TIFF", compression="jpeg"),
        "rotated.tif": encode(rgb, "TIFF", exif=exif),
        "pages.tif": encode_frames("TIFF"),
        "rgb.webp": encode(rgb, "WEBP", **metadata),
        "lossless.webp": encode(rgba, "WEBP", lossless=True),
        "animated.webp": encode_frames("WEBP"),
        "rgb.bmp": encode(rgb, "BMP"),
        "palette.bmp": encode(indexed, "BMP"),
        "bits.bmp": encode(bits, "BMP"),
        "palette.gif": encode(indexed, "GIF", transparency=3),
        "animated.gif": encode_frames("GIF"),
        "bits.pbm": encode(bits, "PPM"),
        "grey.pgm": encode(grey, "PPM"),
        "grey16.pgm": encode(grey16, "PPM"),
        "rgb.ppm": encode(rgb, "PPM"),
        "text.ppm": b"P3\n# a house\n2 2 255\n" + b"1 2 3  40 50 60\n" * 2,
    }
    if features.check("avif"):
        files["rgb.avif"] = encode(rgb, "AVIF", **metadata)
    for name, values, options in (
        ("lzw.tif", rgb, {"compression": "lzw", "predictor": True}),
        ("zstd.tif", rgb, {"compression": "zstd"}),
        ("grey16.tif", grey16, {"byteorder": ">"}),
        ("rgb16.tif", rgb16, {"compression": "deflate", "bigtiff": True}),
        ("tiles16.tif", np.tile(rgb16, (2, 2, 1)), {"tile": (16, 16)}),
        ("planes16.tif", np.moveaxis(rgb16, 2, 0), {"planarconfig": "separate", "photometric": "rgb"}),
        ("float.tif", (grey / 255).astype(np.float32), {}),
        ("float-rgb.tif", (rgb / 255).astype(np.float32), {"photometric": "rgb"}),
        ("float16.tif", (grey / 255).astype(np.float16), {"compression": "deflate"}),
    ):
        buffer = BytesIO()
        tifffile.imwrite(buffer, values, **options)
        files[name] = buffer.getvalue()
    return files


def hint_files() -> Files:
    import imagecodecs

    layer = np.zeros((20, 30, 4), np.uint8)
    layer[3:6, 4:9], layer[12:14, 20:22] = (40, 90, 200, 255), (200, 90, 40, 255)
    palette = Image.fromarray(layer).quantize(4)
    formats = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}
    files = {f"hints.{name.lower()}": encode(layer, name, **options) for name, options in formats.items()}
    files["hints16.png"] = imagecodecs.png_encode(layer.astype(np.uint16) * 257)
    return {**files, "hints.gif": encode(palette, "GIF", transparency=0)}


def palette_files() -> Files:
    from chromabox.colour.palette.io import load_palette, save_palette

    palette, files = load_palette("horse24"), {}
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".npy", ".json", ".gpl"):
            save_palette(Path(folder, f"a{suffix}"), palette)
            files[f"a{suffix}"] = Path(folder, f"a{suffix}").read_bytes()
    for name, array in {"bytes": palette.rgb, "double": palette.colours.astype(np.float64)}.items():
        buffer = BytesIO()
        np.save(buffer, array)
        files[f"{name}.npy"] = buffer.getvalue()
    return files | {"hex.json": b'["#0000ff", "#102030"]', "integers.json": b"[[1, 2, 3], [4, 5, 255]]"}


def cfg_files() -> Files:
    from chromabox.detect.models.architecture import yolov3, yolov3_tiny
    from chromabox.detect.weights.darknet_cfg import write_cfg

    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for architecture in (yolov3_tiny(), yolov3()):
            write_cfg(architecture, path := Path(folder, f"{architecture.name}.cfg"))
            files[path.name] = path.read_bytes()
    files["groups.cfg"] = (
        b"[net]\nwidth=64\nheight=64\nchannels=3\n[convolutional]\nfilters=8\nsize=3\nstride=2\npad=1\n"
        b"activation=mish\ngroups=1\n[route]\nlayers=-1\ngroups=2\ngroup_id=1\n[upsample]\nstride=2\n[convolutional]\n"
        b"filters=21\nsize=1\n[yolo]\nmask=0,1,2\nanchors=1,2, 3,4, 5,6\nclasses=2\n"
    )
    return files


def read_cfg_and_count(path: Path) -> object:
    from chromabox.detect.weights.darknet_cfg import read_cfg

    architecture = read_cfg(path)
    return architecture.num_weights, architecture.max_stride, architecture.strides


YAML = b"""# a dataset
path: .
train: images/train
val: [images/val, list.txt]
names:
  0: cat
  1: &name "dog"
nc: 2
kpt_shape: [4, 2]
"""
COCO = {
    "images": [{"id": 1, "file_name": "images/train/a.png", "width": 30, "height": 20}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 2, 10, 10.5], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 1, "segmentation": [[1, 2, 9.5, 3, 8, 11]]},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
}
VOC = b"""<annotation><filename>a.png</filename><size><width>30</width><height>20</height></size>
<object><name>cat</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>12</xmax><ymax>13</ymax></bndbox></object>
<object><name>cat</name><polygon><x1>1</x1><y1>2</y1><x2>9</x2><y2>13</y2></polygon></object></annotation>
"""


def write_dataset(folder: Path) -> None:
    for split in ("train", "val"):
        for name in ("images", "labels"):
            (folder / name / split).mkdir(parents=True)
        (folder / "images" / split / "a.png").write_bytes(encode(np.zeros((20, 30, 3), np.uint8), "PNG"))
        (folder / "labels" / split / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (folder / "list.txt").write_text("images/val/a.png\n")


def read_dataset(path: Path) -> object:
    """Load the dataset in the folder of a file, or the file if it describes a dataset."""
    from chromabox.detect.data.load import load_detection_dataset

    is_description = path.suffix in (".yaml", ".json")
    root = path if is_description else next(folder for folder in path.parents if (folder / "list.txt").exists())
    return load_detection_dataset(root)


def label_files() -> Files:
    return {
        "labels/train/a.txt": b"0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.2 0.1 0.3 0.4\n",
        "classes.txt": "cat\ndog\ntraffic light\nété\n".encode(),
        "obj.names": b"cat\ndog\n",
        "instances_train.json": json.dumps(COCO).encode(),
        "annotations/a.xml": VOC,
    }


def run_files() -> Files:
    from chromabox.colour.training.recipes import default_recipe
    from chromabox.colour.training.train import TrainConfig

    recipe = default_recipe("unet")
    config = TrainConfig(model="unet", recipe_name="default", recipe=recipe, palette="horse24", data="cifar10")
    values = {"format": 2, **asdict(config), "versions": {"python": "3.11"}}
    return {
        "config.json": json.dumps(values, indent=1).encode(),
        "summary.json": json.dumps({"epochs": 3, "seconds": 1.5, "metrics": {"loss": 0.5}}).encode(),
        "metrics.jsonl": b'{"epoch": 1, "loss": 0.5}\n{"epoch": 2, "loss": 0.25, "seconds": 1e-3}\n',
    }


def read_run(path: Path) -> object:
    from chromabox.colour.training.train import TrainConfig
    from chromabox.engine.logger import read_metrics
    from chromabox.engine.runs import RunDir

    run = RunDir(path.parent)
    readers = {"summary.json": run.summary, "metrics.jsonl": lambda: read_metrics(path.parent)}
    return readers.get(path.name, lambda: run.load_config(TrainConfig))()


def manifest_files() -> Files:
    entry = {"target": "a.png", "source": "0" * 64, "settings": "1" * 64, "written": "2" * 64, "facts": {"notes": []}}
    return {"a.jsonl": (json.dumps(entry) + "\n").encode() * 3}


def read_manifest(path: Path) -> object:
    from chromabox.io.manifest import Manifest

    return Manifest(path, {}).lookup(path.parent / "a.png", "0" * 64)


def small_models() -> list[Any]:
    from chromabox.colour.chroma.bins import ChromaBins
    from chromabox.colour.models.baselines import UNet
    from chromabox.colour.models.photonet import PhotoNet
    from chromabox.colour.palette.io import load_palette
    from chromabox.colour.weights.checkpoint import PaletteModel, PhotoModel, model_metadata

    cells = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 2, indexing="ij"), -1).reshape(-1, 2)
    bins = ChromaBins((10 * cells).astype(np.float32), np.full(9, 1 / 9, np.float32), 10.0)
    photo_args = {"num_colours": 9, "widths": (4, 4, 4, 4), "blocks": (1, 1, 1, 1)}
    palette, unet_args = load_palette("horse24"), {"kernel": 3, "num_filters": 2, "num_colours": 24}
    return [
        PhotoModel(PhotoNet(**photo_args), bins, model_metadata("photo", photo_args, bins)),
        PaletteModel(UNet(**unet_args), palette, model_metadata("unet", unet_args, palette)),
    ]


def checkpoint_files() -> Files:
    from chromabox.engine.checkpoint import save_checkpoint

    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for model in small_models():
            path = Path(folder, f"{model.metadata['net']}.safetensors")
            save_checkpoint(path, {"net": model.network.state_dict()}, model.metadata)
            files[path.name] = path.read_bytes()
    return files


def read_checkpoint(path: Path) -> object:
    from chromabox.colour.weights.checkpoint import load_model

    return load_model(path)


def onnx_files() -> Files:
    from chromabox.colour.weights.export import export_onnx

    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for model in small_models():
            model.network.eval()
            export_onnx(model, path := Path(folder, f"{model.metadata['net']}.onnx"))
            files[path.name] = path.read_bytes()
    return files


def read_onnx(path: Path) -> object:
    from chromabox.colour.inference.load import open_model

    return open_model(path, threads=1)


def small_architecture() -> Any:
    from chromabox.detect.models.architecture import Architecture, Convolution, MaxPool, Yolo

    head = Convolution(21, 1, batch_normalise=False, activation="linear")
    anchors = ((10.0, 14.0), (23.0, 27.0), (37.0, 58.0))
    layers = (Convolution(4, 3, 2), MaxPool(2, 2), Convolution(8, 3), MaxPool(2, 2), head, Yolo((0, 1, 2), anchors, 2))
    return Architecture("small", layers, size=64)


def small_detector() -> Any:
    import torch

    from chromabox.detect.models.architecture import DARKNET
    from chromabox.detect.models.darknet import DarknetModel
    from chromabox.detect.weights.load import Detector

    torch.manual_seed(0)
    return Detector(DarknetModel(small_architecture(), DARKNET).eval(), ("cat", "dog"), 64, {"name": "small"})


def detector_files() -> Files:
    from chromabox.detect.weights.convert import export_detector
    from chromabox.detect.weights.load import save_detector

    with tempfile.TemporaryDirectory() as folder:
        save_detector(Path(folder, "a.safetensors"), small_detector())
        export_detector(small_detector(), Path(folder, "a.onnx"))
        return {name: Path(folder, name).read_bytes() for name in ("a.safetensors", "a.onnx")}


def read_detector(path: Path) -> object:
    from chromabox.detect.weights.load import load_detector
    from chromabox.detect.weights.onnx_model import load_onnx_detector

    if path.suffix == ".onnx":
        load_onnx_detector(path, threads=1)
    return load_detector(path.with_suffix(".weights") if path.suffix == ".cfg" else path)


def write_darknet_files(folder: Path) -> None:
    """Write a weight file and its configuration. One of them is replaced by each input."""
    from chromabox.detect.weights.darknet_cfg import write_cfg
    from chromabox.detect.weights.load import write_darknet

    write_darknet(folder / "a.weights", small_detector().model)
    write_cfg(small_architecture(), folder / "a.cfg")


def darknet_files() -> Files:
    with tempfile.TemporaryDirectory() as name:
        write_darknet_files(Path(name))
        return {path.name: path.read_bytes() for path in Path(name).iterdir()}


def pickle_files() -> Files:
    """Return files of PyTorch with the tensors of YOLOv3-tiny, in modules and as a dictionary."""
    import torch

    names = [f"model.{layer}.{key}" for layer in range(11) for key in ("conv.weight", "bn.weight", "bn.bias")]
    names += [f"model.{layer}.bn.running_{key}" for layer in range(11) for key in ("mean", "var")]
    names += [f"model.11.m.{head}.{key}" for head in range(2) for key in ("weight", "bias")]
    state: dict[str, Any] = {name: torch.ones(21 if ".m." in name else 2) for name in sorted(names)}
    state["model.11.anchors"] = torch.ones(2, 3, 2).half()
    modules = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1), torch.nn.SiLU())
    modules.names = {0: "cat", 1: "dog"}  # type: ignore[assignment]
    contents = {"state.pt": state, "modules.pt": {"model": modules, "date": "2024-01-02", "array": np.arange(3)}}
    files = {}
    for name, content in contents.items():
        torch.save(content, buffer := BytesIO())
        files[name] = buffer.getvalue()
    return files


def read_pickle(path: Path) -> object:
    from chromabox.detect.models.architecture import ULTRALYTICS_9_6
    from chromabox.detect.weights.ultralytics import read_ultralytics

    return read_ultralytics(path, ULTRALYTICS_9_6)


def read_image(path: Path) -> object:
    from chromabox.io.images import read_image

    return read_image(path)


def read_hints(path: Path) -> object:
    from chromabox.colour.constraints.hints import read_hints

    return read_hints(path, (40, 60))


def read_palette(path: Path) -> object:
    from chromabox.colour.palette.io import load_palette

    return load_palette(path)


KINDS = {
    "image": Kind(image_files, read_image),
    "hints": Kind(hint_files, read_hints),
    "palette": Kind(palette_files, read_palette),
    "cfg": Kind(cfg_files, read_cfg_and_count),
    "yaml": Kind(lambda: {"data.yaml": YAML}, read_dataset, write_dataset),
    "labels": Kind(label_files, read_dataset, write_dataset),
    "run": Kind(run_files, read_run),
    "manifest": Kind(manifest_files, read_manifest),
    "checkpoint": Kind(checkpoint_files, read_checkpoint),
    "onnx": Kind(onnx_files, read_onnx),
    "detector": Kind(detector_files, read_detector),
    "darknet": Kind(darknet_files, read_detector, write_darknet_files),
    "pickle": Kind(pickle_files, read_pickle),
}

EXTREME_INTEGERS = (0, 1, 2, 3, 5, 9, 16, 17, 127, 128, 255, 256, 4096, 32767, 32768, 65535, 2**24, 2**31 - 1, 2**31)
#: Replacements of numbers and words in text.
EXTREME_WORDS = (
    *b"0 1 -1 7 256 65536 4294967296 99999999999999999999999999 1e999 -1e-5 nan inf NaN Infinity 0.5 true null None [] "
    b'{} "" "x" [[]] () (3,3) <f8 |O >u2 .. / /dev/zero ~ * & ! # : = , \xff \xc3\xa9 \x00'.split(b" "),
    *(b"[" * 3000, b"(" * 300, b"{" * 100, b"9" * 5000, b"\n\n", b" " * 20, b"\xff\xfe", "\u0660\u0661".encode()),
)
#: Instructions of pickles: calls that would execute code, large allocations, nested tuples, and references.
PICKLE_PARTS = [
    *(
        b"cposix\nsystem\n(S'touch executed'\ntR",
        b'cbuiltins\neval\n(S\'open("executed", "w")\'\ntR',
        b"i__main__\nf\n",
    ),
    *(
        b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R",
        b"cos\nsystem\n",
        b"csubprocess\nPopen\n((lK\x01tR",
        b"R",
        b"b",
        b"\x81",
    ),
    *(
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"cnumpy\ndtype\n",
        b"\x82\x01",
        b"\x93",
        b"\x95" + b"\xff" * 8,
        b"Q",
        b"u",
        b"s",
    ),
    *(
        b"q\x01h\x01\x86" * 40,
        b"\x85" * 100_000,
        b"}q\x00h\x00",
        b"r\xff\xff\xff\x7f",
        b"\x8b\xff\xff\xff\x7f",
        b"(",
        b"t",
        b"0",
    ),
]


def mutate(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Return the content with one to six random changes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        # Half of the changes are in the first bytes, where most formats have their headers.
        limit = max(1, len(data)) if rng.random() < 0.5 else max(1, min(len(data), 128))
        position = rng.randrange(limit)
        match rng.randrange(9):
            case 0 if data:
                data[position % len(data)] ^= 1 << rng.randrange(8)
            case 1:
                length = rng.choice((1, 1, 2, 4, 16))
                data[position : position + length] = rng.randbytes(length)
            case 2 | 3:
                length, order = rng.choice((1, 2, 4)), rng.choice(("little", "big"))
                value = rng.choice(EXTREME_INTEGERS) % 256**length
                data[position : position + length] = value.to_bytes(length, order)  # type: ignore[arg-type]
            case 4:
                del data[position : len(data) if rng.random() < 0.5 else position + rng.randrange(1, 64)]
            case 5:
                data[position:position] = data[position : position + rng.randrange(1, 256)] * rng.choice((1, 2, 40))
            case 6:
                other = rng.choice(others)
                start = rng.randrange(len(other))
                part = other[start : start + rng.choice((4, 32, 512, 1 << 20))]
                end = position if rng.random() < 0.5 else position + len(part)
                data[position:end] = part
            case _:
                words = list(re.finditer(rb"-?[0-9.]+|[A-Za-z_]+|[^\sA-Za-z0-9]", bytes(data[:20_000])))
                if words:
                    word = rng.choice(words)
                    data[word.start() : word.end()] = rng.choice(EXTREME_WORDS)
    return correct_checksums(bytes(data)) if data[:4] == b"\x89PNG" and rng.random() < 0.8 else bytes(data)


def correct_checksums(content: bytes) -> bytes:
    """Return a PNG file whose chunks have correct checksums, so that the decoder does not reject changes at once."""
    data, position = bytearray(content), 8
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            break
        struct.pack_into(">I", data, end, zlib.crc32(data[position + 4 : end]))
        position = end + 4
    return bytes(data)


def make_input(kind: str, seed: int, number: int, files: Files) -> tuple[str, bytes]:
    """Return the name and the content of an input."""
    rng = random.Random(f"{kind} {seed} {number}")
    names = sorted(files)
    name = names[number % len(names)]
    if files[name].startswith(b"PK") and rng.random() < 0.9:
        return name, mutate_archive(files[name], rng)
    return name, mutate(files[name], [files[other] for other in names], rng)


def mutate_archive(content: bytes, rng: random.Random) -> bytes:
    """Return a zip archive in which one member is changed, usually the pickle of a PyTorch file."""
    with zipfile.ZipFile(BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(iter(members)) if rng.random() < 0.9 else rng.choice(list(members))
    if name.endswith(".pkl") and rng.random() < 0.5:
        # Insert complete instructions between others, so that the unpickler executes what precedes and follows them.
        positions = [position or 0 for _, _, position in pickletools.genops(members[name])]
        changed = bytearray(members[name])
        for position in sorted(rng.choices(positions[1:], k=rng.choice((1, 2, 5))), reverse=True):
            changed[position:position] = rng.choice(PICKLE_PARTS)
    else:
        changed = bytearray(mutate(members[name], list(members.values()), rng))
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for member, data in {**members, name: bytes(changed)}.items():
            archive.writestr(zipfile.ZipInfo(member), data, archive.compression)
    return buffer.getvalue()


#: Audit events (https://docs.python.org/3/library/audit_events.html) during the reading of an input.
EVENTS: list[str] | None = None
ACTIONS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "os.remove",
    "os.rename",
    "os.mkdir",
)


def record_action(event: str, arguments: tuple[Any, ...]) -> None:
    """Record that code has started a process or opened a file for writing."""
    if EVENTS is None:
        return
    if event in ACTIONS or (event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")):
        EVENTS.append(f"{event} {arguments[0]!r}")


def check(read: Callable[[Path], object], path: Path) -> tuple[str, str, float, int]:
    """Read a file. Return ``read``, ``rejected`` or ``fault``, the fault, the time in seconds and the memory in bytes.

    The memory is the increase of the resident memory. The address space, which includes memory that is reserved but not
    used, is limited to a larger size, because many libraries reserve what a damaged header states.
    """
    Path("/proc/self/clear_refs").write_text("5")  # Reset VmHWM.
    resident, size = memory_bytes("VmHWM"), memory_bytes("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (size + MAX_ADDRESS_SPACE, resource.RLIM_INFINITY))
    global EVENTS
    EVENTS = []
    start = time.process_time()
    try:
        outcome, problem = "read", ""
        read(path)
    except ChromaboxError as error:
        message, outcome = str(error), "rejected"
        if len(message.splitlines()) != 1:
            problem = f"the message is not one line: {message[:300]!r}"
        elif path.name not in message and path.parent.name not in message:
            problem = f"the message does not name the file: {message[:300]}"
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        frame = next((frame for frame in reversed(frames) if "chromabox" in frame.filename), frames[-1])
        problem = f"{type(error).__name__}: {str(error)[:200]} ({Path(frame.filename).name}:{frame.lineno})"
    seconds, num_bytes = time.process_time() - start, memory_bytes("VmHWM") - resident
    if EVENTS:
        problem = f"reading it caused {', '.join(EVENTS)[:200]} ({problem or outcome})"
    EVENTS = None
    if seconds > MAX_SECONDS:
        problem = f"{seconds:.1f} s of processor time ({problem or outcome})"
    if num_bytes > MAX_BYTES:
        problem = f"{num_bytes >> 20} MB of memory ({problem or outcome})"
    return ("fault" if problem else outcome), problem, seconds, num_bytes


def memory_bytes(name: str) -> int:
    """Return a value of /proc/self/status, such as VmSize or VmHWM (the maximum of the resident memory)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def read_inputs(
    connection: multiprocessing.connection.Connection, kind: str, seed: int, numbers: range, files: Files
) -> None:
    """Read inputs in the child process and send the outcome, problem, time and memory of each."""
    warnings.simplefilter("ignore")
    logging.disable()
    sys.addaudithook(record_action)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff prints warnings.
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        KINDS[kind].prepare(folder)
        first, content = next(iter(files.items()))
        for number in (None, *numbers):  # Before the first input, a valid file is read, which imports the modules.
            file, content = (first, content) if number is None else make_input(kind, seed, number, files)
            path = folder / file
            path.parent.mkdir(exist_ok=True)
            before = path.read_bytes() if path.exists() else None
            path.write_bytes(content)
            result = check(KINDS[kind].read, path)
            if number is not None:
                connection.send(result)
            if before is None:
                path.unlink()
            else:
                path.write_bytes(before)


def run_kind(kind: str, inputs: range, seed: int, keep: Path | None) -> int:
    """Read the inputs of a kind, print the faults and a summary, and return the number of faults."""
    files = KINDS[kind].valid_files()
    counts: Counter[str] = Counter()
    slowest, largest, start, number = (0.0, 0), (0, 0), time.time(), inputs.start
    while number < inputs.stop:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        numbers = range(number, inputs.stop)
        process = multiprocessing.get_context("fork").Process(
            target=read_inputs, args=(sender, kind, seed, numbers, files)
        )
        process.start()
        sender.close()
        for number in numbers:
            try:
                is_hanging = not receiver.poll(HANG_SECONDS)
                outcome, problem, seconds, num_bytes = ("fault", "no result", 0, 0) if is_hanging else receiver.recv()
            except EOFError:
                process.join()
                is_hanging, outcome, problem = True, "fault", f"the process ended with exit code {process.exitcode}"
                seconds = num_bytes = 0
            slowest, largest = max(slowest, (seconds, number)), max(largest, (num_bytes, number))
            counts[outcome] += 1
            if outcome == "fault":
                name, content = make_input(kind, seed, number, files)
                print(f"{kind} {number} ({name}): {problem}", flush=True)
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{kind}-{number}-{Path(name).name}").write_bytes(content)
            if is_hanging:
                break
        number += 1
        process.kill()
        process.join()
        receiver.close()
    outcomes = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("read", "rejected", "fault"))
    print(
        f"{kind}: {len(inputs)} inputs, {outcomes}; "
        f"maximum {slowest[0]:.2f} s (input {slowest[1]}), {largest[0] / 2**20:.0f} MB (input {largest[1]}); "
        f"{time.time() - start:.0f} s in total",
        flush=True,
    )
    return counts["fault"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Read mutated files and report every fault.")
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=[*KINDS, "all"], nargs="+", default=["image"])
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    numbers = range(arguments.first, arguments.first + arguments.inputs)
    kinds = list(KINDS) if "all" in arguments.kind else arguments.kind
    faults = [run_kind(kind, numbers, arguments.seed, arguments.keep) for kind in kinds]
    sys.exit(1 if any(faults) else 0)


if __name__ == "__main__":
    main()
