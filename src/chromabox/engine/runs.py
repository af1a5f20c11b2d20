"""Configuration, package versions and memory use of a run, for its ``config.json`` and ``summary.json``."""

import json
import platform
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chromabox.engine.checkpoint import write_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

#: Format of ``config.json``. Format 1 had no format number and other field names; it can still be read.
CONFIG_FORMAT = 2

_FORMAT_1_NAMES = {
    "net": "model",
    "settings": "model_args",
    "hold_out": "val_fraction",
    "steps": "max_steps",
    "start": "init",
    "spacing": "bin_spacing",
    "execution": "runtime",
    "views": "num_cached_views",
    "cache_memory": "cache_memory_gb",
    "keep_old": "keep_old_classes",
    "retain": "retention_data",
}
_FORMAT_1_RECIPE_NAMES = {
    "optimiser": "optimizer",
    "learning_rate": "lr",
    "other_learning_rate": "adamw_lr",
    "gentle_learning_rate": "backbone_lr",
    "warm_up": "warmup_fraction",
    "mirror": "hflip",
    "average": "ema_fraction",
    "companions": "auxiliary_fraction",
    "final_share": "final_lr_fraction",
    "gentle": "lr_scale_same_classes",
    "gentle_beside": "lr_scale_added_classes",
    "still_normalisation": "freeze_all_bn",
    "moving_statistics": "update_bn_stats",
    "warm_up_epochs": "warmup_epochs",
    "warm_up_batches": "warmup_batches",
    "warm_up_most": "max_warmup_fraction",
    "warm_up_bias_rate": "warmup_bias_lr",
    "warm_up_momentum": "warmup_momentum",
    "nominal_batch": "nominal_batch_size",
    "average_decay": "ema_decay",
    "average_ramp": "ema_warmup_steps",
    "old_net": "distill",
    "surest_new": "new_class_prior",
    "class_weight": "class_pos_weight",
    "objectness_weight": "objectness_pos_weight",
}

#: Process information on Linux.
PROC_STATUS = Path("/proc/self/status")


def write_config(folder: Path, config: "DataclassInstance") -> None:
    """Write a run's configuration and the package versions to ``config.json``."""
    write_json(folder / "config.json", {"format": CONFIG_FORMAT, **asdict(config), "versions": package_versions()})


def read_config_values(folder: Path) -> dict[str, Any]:
    """Return the fields of a run's configuration, by their current names, from ``config.json``.

    Raise OSError if there is no such file, and ValueError, KeyError or TypeError if it is not a configuration.
    """
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    values.pop("versions", None)
    if values.pop("format", 1) == 1:
        values = rename_keys(values, _FORMAT_1_NAMES)
        values["recipe"] = rename_keys(values["recipe"], _FORMAT_1_RECIPE_NAMES)
        values["runtime"] = rename_keys(values["runtime"], {"compiled": "compile"})
    return dict(values)


def rename_keys(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return a copy of ``values`` with the keys in ``names`` renamed."""
    return {names.get(key, key): value for key, value in values.items()}


def package_versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of the libraries that affect a run's results."""
    packages = ("chromabox", "torch", "numpy", "scikit-image", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def peak_memory_bytes() -> int:
    """Return the peak resident memory of this process in bytes."""
    # On Linux, ru_maxrss includes the memory of the parent at the time of the fork; VmHWM does not.
    status = PROC_STATUS.read_text().splitlines() if PROC_STATUS.is_file() else []
    for line in status:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    max_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max_rss if sys.platform == "darwin" else max_rss * 1024
