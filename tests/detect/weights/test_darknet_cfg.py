"""Darknet configuration files: reading, writing, and errors with the line number."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chromabox.detect.models.architecture import (
    Architecture,
    Convolution,
    MaxPool,
    Route,
    Shortcut,
    Upsample,
    Yolo,
    yolov3,
    yolov3_tiny,
)
from chromabox.detect.weights.darknet_cfg import read_cfg, write_cfg
from chromabox.errors import ChromaboxError

HEAD = "[convolutional]\nfilters=12\nactivation=linear\n[yolo]\nmask=0,1\nanchors=10,14, 23,27\nclasses=1\nnum=2\n"


def write_text(folder: Path, text: str) -> Path:
    path = folder / "net.cfg"
    path.write_text(text, encoding="utf-8")
    return path


def test_all_sections_and_relative_references_are_read(tmp_path: Path) -> None:
    text = """
# a comment
[net]
batch=64
width=320
height=224
channels=3
steps=400000,450000

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=mish ; another comment
[convolutional]
batch_normalize = 1
filters = 8
size = 3
padding = 1
groups = 2
activation = relu
[shortcut]
from=-2
activation=linear
[maxpool]
stride=2
[upsample]
stride=2
[route]
layers = -1, 0
[route]
layers=-1
groups=2
group_id=1
"""
    architecture = read_cfg(write_text(tmp_path, text + HEAD))
    assert architecture == Architecture(
        "net",
        (
            Convolution(8, 3, 2, activation="mish"),
            Convolution(8, 3, groups=2, activation="relu", pad=1),
            Shortcut(0),
            MaxPool(2, 2),
            Upsample(2),
            Route((4, 0)),
            Route((5,), 2, 1),
            Convolution(12, 1, batch_normalise=False, activation="linear", pad=0),
            Yolo((0, 1), ((10.0, 14.0), (23.0, 27.0)), 1),
        ),
        size=320,
    )


@pytest.mark.parametrize("architecture", [yolov3(), yolov3(3), yolov3_tiny(), yolov3_tiny(1, mask=(0, 1, 2))])
def test_cfg_round_trip(architecture: Architecture, tmp_path: Path) -> None:
    write_cfg(architecture, tmp_path / f"{architecture.name}.cfg")
    assert read_cfg(tmp_path / f"{architecture.name}.cfg") == architecture
    assert [path.name for path in tmp_path.iterdir()] == [f"{architecture.name}.cfg"]


@given(
    anchors=st.lists(st.tuples(*[st.floats(0.01, 2000, allow_nan=False)] * 2), min_size=6, max_size=6),
    classes=st.integers(1, 90),
)
def test_anchors_round_trip_exactly(
    anchors: list[tuple[float, float]], classes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    architecture = replace(yolov3_tiny(classes, anchors=tuple(anchors)), name="net")
    path = tmp_path_factory.mktemp("cfg") / "net.cfg"
    write_cfg(architecture, path)
    assert read_cfg(path) == architecture


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1: the file does not start with a \[net\] section"),
        ("[convolutional]\nfilters=3\n", r"line 1: the file does not start with a \[net\] section"),
        ("filters=3\n", "line 1: 'filters=3' is not valid; expected .name., or key=value within a section"),
        ("[net]\nwidth\n", "line 2: 'width' is not valid"),
        ("[net\n", r"line 1: '\[net' is not valid"),
        ("[net]\nwidth=wide\n" + HEAD, r"line 2: \[net\] width=wide: expected a number"),
        ("[net]\n\n[reorg]\nstride=2\n" + HEAD, r"line 3: \[reorg\] is an unknown section; expected \[convolutional\]"),
        ("[net]\n[lstm]\n" + HEAD, r"line 2: \[lstm\] is an unknown section"),
        (
            "[net]\n[convolutional]\nfilters=3\nactivation=swish\n",
            "line 2: .* unknown activation 'swish'",
        ),
        ("[net]\n[convolutional]\nfilters=3\ndilation=2\nactivation=relu\n", r"line 4: .* unknown option 'dilation'"),
        ("[net]\n[convolutional]\nfilters=three\nactivation=relu\n", r"line 3: \[convolutional\] filters=three"),
        ("[net]\n[maxpool]\nsize=3\nstride=2\npadding=0\n", r"line 2: \[maxpool\] unsupported padding; expected 2"),
        ("[net]\n[shortcut]\nfrom=-2\nactivation=leaky\n", r"line 2: \[shortcut\] unsupported activation 'leaky'"),
        ("[net]\n[shortcut]\n", r"line 2: \[shortcut\] option 'from' lists 0 layers; expected one"),
        ("[net]\n[yolo]\nclasses=1\nanchors=1,2,3\n", r"line 2: \[yolo\] the number of values in anchors is 3;"),
        ("[net]\n[yolo]\nclasses=1\nanchors=1,2\nscale_x_y=1.05\n", r"line 5: \[yolo\] unknown option 'scale_x_y'"),
        ("[net]\nwidth=416\n[convolutional]\nfilters=3\nactivation=relu\n", r"net\.cfg: net has no yolo layer"),
        (
            "[net]\n" + "[maxpool]\nsize=2\nstride=2\n" * 14 + HEAD,
            r"net\.cfg: .* the product of all strides is 16384;",
        ),
        ("[net]\n" + "#" * (1 << 18), "bytes; expected a Darknet configuration file of at most 262,144 bytes"),
        (
            "[net]\nwidth=416\n" + HEAD.replace("filters=12", "filters=18"),
            r"its input has 18 channels; expected 12 \(anchors: 2, classes: 1\)",
        ),
    ],
)
def test_invalid_cfg_is_rejected(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ChromaboxError, match=message):
        read_cfg(write_text(tmp_path, text))


def test_unreadable_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ChromaboxError, match=r"none\.cfg: cannot be read \(No such file"):
        read_cfg(tmp_path / "none.cfg")
    (tmp_path / "net.cfg").write_bytes(b"[net]\n\xff\xfe\x00")
    with pytest.raises(ChromaboxError, match=r"net\.cfg: cannot be read \(not UTF-8 text\)"):
        read_cfg(tmp_path / "net.cfg")
