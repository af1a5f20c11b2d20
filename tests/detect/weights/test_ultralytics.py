"""Ultralytics files: a model of the published structure is built from PyTorch modules, save_model, and loaded.

The structures are those of YOLOv3-tiny and YOLOv3 in Ultralytics' configuration files: modules in order, and the heads
in one last module, from fine to coarse. The expected outputs are those of the model built here.
"""

import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chromabox.detect.models.architecture import DARKNET, ULTRALYTICS_9_0, ULTRALYTICS_9_6, Convolution, Variant, yolov3
from chromabox.detect.models.darknet import ConvolutionLayer
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
    """YOLOv3-tiny with the indices of the configuration file and zero padding before the pooling of stride 1."""

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
        """Return the raw outputs of the heads from coarse to fine: [batch, 3, 7, rows, columns]."""
        features = {}
        for index in range(15):
            x = features[index] = self.model[index](x)
        coarse = self.model[15](x)
        upsampled = self.model[17](self.model[16](features[14]))
        fine = self.model[19](torch.cat([upsampled, features[8]], 1))
        detect = self.model[20]
        return [
            head(inputs).unflatten(1, (3, 7)) for head, inputs in zip(reversed(detect.m), (coarse, fine), strict=True)
        ]


@pytest.fixture
def ultralytics_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Register the classes above under the names in Ultralytics' files; they are removed before a file is read."""
    for name, cls in (("models.common", Conv), ("models.yolo", Detect), ("models.yolo", Model)):
        module = sys.modules.setdefault(name, types.ModuleType(name))
        setattr(module, cls.__name__, cls)
        monkeypatch.setattr(cls, "__module__", name)
    monkeypatch.setitem(sys.modules, "models", types.ModuleType("models"))
    yield
    for name in ("models.common", "models.yolo"):
        sys.modules.pop(name, None)


def save_model(path: Path, act: type[nn.Module], names: object = NAMES) -> Model:
    torch.manual_seed(1)
    model = Model(act, names).eval()
    torch.save({"epoch": 3, "model": model, "ema": None, "optimizer": None, "date": "2023"}, path)
    for name in ("models.common", "models.yolo"):
        sys.modules.pop(name, None)
    return model


@torch.no_grad()
@pytest.mark.parametrize(("act", "variant"), [(nn.LeakyReLU, ULTRALYTICS_9_0), (nn.SiLU, ULTRALYTICS_9_6)])
def test_loaded_model_computes_the_same_outputs(
    ultralytics_modules: None, tmp_path: Path, act: type[nn.Module], variant: Variant
) -> None:
    model = save_model(tmp_path / "best.pt", act)
    detector = load_detector(tmp_path / "best.pt")
    assert detector.variant == variant
    assert detector.classes == ("cat", "dog")
    assert [yolo.mask for yolo in detector.architecture.yolo_layers] == [(3, 4, 5), (0, 1, 2)]
    assert detector.architecture.yolo_layers[0].head_anchors == ((81.0, 82.0), (135.0, 169.0), (344.0, 319.0))
    images = torch.rand(1, 3, 96, 64)
    torch.testing.assert_close(detector.model(images), model(images), rtol=1e-4, atol=1e-5)
    save_detector(tmp_path / "own.safetensors", detector)
    reloaded = load_detector(tmp_path / "own.safetensors")
    assert (reloaded.variant, reloaded.classes, reloaded.architecture) == (
        variant,
        detector.classes,
        detector.architecture,
    )
    torch.testing.assert_close(reloaded.model(images), detector.model(images), rtol=0, atol=0)
    with pytest.raises(UsageError, match=rf"Darknet does not support variant {variant.name}"):
        write_darknet(tmp_path / "own.weights", detector.model)


def test_class_names_from_a_dictionary(ultralytics_modules: None, tmp_path: Path) -> None:
    save_model(tmp_path / "a.pt", nn.SiLU, {1: "dog", 0: "cat"})
    assert read_ultralytics(tmp_path / "a.pt").classes == ("cat", "dog")


def test_too_many_class_names_are_rejected(ultralytics_modules: None, tmp_path: Path) -> None:
    save_model(tmp_path / "a.pt", nn.SiLU, ["a", "b", "c"])
    with pytest.raises(ChromaboxError, match="the number of class names is 3; expected 2"):
        read_ultralytics(tmp_path / "a.pt")


def test_variant_that_differs_from_the_file_is_rejected(ultralytics_modules: None, tmp_path: Path) -> None:
    save_model(tmp_path / "a.pt", nn.SiLU)
    with pytest.raises(UsageError, match=r"the variant of the modules is ultralytics-9\.6, not darknet"):
        load_detector(tmp_path / "a.pt", variant=DARKNET)


@torch.no_grad()
def test_state_dict_requires_the_variant(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Model(nn.SiLU, NAMES).half()
    torch.save(model.state_dict(), tmp_path / "a.pt")
    with pytest.raises(UsageError, match="does not contain the variant of the weights; use --variant"):
        load_detector(tmp_path / "a.pt")
    detector = load_detector(tmp_path / "a.pt", variant=ULTRALYTICS_9_6, classes=NAMES)
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(detector.model(images), model.float().eval()(images), rtol=1e-4, atol=1e-5)


def yolov3_state(num_classes: int) -> dict[str, Tensor]:
    """Return the tensors of YOLOv3 by name, expanded without memory; each bias is the index of its convolution.

    Each row of the configuration contains outputs, kernel size, and number of bottlenecks.
    """
    blocks: list[tuple[int, int, int]] = [(32, 3, 0), (64, 3, 0), (64, 0, 1), (128, 3, 0), (128, 0, 2), (256, 3, 0)]
    blocks += [(256, 0, 8), (512, 3, 0), (512, 0, 8), (1024, 3, 0), (1024, 0, 4)]
    blocks += [(1024, 0, 1), (512, 1, 0), (1024, 3, 0), (512, 1, 0), (1024, 3, 0)]
    blocks += [(256, 1, 0), (-1, 0, 0), (-1, 0, 0), (512, 0, 1), (512, 0, 1), (256, 1, 0), (512, 3, 0)]
    blocks += [(128, 1, 0), (-1, 0, 0), (-1, 0, 0), (256, 0, 1), (256, 0, 2)]
    inputs_by_index = {0: 3, 16: 512, 19: 768, 23: 256, 26: 384}
    state: dict[str, Tensor] = {}
    count, inputs = 0, 3

    def add(name: str, outputs: int, inputs: int, side: int) -> None:
        nonlocal count
        state[f"{name}.conv.weight"] = torch.zeros(1).expand(outputs, inputs, side, side)
        for key, value in (("weight", 1.0), ("bias", float(count)), ("running_mean", 0.0), ("running_var", 1.0)):
            state[f"{name}.bn.{key}"] = torch.full((1,), value).expand(outputs)
        count += 1

    for index, (outputs, side, bottlenecks) in enumerate(blocks):
        inputs = inputs_by_index.get(index, inputs)
        if side:
            add(f"model.{index}", outputs, inputs, side)
        for number in range(bottlenecks):
            name = f"model.{index}.{number}" if bottlenecks > 1 else f"model.{index}"
            add(f"{name}.cv1", outputs // 2, inputs, 1)
            add(f"{name}.cv2", outputs, outputs // 2, 3)
            inputs = outputs
        inputs = outputs if outputs > 0 else inputs
    state["model.28.anchors"] = torch.ones(3, 3, 2)
    for head, inputs in enumerate((256, 512, 1024)):
        state[f"model.28.m.{head}.weight"] = torch.zeros(1).expand(3 * (5 + num_classes), inputs, 1, 1)
        state[f"model.28.m.{head}.bias"] = torch.full((1,), 1000.0 + head).expand(3 * (5 + num_classes))
    return state


def test_convolutions_of_yolov3_are_in_darknet_order(tmp_path: Path) -> None:
    torch.save(yolov3_state(3), tmp_path / "a.pt")
    file = read_ultralytics(tmp_path / "a.pt", ULTRALYTICS_9_0)
    assert file.architecture.layers[:82] == yolov3(3).layers[:82]
    assert file.architecture.yolo_layers[0].head_anchors == ((32.0, 32.0),) * 3
    convolutions = [layer for layer in file.architecture.layers if isinstance(layer, Convolution)]
    biases = [state["bias"][0] for state in file.layers]
    # The heads are at Darknet's positions, from coarse to fine; the order of the other convolutions is unchanged.
    assert [bias for bias in biases if bias < 1000] == list(range(72))
    heads = [index for index, layer in enumerate(convolutions) if not layer.batch_normalise]
    assert [biases[index] for index in heads] == [1002, 1001, 1000]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("model.0.bn.bias"), r"model\.0 has no bias"),
        (lambda state: state.pop("model.28.m.1.weight"), r"model\.28\.m\.1 has no kernel"),
        (lambda state: state.update({"model.3.lstm.gate": torch.ones(2)}), r"contains the tensor model\.3\.lstm\.gate"),
        (
            lambda state: state.update({"model.0.conv.weight": torch.ones(32, 4, 3, 3)}),
            "the shape of kernel in convolution 0 is .32, 4",
        ),
        (lambda state: state.update({"model.0.bn.bias": torch.ones(31)}), "the shape of bias in convolution 0 is .31,"),
        (lambda state: state.update({"model.28.anchors": torch.ones(3, 2, 2)}), "the shape of the anchors is"),
        (
            lambda state: state.update({"model.0.bn.bias": torch.ones(32).to_sparse()}),
            "execute .*_rebuild_sparse_tensor",
        ),
        (
            lambda state: [state.pop(name) for name in list(state) if name.startswith("model.4.1")],
            "convolutions and heads in the file are 70 and 3",
        ),
        (
            lambda state: [state.pop(name) for name in list(state) if ".m." in name],
            "convolutions and heads in the file are 72 and 0",
        ),
    ],
)
def test_invalid_state_dict_is_rejected(tmp_path: Path, change: object, message: str) -> None:
    assert callable(change)
    state = yolov3_state(1)
    change(state)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ChromaboxError, match=rf"a\.pt: .*{message}"):
        load_detector(tmp_path / "a.pt", variant=ULTRALYTICS_9_0)


def test_file_without_a_model_is_rejected(tmp_path: Path) -> None:
    torch.save([1, 2, 3], tmp_path / "a.pt")
    with pytest.raises(ChromaboxError, match="convolutions and heads in the file are 0 and 0"):
        read_ultralytics(tmp_path / "a.pt", ULTRALYTICS_9_0)


def test_silu_and_leaky_relu_differ() -> None:
    """Control: the comparison of outputs above distinguishes the variants."""
    values = torch.linspace(-3, 3, 7)
    assert not torch.allclose(F.silu(values), F.leaky_relu(values, 0.1), atol=0.1)
    assert ConvolutionLayer(Convolution(1, 1), 1, ULTRALYTICS_9_6).activation(torch.tensor([[[[1.0]]]])) < 0.75
