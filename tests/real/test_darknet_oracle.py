"""The nets against darknet itself, the program of the authors, as Debian packages it (apt-get install darknet).

Heads are compared before any decoding: darknet is given a configuration that ends at a head's linear convolution, so
that what it puts out are the raw numbers.
"""

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch

from chromabox.detect.detections import Detections
from chromabox.detect.inference.predict import detect_image
from chromabox.detect.models.architecture import Architecture, yolov3, yolov3_tiny
from chromabox.detect.models.darknet import DARKNET, ConvolutionLayer, DarknetModel
from chromabox.detect.weights.darknet_cfg import read_cfg, write_cfg
from chromabox.detect.weights.load import load_detector, write_darknet
from chromabox.errors import ChromaboxError
from chromabox.io.darknet_weights import download_yolov3_tiny
from chromabox.io.images import read_image

PICTURES = Path("/usr/share/darknet/data")
LIBRARIES = (Path("/usr/lib/darknet/libdarknet.so"), Path("/usr/lib/libdarknet.so"))


@pytest.fixture(scope="module")
def darknet() -> ctypes.CDLL:
    path = next((path for path in LIBRARIES if path.is_file()), None)
    if path is None:
        pytest.skip("DARKNET IS NOT INSTALLED (apt-get install darknet), SO NO NET IS COMPARED WITH THE AUTHORS' OWN")
    library = ctypes.CDLL(str(path))
    library.load_network.restype = ctypes.c_void_p
    library.load_network.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int]
    library.network_predict.restype = ctypes.POINTER(ctypes.c_float)
    library.network_predict.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_float)]
    library.free_network.argtypes = [ctypes.c_void_p]
    return library


@pytest.fixture(scope="module")
def weights() -> Path:
    try:
        return download_yolov3_tiny()
    except ChromaboxError as error:
        pytest.skip(f"THE REAL YOLOV3-TINY WEIGHTS CANNOT BE REACHED, SO THEY ARE NOT COMPARED WITH DARKNET: {error}")


def heads_of_darknet(
    library: ctypes.CDLL, architecture: Architecture, size: int, weights: Path, image: np.ndarray, folder: Path
) -> list[np.ndarray]:
    """The raw numbers of every head for one picture, float32 [3, size, size] in [0, 1]."""
    write_cfg(architecture, folder / "whole.cfg")
    sections = (folder / "whole.cfg").read_text().replace("width=416", f"width={size}").split("\n[")
    sections[0] = sections[0].replace("height=416", f"height={size}")
    given = np.ascontiguousarray(image, np.float32)
    heads = []
    for head, yolo, stride in zip(
        architecture.head_indices, architecture.yolo_layers, architecture.strides, strict=True
    ):
        # Section 0 is [net], so layer i is section i + 1: all before the head's own [yolo].
        (folder / "head.cfg").write_text("\n[".join(sections[: head + 1]) + "\n")
        net = library.load_network(str(folder / "head.cfg").encode(), str(weights).encode(), 0)
        out = library.network_predict(net, given.ctypes.data_as(ctypes.POINTER(ctypes.c_float)))
        shape = (len(yolo.mask), 5 + yolo.classes, size // stride, size // stride)
        heads.append(np.ctypeslib.as_array(out, (int(np.prod(shape)),)).reshape(shape).copy())
        library.free_network(net)
    return heads


def compare(ours: list[torch.Tensor], theirs: list[np.ndarray]) -> None:
    for mine, expected in zip(ours, theirs, strict=True):
        scale = np.abs(expected).max()
        assert scale > 0.1
        # Neither all alike nor a picture's worth of zeros: a head that says something.
        assert expected.std() > 0.01 * scale
        np.testing.assert_allclose(mine[0].numpy(), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).mean())


def picture(size: int) -> np.ndarray:
    """Smooth blobs and noise, in [0, 1]."""
    random = np.random.default_rng(3)
    rows, columns = np.mgrid[:size, :size] / size
    waves = [np.sin(9 * rows + phase) * np.cos(7 * columns - phase) for phase in (0, 1, 2)]
    return np.clip(0.5 + 0.4 * np.stack(waves) + 0.05 * random.standard_normal((3, size, size)), 0, 1)


@torch.no_grad()
def randomise(net: DarknetModel) -> DarknetModel:
    """Weights with which activations neither vanish nor explode; no number of the format keeps its default."""
    generator = torch.Generator().manual_seed(0)
    for layer in net.layers:
        if isinstance(layer, ConvolutionLayer):
            fan_in = layer.convolution.weight[0].numel()
            layer.convolution.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            if layer.norm is None:
                layer.convolution.bias.normal_(0, 0.5, generator=generator)
                continue
            layer.norm.bias.normal_(0, 0.2, generator=generator)
            layer.norm.weight.uniform_(0.4, 0.9, generator=generator)
            layer.norm.running_mean.normal_(0, 0.2, generator=generator)
            layer.norm.running_var.uniform_(0.5, 1.5, generator=generator)
    return net.eval()


@torch.no_grad()
@pytest.mark.parametrize("size", [160, 224])
def test_yolov3_tiny_with_the_published_weights(darknet: ctypes.CDLL, weights: Path, size: int, tmp_path: Path) -> None:
    trained = load_detector(weights)
    image = picture(size)
    expected = heads_of_darknet(darknet, trained.architecture, size, weights, image, tmp_path)
    compare(trained.model(torch.tensor(image[None], dtype=torch.float32)), expected)


@torch.no_grad()
def test_the_folded_net_too(darknet: ctypes.CDLL, weights: Path, tmp_path: Path) -> None:
    trained = load_detector(weights)
    image = picture(96)
    expected = heads_of_darknet(darknet, trained.architecture, 96, weights, image, tmp_path)
    compare(trained.model.fuse()(torch.tensor(image[None], dtype=torch.float32)), expected)


@torch.no_grad()
def test_yolov3_with_random_weights(darknet: ctypes.CDLL, tmp_path: Path) -> None:
    net = randomise(DarknetModel(yolov3(), DARKNET))
    write_darknet(tmp_path / "random.weights", net, seen=12)
    image = picture(96)
    expected = heads_of_darknet(darknet, net.architecture, 96, tmp_path / "random.weights", image, tmp_path)
    compare(net(torch.tensor(image[None], dtype=torch.float32)), expected)


@torch.no_grad()
def test_layers_that_the_named_nets_do_not_have(darknet: ctypes.CDLL, tmp_path: Path) -> None:
    """Groups, poolings of three sizes, a stride without padding, ReLU, several heads' worth of routes."""
    (tmp_path / "odd.cfg").write_text(ODD)
    net = randomise(DarknetModel(read_cfg(tmp_path / "odd.cfg"), DARKNET))
    write_darknet(tmp_path / "odd.weights", net)
    image = picture(96)
    expected = heads_of_darknet(darknet, net.architecture, 96, tmp_path / "odd.weights", image, tmp_path)
    compare(net(torch.tensor(image[None], dtype=torch.float32)), expected)


def test_the_difference_would_be_seen(darknet: ctypes.CDLL, weights: Path, tmp_path: Path) -> None:
    """What the comparison is worth: an epsilon of 1e-3 in place of darknet's does not pass it."""
    trained = load_detector(weights)
    image = picture(96)
    expected = heads_of_darknet(darknet, trained.architecture, 96, weights, image, tmp_path)
    for layer in trained.model.layers:
        if isinstance(layer, ConvolutionLayer) and layer.norm is not None:
            layer.norm.eps = 1e-3
    with torch.no_grad(), pytest.raises(AssertionError):
        compare(trained.model(torch.tensor(image[None], dtype=torch.float32)), expected)


def test_the_second_mask_is_not_that_of_later_configurations() -> None:
    assert [yolo.mask for yolo in yolov3_tiny().yolo_layers] == [(3, 4, 5), (1, 2, 3)]


class Image(ctypes.Structure):
    """Darknet's ``image``: planes of float32 in [0, 1]."""

    _fields_ = (
        ("w", ctypes.c_int),
        ("h", ctypes.c_int),
        ("c", ctypes.c_int),
        ("data", ctypes.POINTER(ctypes.c_float)),
    )


class Box(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_float) for name in "xywh")


class Detection(ctypes.Structure):
    """Darknet's ``detection``: centre and size in pixels of the picture, and a score for every class."""

    _fields_ = (
        ("bbox", Box),
        ("classes", ctypes.c_int),
        ("prob", ctypes.POINTER(ctypes.c_float)),
        ("mask", ctypes.POINTER(ctypes.c_float)),
        ("objectness", ctypes.c_float),
        ("sort_class", ctypes.c_int),
    )


def boxes_of_darknet(
    library: ctypes.CDLL, cfg: Path, weights: Path, picture: Path, confidence: float
) -> list[tuple[int, float, list[float]]]:
    """What darknet finds in a picture: class, score, box (left, top, right, bottom in pixels, cut off at the edges)."""
    library.load_image_color.restype = Image
    library.load_image_color.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
    library.network_predict_image.argtypes = [ctypes.c_void_p, Image]
    library.get_network_boxes.restype = ctypes.POINTER(Detection)
    library.get_network_boxes.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_float, ctypes.c_float]
    library.get_network_boxes.argtypes += [ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_int)]
    library.do_nms_sort.argtypes = [ctypes.POINTER(Detection), ctypes.c_int, ctypes.c_int, ctypes.c_float]
    net = library.load_network(str(cfg).encode(), str(weights).encode(), 0)
    image = library.load_image_color(str(picture).encode(), 0, 0)
    library.network_predict_image(net, image)
    count = ctypes.c_int()
    found = library.get_network_boxes(net, image.w, image.h, confidence, 0.5, None, 0, ctypes.byref(count))
    library.do_nms_sort(found, count.value, 80, 0.45)
    kept = []
    for one in (found[index] for index in range(count.value)):
        x, y, w, h = (getattr(one.bbox, name) for name in "xywh")
        corners = np.clip([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 0, [image.w, image.h, image.w, image.h])
        kept += [(index, one.prob[index], corners.tolist()) for index in range(80) if one.prob[index] > 0]
    library.free_network(net)
    return kept


@pytest.mark.parametrize("name", ["dog", "eagle", "giraffe", "horses", "kite", "person"])
def test_boxes_on_darknets_own_pictures(darknet: ctypes.CDLL, weights: Path, name: str, tmp_path: Path) -> None:
    """Read, letterboxed, computed, decoded and thinned by each for itself.

    Where the grey above and below is an odd number of rows, darknet lays the picture in at the rounded half and maps
    boxes back by the exact one: its boxes are half a row of the net's square too high, 0.9 pixels of these pictures.
    """
    path = PICTURES / f"{name}.jpg"
    if not path.is_file():
        pytest.skip(f"DARKNET'S SAMPLE PICTURE {path} IS NOT INSTALLED, SO BOXES ARE NOT COMPARED ON IT")
    trained = load_detector(weights)
    write_cfg(trained.architecture, tmp_path / "net.cfg")
    expected = boxes_of_darknet(darknet, tmp_path / "net.cfg", weights, path, 0.25)
    ours = detect_image(read_image(path).pixels, trained, confidence=0.25)
    compare_boxes(ours, expected, pixels_apart=1, scores_apart=0.005)


def compare_boxes(
    ours: Detections, expected: list[tuple[int, float, list[float]]], *, pixels_apart: float, scores_apart: float
) -> None:
    """Every sure box of one side has its like on the other; those that are near the threshold may be missing."""
    assert ours.class_id is not None
    assert ours.confidence is not None
    assert expected
    mine = [(int(c), float(s), b) for c, s, b in zip(ours.class_id, ours.confidence, ours.xyxy, strict=True)]
    for some, others in ((mine, expected), (expected, mine)):
        for category, score, box in some:
            near = [
                (abs(score - other[1]), np.abs(np.subtract(box, other[2])).max())
                for other in others
                if other[0] == category
            ]
            best = min(near, key=lambda pair: pair[1], default=(1.0, np.inf))
            assert score < 0.25 + scores_apart or (best[0] <= scores_apart and best[1] <= pixels_apart), (score, best)


ODD = """
[net]
width=416
height=416
channels=3
learning_rate=0.001

[convolutional]
batch_normalize=1
filters=8
size=5
stride=2
pad=1
activation=relu

[maxpool]
size=5
stride=1

[maxpool]
size=3
stride=2

[convolutional]
batch_normalize=1
filters=16
size=3
stride=1
groups=4
padding=1
activation=leaky

[maxpool]
size=2
stride=2

[convolutional]
filters=16
size=1
activation=linear

[shortcut]
from=-2
activation=linear

[upsample]
stride=2

[route]
layers=-1, 3

[convolutional]
filters=14
size=1
stride=1
activation=linear

[yolo]
mask=0,1
anchors=10,14, 23,27
classes=2
num=2
"""
