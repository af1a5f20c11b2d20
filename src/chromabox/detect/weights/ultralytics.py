"""Safe reading of the ``.pt`` files of Ultralytics' YOLOv3, versions 9.0 and later.

The files contain pickled modules in Darknet's order, except that the convolutions of the heads come last, from fine to
coarse. Anchors are in grid cells. The variant of the weights is inferred from the activation modules. Files with a
plain dictionary of tensors contain no such modules; for these files, the variant must be given.

No code in a file is executed. A ``.pt`` file is a zip archive with one pickle and the raw data of its tensors. A pickle
is a program that names functions and calls them. PyTorch's restricted unpickler calls only functions that create
tensors and containers, of which those in ``SAFE_NAMES`` are allowed. In addition, the names in ``OPAQUE_NAMES`` are
allowed. Classes and functions with these names are not imported; their objects are read as :class:`OpaqueObject`, which
contains only attributes. Any other name raises an error before anything is called.

A small file could still require much memory or time. Therefore, the sizes of the archive members, of the pickle, of
its tuples, and of the tensors are checked before they are used.
"""

import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chromabox.detect.data.dataset import default_class_names
from chromabox.detect.models.architecture import (
    ULTRALYTICS_9_0,
    ULTRALYTICS_9_6,
    Architecture,
    Convolution,
    Variant,
    yolov3,
    yolov3_tiny,
)
from chromabox.errors import ChromaboxError, UsageError, escape_unprintable

#: Prefixes of the names of classes and functions that are read as :class:`OpaqueObject`.
OPAQUE_NAMES = (
    *("models.", "ultralytics.nn.", "torch.nn.modules.", "numpy.dtype", "numpy.ndarray", "numpy.core.multiarray."),
    *("numpy._core.multiarray.", "datetime.datetime", "pathlib.", "argparse.Namespace"),
)
#: Pattern of the names of functions and types that PyTorch's restricted unpickler may call.
SAFE_NAMES = re.compile(
    r"collections\.OrderedDict|(__builtin__|builtins)\.set|_codecs\.encode|torch\.storage\.\w+Storage"
    r"|torch\.(Size|device|Tensor|\w+Storage|u?int\d+|bool|b?float\d+|complex\d+)|torch\.nn\.parameter\.Parameter"
    r"|torch\._utils\._rebuild_(tensor_v2|parameter|parameter_with_state)|torch\._tensor\._rebuild_from_type_v2"
)
#: Maximum size of a pickle in bytes. The pickle of YOLOv3 with optimizer has less than 1 MB.
MAX_PICKLE_BYTES = 1 << 21
#: Maximum ratio of the uncompressed size of the archive members to the size of the file. torch.save does not compress.
MAX_COMPRESSION = 10
#: Maximum number of elements of a tuple, including the elements of tuples in it. The hash of a tuple, for example of a
#: key in a dictionary, is computed recursively: nested tuples would take exponential time or overflow the stack.
MAX_TUPLE_ELEMENTS = 2000
#: Maximum number of values of the tensors of a model. YOLOv3 with 80 classes has 62 million.
MAX_VALUES = 1 << 27
#: Maximum length of the dotted name of a tensor. A container could be nested arbitrarily deeply.
MAX_NAME_LENGTH = 200


class OpaqueObject:
    """Object of a class that is not imported: the class name, and the attributes stored in the file."""

    class_name = ""
    attributes: Mapping[str, Any] = MappingProxyType({})
    """The ``__dict__`` of the pickled object; empty if the file does not contain one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Ignore the constructor arguments, which are read from the file."""

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}

    @property
    def children(self) -> dict[str, Any]:
        """Parameters, buffers and submodules of a module, in that order."""
        parts = [self.attributes.get(key) for key in ("_parameters", "_buffers", "_modules")]
        children = [item for part in parts if isinstance(part, dict) for item in part.items()]
        return {name: child for name, child in children if child is not None}


def load_untrusted(path: Path) -> Any:
    """Return the content of a ``.pt`` file: tensors, containers, numbers, strings and ``OpaqueObject`` instances.

    Raise ChromaboxError if the file cannot be read, is not a PyTorch file, or would execute code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
            if len(names) != 1:
                found = f"it contains {len(names)} files named data.pkl, not 1"
                raise ChromaboxError(f"{path}: not a PyTorch file ({found}); expected a file written by torch.save")
            size, max_size = sum(member.file_size for member in archive.infolist()), path.stat().st_size
            if size > MAX_COMPRESSION * max_size:
                expected = f"expected at most {MAX_COMPRESSION} times its size, {MAX_COMPRESSION * max_size:,}"
                raise ChromaboxError(f"{path}: the uncompressed contents have {size:,} bytes; {expected}")
            if (size := archive.getinfo(names[0]).file_size) > MAX_PICKLE_BYTES:
                raise ChromaboxError(f"{path}: data.pkl has {size:,} bytes; expected at most {MAX_PICKLE_BYTES:,}")
            content = archive.read(names[0])
        if content[1:2] > b"\x02":
            expected = "expected 2, the default of torch.save"
            raise ChromaboxError(f"{path}: unsupported pickle protocol {content[1]}; {expected}")
        names = sorted(name for name in _scan_pickle(content) if not SAFE_NAMES.fullmatch(name))
        for name in names:
            if not name.startswith(OPAQUE_NAMES):
                expected = "expected tensors, containers and modules"
                raise ChromaboxError(
                    f"{path}: unsafe file (loading it would execute {escape_unprintable(name[:200])}); {expected}"
                )
        opaque: list[Any] = [(type(name, (OpaqueObject,), {"class_name": name}), name) for name in names]
        with torch.serialization.safe_globals(opaque):
            return torch.load(path, map_location="cpu", weights_only=True)
    except ChromaboxError:
        raise
    except OSError as error:
        raise ChromaboxError(f"{path}: cannot be read ({error.strerror or error}); expected a .pt file") from error
    except zipfile.BadZipFile as error:
        problem = f"not a .pt file of PyTorch 1.6 or later, or truncated ({error})"
        raise ChromaboxError(f"{path}: {problem}; save it again with torch.save") from error
    except Exception as error:  # A broken pickle can raise any exception.
        # PyTorch's message ends with advice that would be dangerous to follow for a file of unknown origin.
        reason = " ".join(str(error).rpartition("WeightsUnpickler error:")[2].split("\n\n")[0].split())
        reason = reason.partition(" (Could this error message be improved?")[0]
        problem = f"damaged PyTorch file ({reason or type(error).__name__})"
        raise ChromaboxError(f"{path}: {problem}; use another copy") from error


def _scan_pickle(content: bytes) -> set[str]:
    """Return the names of all classes and functions in a pickle, without executing it.

    The stack of the unpickler is simulated: each object is represented by its number of tuple elements. Raise
    ValueError if the pickle is damaged or a tuple has more than MAX_TUPLE_ELEMENTS elements.
    """
    names: set[str] = set()
    stack: list[int] = []
    marks: list[int] = []  # The positions on the stack of opened tuples, lists and dictionaries.
    memo: dict[Any, int] = {}
    for opcode, argument, _ in pickletools.genops(content):
        taken = opcode.stack_before
        if opcode.name == "MARK":
            marks.append(len(stack))
            continue
        if pickletools.markobject in taken:
            start = (marks.pop() if marks else 0) - taken.index(pickletools.markobject)
        else:
            start = len(stack) - len(taken)
        items = stack[max(start, 0) :]
        del stack[max(start, 0) :]
        results = [1] * len(opcode.stack_after)
        if opcode.name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            results = [1 + sum(items)]
        elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            results = [memo.get(argument, 1)]
        elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1] if stack else 1
        elif opcode.name == "DUP":
            results = items * 2
        elif opcode.name in ("GLOBAL", "INST"):
            names.add(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL" or opcode.name.startswith("EXT"):
            raise ValueError(f"the instruction {opcode.name} of a later pickle protocol")
        if max(results, default=0) > MAX_TUPLE_ELEMENTS:
            raise ValueError(f"a tuple has more than {MAX_TUPLE_ELEMENTS} elements")
        stack += results
    return names


#: State-dict keys of a convolution with BatchNorm, and Darknet's names of these tensors.
STATE_KEYS = {
    "bn.bias": "bias",
    "bn.weight": "weight",
    "bn.running_mean": "mean",
    "bn.running_var": "variance",
    "conv.weight": "kernel",
}

ACTIVATION_VARIANTS = {
    "torch.nn.modules.activation.SiLU": ULTRALYTICS_9_6,
    "torch.nn.modules.activation.LeakyReLU": ULTRALYTICS_9_0,
}

#: Convolutions. Each is a dictionary of arrays by tensor name.
Layers = list[dict[str, np.ndarray]]


@dataclass(frozen=True)
class UltralyticsFile:
    """Contents of a ``.pt`` file: architecture, variant, class names, and convolutions in Darknet's order."""

    architecture: Architecture
    variant: Variant
    classes: tuple[str, ...]
    layers: Layers


def read_ultralytics(path: Path, variant: Variant | None = None) -> UltralyticsFile:
    """Read a ``.pt`` file of YOLOv3 or YOLOv3-tiny. ``variant`` is required only if the file contains no modules.

    Raise ChromaboxError if the file is not a YOLOv3 detector or would execute code. Raise UsageError if the variant is
    missing or differs from the variant of the modules.
    """
    model = load_untrusted(path)
    if isinstance(model, Mapping):
        # Prefer the moving average of the weights to the trained weights.
        entries = (model.get(name) for name in ("ema", "model", "state_dict"))
        model = next((entry for entry in entries if isinstance(entry, OpaqueObject | Mapping)), model)
    try:
        parts = list(_iter_parts(model))
        tensors = {name: part for name, part in parts if isinstance(part, Tensor)}
        # A tensor can repeat a value, so that the file does not limit the number of values.
        if (num_values := sum(tensor.numel() for tensor in tensors.values())) > MAX_VALUES:
            raise ValueError(f"the tensors have {num_values:,} values; expected at most {MAX_VALUES:,}")
        blocks, heads, anchors = _collect_layers(tensors)
        activations = (ACTIVATION_VARIANTS.get(getattr(part, "class_name", "")) for _, part in parts)
        inferred = next(filter(None, activations), None)
        if inferred is not None and variant is not None and inferred != variant:
            problem = f"the variant of the modules is {inferred.name}, not {variant.name}"
            raise UsageError(f"{path}: {problem}; omit --variant")
        variant = inferred or variant
        if variant is None:
            options = "--variant ultralytics-9.0 (leaky ReLU) or --variant ultralytics-9.6 (SiLU)"
            raise UsageError(f"{path}: the file does not contain the variant of the weights; use {options}")
        architecture = _build_architecture(blocks, heads, anchors, variant)
        names = model.attributes.get("names") if isinstance(model, OpaqueObject) else None
        if isinstance(names, dict):
            names = [names[index] for index in sorted(names)]
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            names = default_class_names(architecture.num_classes)
        if len(names) != architecture.num_classes:
            raise ValueError(f"the number of class names is {len(names)}; expected {architecture.num_classes}")
        # Darknet's order: the heads are between the other convolutions and are ordered from coarse to fine.
        remaining_blocks, remaining_heads = iter(blocks), iter(reversed(heads))
        convolutions = [layer for layer in architecture.layers if isinstance(layer, Convolution)]
        layers = [next(remaining_blocks if layer.batch_normalise else remaining_heads) for layer in convolutions]
        return UltralyticsFile(architecture, variant, tuple(names), layers)
    except UsageError:
        raise
    except (ValueError, TypeError, ChromaboxError) as error:
        raise ChromaboxError(f"{path}: {error}") from error


def _iter_parts(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of each module, container and tensor, in the order of the modules.

    A container with several names is yielded once, because it could contain itself. Raise ValueError if the containers
    are nested too deeply.
    """
    stack, known = [("", model)], set[int]()
    while stack:
        name, part = stack.pop()
        if id(part) in known:
            continue
        if not isinstance(part, Tensor):
            known.add(id(part))
        if len(name) > MAX_NAME_LENGTH:
            raise ValueError(f"the name {name[:40]}… has more than {MAX_NAME_LENGTH} characters")
        yield name, part
        children = part.children if isinstance(part, OpaqueObject) else part if isinstance(part, Mapping) else {}
        named = [(key, child) for key, child in children.items() if isinstance(key, str)]
        stack += [(f"{name}.{key[:MAX_NAME_LENGTH]}".lstrip("."), child) for key, child in reversed(named)]


def _collect_layers(state: dict[str, Tensor]) -> tuple[Layers, Layers, Tensor | None]:
    """Return the convolutions with BatchNorm, the convolutions of the heads, and the anchors in grid cells, if any.

    The convolutions are in file order. Raise ValueError if a tensor does not belong to YOLOv3 or is missing.
    """
    blocks: dict[str, dict[str, np.ndarray]] = {}
    heads: dict[str, dict[str, np.ndarray]] = {}
    anchors = None
    for name, tensor in state.items():
        try:
            array = tensor.detach().float().numpy()
        except (RuntimeError, TypeError) as error:  # A sparse or quantised tensor, or one too large for memory.
            raise ValueError(f"{name} is not a plain tensor ({str(error).splitlines()[0]})") from error
        parts = name.split(".")
        module, key = ".".join(parts[:-2]), ".".join(parts[-2:])
        if key in STATE_KEYS:
            blocks.setdefault(module, {})[STATE_KEYS[key]] = array
        elif parts[-3:-2] == ["m"] and parts[-1] in ("weight", "bias"):
            heads.setdefault(".".join(parts[:-1]), {})["kernel" if parts[-1] == "weight" else "bias"] = array
        elif parts[-1] == "anchors":
            anchors = tensor.detach().float()
        elif parts[-1] not in ("num_batches_tracked", "anchor_grid"):
            raise ValueError(
                f"the file contains the tensor {name}, which YOLOv3 does not have; expected a YOLOv3 .pt file"
            )
    for name, block in (blocks | heads).items():
        missing = {"kernel", "bias", *(STATE_KEYS.values() if name in blocks else ())} - block.keys()
        if missing:
            raise ValueError(f"{name} has no {', '.join(sorted(missing))}; use another copy of the file")
    return list(blocks.values()), list(heads.values()), anchors


def _build_architecture(blocks: Layers, heads: Layers, anchors: Tensor | None, variant: Variant) -> Architecture:
    """Return YOLOv3 or YOLOv3-tiny, depending on the number of convolutions.

    The architecture has the number of classes and the anchors of the file.
    """
    known = {(72, 3): ((8, 16, 32), yolov3), (11, 2): ((16, 32), yolov3_tiny)}
    if (len(blocks), len(heads)) not in known:
        found = f"the numbers of convolutions and heads in the file are {len(blocks)} and {len(heads)}"
        raise ValueError(f"{found}; expected 72 and 3 (YOLOv3) or 11 and 2 (YOLOv3-tiny)")
    strides, build = known[len(blocks), len(heads)]
    filters = len(heads[0]["bias"])
    if filters % 3 or filters < 18:
        raise ValueError(f"the number of outputs of a head is {filters}; expected 3 × (5 + number of classes)")
    options: dict[str, Any] = {}
    if anchors is not None:
        if anchors.shape != (len(heads), 3, 2):
            raise ValueError(f"the shape of the anchors is {tuple(anchors.shape)}; expected ({len(heads)}, 3, 2)")
        pixels = anchors * anchors.new_tensor(strides)[:, None, None]
        options["anchors"] = tuple((width, height) for width, height in pixels.double().flatten(0, 1).tolist())
    if build is yolov3_tiny:
        options["mask"] = variant.tiny_mask
    return build(filters // 3 - 5, **options)
