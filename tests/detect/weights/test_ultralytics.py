"""Ultralytics' files: a net of the published structure is built here from PyTorch's parts, saved, and read.

The structure is YOLOv3-tiny's and YOLOv3's as Ultralytics' configuration files list it: modules in order, the heads in
one last module, finest first. Expected outputs are the built net's own.
"""

import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chromabox.detect.models.architecture import Convolution, yolov3
from chromabox.detect.models.darknet import DARKNET, ULTRALYTICS_9_0, ULTRALYTICS_9_6, ConvolutionLayer, Variant
from chromabox.detect.weights.load import load_detector, save_detector, write_darknet
from chromabox.detect.weights.ultralytics import read_ultralytics
from chromabox.errors import ChromaboxError, UsageError

ANCHORS = torch.tensor([[[10, 14], [23, 27], [37, 58]], [[81, 82], [135, 169], [344, 319]]])
CELLS = ANCHORS / torch.tensor([16.0, 32.0]).view(2, 1, 1)
NAMES = ["cat", "dog"]


class Conv(nn.Module):
    def __init__(self, inputs: int, outputs: int, size: int, act: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, 1, size // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs, 1e-3, 0.03)
        self.act = act
        with torch.no_grad():
            for tensor in (self.bn.weight, self.bn.running_var):
                assert tensor is not None
                tensor.uniform_(0.5, 1.5)
            for tensor in (self.bn.bias, self.bn.running_mean):
                assert tensor is not None
                tensor.normal_(0, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Detect(nn.Module):
    def __init__(self, inputs: list[int], outputs: int, anchors: Tensor) -> None:
        super().__init__()
        self.register_buffer("anchors", anchors)
        self.m = nn.ModuleList(nn.Conv2d(count, outputs, 1) for count in inputs)


class Model(nn.Module):
    """YOLOv3-tiny: indices as in the configuration file, padding by zeros before the pooling of stride 1."""

    def __init__(self, act: type[nn.Module], names: object) -> None:
        super().__init__()
        slope = (0.1,) if act is nn.LeakyReLU else ()
        parts: list[nn.Module] = []
        inputs = 3
        for outputs in (16, 32, 64, 128, 256):
            parts += [Conv(inputs, outputs, 3, act(*slope)), nn.MaxPool2d(2, 2, 0)]
            inputs = outputs
        parts += [Conv(256, 512, 3, act(*slope)), nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, 1, 0)]
        parts += [Conv(512, 1024, 3, act(*slope)), Conv(1024, 256, 1, act(*slope)), Conv(256, 512, 3, act(*slope))]
        parts += [Conv(256, 128, 1, act(*slope)), nn.Upsample(None, 2, "nearest"), nn.Identity()]
        parts += [Conv(384, 256, 3, act(*slope)), Detect([256, 512], 21, CELLS)]
        self.model = nn.Sequential(*parts)
        self.names, self.yaml = names, {"nc": 2}

    def forward(self, x: Tensor) -> list[Tensor]:
        """Raw heads, coarse first, as [batch, 3, 7, rows, columns]."""
        kept = {}
        for index in range(15):
            x = kept[index] = self.model[index](x)
        coarse = self.model[15](x)
        up = self.model[17](self.model[16](kept[14]))
        fine = self.model[19](torch.cat([up, kept[8]], 1))
        detect = self.model[20]
        return [
            head(given).unflatten(1, (3, 7)) for head, given in zip(reversed(detect.m), (coarse, fine), strict=True)
        ]


@pytest.fixture
def as_theirs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The classes above under the names that their files have; gone again when a test reads."""
    for place, found in (("models.common", Conv), ("models.yolo", Detect), ("models.yolo", Model)):
        module = sys.modules.setdefault(place, types.ModuleType(place))
        setattr(module, found.__name__, found)
        monkeypatch.setattr(found, "__module__", place)
    monkeypatch.setitem(sys.modules, "models", types.ModuleType("models"))
    yield
    for place in ("models.common", "models.yolo"):
        sys.modules.pop(place, None)


def saved(path: Path, act: type[nn.Module], names: object = NAMES) -> Model:
    torch.manual_seed(1)
    model = Model(act, names).eval()
    torch.save({"epoch": 3, "model": model, "ema": None, "optimizer": None, "date": "2023"}, path)
    for place in ("models.common", "models.yolo"):
        sys.modules.pop(place, None)
    return model


@torch.no_grad()
@pytest.mark.parametrize(("act", "kind"), [(nn.LeakyReLU, ULTRALYTICS_9_0), (nn.SiLU, ULTRALYTICS_9_6)])
def test_a_net_of_theirs_computes_the_same(
    as_theirs: None, tmp_path: Path, act: type[nn.Module], kind: Variant
) -> None:
    model = saved(tmp_path / "best.pt", act)
    trained = load_detector(tmp_path / "best.pt")
    assert trained.variant == kind
    assert trained.classes == ("cat", "dog")
    assert [yolo.mask for yolo in trained.architecture.yolo_layers] == [(3, 4, 5), (0, 1, 2)]
    assert trained.architecture.yolo_layers[0].head_anchors == ((81.0, 82.0), (135.0, 169.0), (344.0, 319.0))
    images = torch.rand(1, 3, 96, 64)
    torch.testing.assert_close(trained.model(images), model(images), rtol=1e-4, atol=1e-5)
    save_detector(tmp_path / "own.safetensors", trained)
    again = load_detector(tmp_path / "own.safetensors")
    assert (again.variant, again.classes, again.architecture) == (kind, trained.classes, trained.architecture)
    torch.testing.assert_close(again.model(images), trained.model(images), rtol=0, atol=0)
    with pytest.raises(UsageError, match=rf"darknet cannot run weights of kind {kind.name}"):
        write_darknet(tmp_path / "own.weights", trained.model)


def test_names_as_a_dictionary_and_none(as_theirs: None, tmp_path: Path) -> None:
    saved(tmp_path / "a.pt", nn.SiLU, {1: "dog", 0: "cat"})
    assert read_ultralytics(tmp_path / "a.pt").classes == ("cat", "dog")


def test_too_many_names(as_theirs: None, tmp_path: Path) -> None:
    saved(tmp_path / "a.pt", nn.SiLU, ["a", "b", "c"])
    with pytest.raises(ChromaboxError, match="names 3 classes and scores 2"):
        read_ultralytics(tmp_path / "a.pt")


def test_the_files_own_kind_is_not_talked_over(as_theirs: None, tmp_path: Path) -> None:
    saved(tmp_path / "a.pt", nn.SiLU)
    with pytest.raises(UsageError, match=r"its modules are of kind ultralytics-9\.6, not darknet"):
        load_detector(tmp_path / "a.pt", variant=DARKNET)


@torch.no_grad()
def test_a_dictionary_of_tensors_needs_its_kind(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Model(nn.SiLU, NAMES).half()
    torch.save(model.state_dict(), tmp_path / "a.pt")
    with pytest.raises(UsageError, match="does not say its kind"):
        load_detector(tmp_path / "a.pt")
    trained = load_detector(tmp_path / "a.pt", variant=ULTRALYTICS_9_6, classes=NAMES)
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(trained.model(images), model.float().eval()(images), rtol=1e-4, atol=1e-5)


def yolov3_state(classes: int) -> dict[str, Tensor]:
    """YOLOv3's tensors by name, without memory of their own; every bias says which convolution it is.

    Each line of the configuration: outputs, side, and for bottlenecks how many of them.
    """
    blocks: list[tuple[int, int, int]] = [(32, 3, 0), (64, 3, 0), (64, 0, 1), (128, 3, 0), (128, 0, 2), (256, 3, 0)]
    blocks += [(256, 0, 8), (512, 3, 0), (512, 0, 8), (1024, 3, 0), (1024, 0, 4)]
    blocks += [(1024, 0, 1), (512, 1, 0), (1024, 3, 0), (512, 1, 0), (1024, 3, 0)]
    blocks += [(256, 1, 0), (-1, 0, 0), (-1, 0, 0), (512, 0, 1), (512, 0, 1), (256, 1, 0), (512, 3, 0)]
    blocks += [(128, 1, 0), (-1, 0, 0), (-1, 0, 0), (256, 0, 1), (256, 0, 2)]
    inputs_of = {0: 3, 16: 512, 19: 768, 23: 256, 26: 384}
    state: dict[str, Tensor] = {}
    count, inputs = 0, 3

    def add(name: str, outputs: int, given: int, side: int) -> None:
        nonlocal count
        state[f"{name}.conv.weight"] = torch.zeros(1).expand(outputs, given, side, side)
        for part, value in (("weight", 1.0), ("bias", float(count)), ("running_mean", 0.0), ("running_var", 1.0)):
            state[f"{name}.bn.{part}"] = torch.full((1,), value).expand(outputs)
        count += 1

    for index, (outputs, side, bottlenecks) in enumerate(blocks):
        inputs = inputs_of.get(index, inputs)
        if side:
            add(f"model.{index}", outputs, inputs, side)
        for number in range(bottlenecks):
            name = f"model.{index}.{number}" if bottlenecks > 1 else f"model.{index}"
            add(f"{name}.cv1", outputs // 2, inputs, 1)
            add(f"{name}.cv2", outputs, outputs // 2, 3)
            inputs = outputs
        inputs = outputs if outputs > 0 else inputs
    state["model.28.anchors"] = torch.ones(3, 3, 2)
    for head, given in enumerate((256, 512, 1024)):
        state[f"model.28.m.{head}.weight"] = torch.zeros(1).expand(3 * (5 + classes), given, 1, 1)
        state[f"model.28.m.{head}.bias"] = torch.full((1,), 1000.0 + head).expand(3 * (5 + classes))
    return state


def test_the_convolutions_of_yolov3_find_their_places(tmp_path: Path) -> None:
    torch.save(yolov3_state(3), tmp_path / "a.pt")
    file = read_ultralytics(tmp_path / "a.pt", ULTRALYTICS_9_0)
    assert file.architecture.layers[:82] == yolov3(3).layers[:82]
    assert file.architecture.yolo_layers[0].head_anchors == ((32.0, 32.0),) * 3
    plain = [layer for layer in file.architecture.layers if isinstance(layer, Convolution)]
    found = [given["bias"][0] for given in file.layers]
    # Heads come where darknet has them, coarse first; all others keep their order.
    assert [value for value in found if value < 1000] == list(range(72))
    heads = [index for index, layer in enumerate(plain) if not layer.batch_normalise]
    assert [found[index] for index in heads] == [1002, 1001, 1000]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: state.pop("model.0.bn.bias"), r"model\.0 lacks its bias"),
        (lambda state: state.pop("model.28.m.1.weight"), r"model\.28\.m\.1 lacks its kernel"),
        (lambda state: state.update({"model.3.lstm.gate": torch.ones(2)}), r"holds model\.3\.lstm\.gate"),
        (lambda state: state.update({"model.0.conv.weight": torch.ones(32, 4, 3, 3)}), "layer 0 is .32, 4, 3, 3."),
        (lambda state: state.update({"model.0.bn.bias": torch.ones(31)}), "vectors of layer 0"),
        (lambda state: state.update({"model.28.anchors": torch.ones(3, 2, 2)}), "its anchors are"),
        (
            lambda state: [state.pop(name) for name in list(state) if name.startswith("model.4.1")],
            "70 convolutions and 3",
        ),
        (lambda state: [state.pop(name) for name in list(state) if ".m." in name], "holds no detector"),
    ],
)
def test_other_nets_are_refused(tmp_path: Path, change: object, sentence: str) -> None:
    assert callable(change)
    state = yolov3_state(1)
    change(state)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ChromaboxError, match=rf"a\.pt: .*{sentence}"):
        read_ultralytics(tmp_path / "a.pt", ULTRALYTICS_9_0)


def test_something_else_entirely(tmp_path: Path) -> None:
    torch.save([1, 2, 3], tmp_path / "a.pt")
    with pytest.raises(ChromaboxError, match="holds no detector"):
        read_ultralytics(tmp_path / "a.pt", ULTRALYTICS_9_0)


def test_silu_and_leaky_differ() -> None:
    """The control: that the comparison above could tell the kinds apart."""
    given = torch.linspace(-3, 3, 7)
    assert not torch.allclose(F.silu(given), F.leaky_relu(given, 0.1), atol=0.1)
    assert ConvolutionLayer(Convolution(1, 1), 1, ULTRALYTICS_9_6).activation(torch.tensor([[[[1.0]]]])) < 0.75
