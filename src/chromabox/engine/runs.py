"""Run folders: configuration, metrics, checkpoints and summary of a training run."""

import logging
import os
import platform
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from chromabox.engine.autotune import RuntimeConfig, check_device
from chromabox.engine.checkpoint import read_metadata, write_json
from chromabox.engine.logger import RESTORE_ADVICE, EpochRecord, StoredValues, read_metrics
from chromabox.engine.options import OptimConfig, RuntimeOptions
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.atomic import parse_json

log = logging.getLogger(__name__)

#: Format of ``config.json``. Files of format 1, with other field names and no format number, can still be read.
CONFIG_FORMAT = 2

#: The fields of format 1 that have been renamed, with their current names.
_FORMAT_1_RENAMED = """
net:model settings:model_args hold_out:val_fraction steps:max_steps start:init spacing:bin_spacing execution:runtime
views:num_cached_views cache_memory:cache_memory_gb keep_old:keep_old_classes retain:retention_data
optimiser:optimizer learning_rate:lr other_learning_rate:adamw_lr gentle_learning_rate:backbone_lr
warm_up:warmup_fraction mirror:hflip average:ema_fraction companions:auxiliary_fraction final_share:final_lr_fraction
gentle:lr_scale_same_classes gentle_beside:lr_scale_added_classes still_normalisation:freeze_all_bn
moving_statistics:update_bn_stats warm_up_epochs:warmup_epochs warm_up_batches:warmup_batches
warm_up_most:max_warmup_fraction warm_up_bias_rate:warmup_bias_lr warm_up_momentum:warmup_momentum
nominal_batch:nominal_batch_size average_decay:ema_decay average_ramp:ema_warmup_steps old_net:distill
surest_new:new_class_prior class_weight:class_pos_weight objectness_weight:objectness_pos_weight compiled:compile
"""
_FORMAT_1_NAMES = dict(pair.split(":") for pair in _FORMAT_1_RENAMED.split())
#: Names of the fields in the configuration, for command-line options with different names.
_OPTION_FIELDS = {"recipe": "recipe_name", "learning_rate": "lr", "cached_views": "num_cached_views"}
_OPTION_FIELDS |= {"cache_memory": "cache_memory_gb"}

#: Types of values in ``summary.json``. Different kinds of runs have different values.
_SUMMARY_TYPES: Mapping[str, type] = {
    **dict.fromkeys(("net", "recipe", "data", "palette"), str),
    **dict.fromkeys(("seed", "parameters", "epochs", "updates"), int),
    **dict.fromkeys(("test_loss", "test_accuracy", "seconds"), float),
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings that all training runs share. The configuration of each kind of run has further settings."""

    model: str
    recipe: OptimConfig
    data: str
    seed: int = 0
    size: int
    patience: int | None = None
    """Number of epochs without improvement after which training stops."""
    max_steps: int | None = None
    """Number of optimizer steps of the whole run, which replaces the number of epochs in the recipe. The last epoch can
    be shortened."""
    runtime: RuntimeConfig | None = None
    """Device, precision, compilation, memory layout and threads. None until training has chosen them."""

    def __post_init__(self) -> None:
        """Raise UsageError for a patience below 1."""
        if self.patience is not None and self.patience < 1:
            raise UsageError(f"--patience is {self.patience}: expected at least 1")


ConfigT = TypeVar("ConfigT", bound=RunConfig)


@dataclass(frozen=True)
class RunDir:
    """Folder of a training run: config.json, metrics.jsonl, last.safetensors, best.safetensors and summary.json."""

    path: Path

    @property
    def is_started(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return (self.path / "last.safetensors").is_file()

    @property
    def is_finished(self) -> bool:
        """Whether training is complete and the summary has been written."""
        return (self.path / "summary.json").is_file()

    def require_new(self) -> None:
        """Raise UsageError if the folder contains a run."""
        if self.is_started:
            raise UsageError(
                f"{self.path} already contains a run: use --resume {self.path} or choose another folder with -o"
            )

    def save_config(self, config: RunConfig) -> None:
        """Write the configuration and the package versions to ``config.json``; create the folder if necessary."""
        self.path.mkdir(parents=True, exist_ok=True)
        values = {"format": CONFIG_FORMAT, **asdict(config), "versions": package_versions()}
        write_json(self.path / "config.json", values)

    def config_values(self, kind: str = "training") -> dict[str, Any]:
        """Return the fields of the configuration. Fields of older formats are renamed to their current names.

        Raise UsageError if ``config.json`` is missing or is not the configuration of a run. ``kind`` is the kind of run
        named in the error message.
        """
        with self._config_errors(kind):
            values = parse_json((self.path / "config.json").read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError("expected a JSON object")
            values.pop("versions", None)
            if values.pop("format", 1) == 1:
                values = rename_keys(values, _FORMAT_1_NAMES)
                values |= {name: rename_keys(values[name], _FORMAT_1_NAMES) for name in ("recipe", "runtime")}
            values["model"] = str(values["model"])
            return values

    def model_name(self) -> str | None:
        """Return the name of the run's model, or None if the configuration cannot be read."""
        try:
            return str(self.config_values()["model"])
        except (OSError, UsageError):
            return None

    def load_config(self, kind: type[ConfigT]) -> ConfigT:
        """Read the configuration. Raise UsageError if the folder contains no run of this kind."""
        hints = get_type_hints(kind)
        models = get_args(hints["model"])
        with self._config_errors(" or ".join(models)):
            values = self.config_values(" or ".join(models))
            if values["model"] not in models:
                raise ValueError(f"the model is {values['model']}")
            values["recipe"] = hints["recipe"](**values["recipe"])
            values["runtime"] = RuntimeConfig(**values["runtime"])
            return kind(**values)

    @contextmanager
    def _config_errors(self, kind: str) -> Iterator[None]:
        """Raise UsageError that names ``config.json`` for errors in reading it."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UsageError(
                f"{self.path}: contains no config.json; use a run folder written by chromabox train or finetune"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"the setting {error} is missing" if isinstance(error, KeyError) else error
            raise UsageError(
                f"{self.path / 'config.json'}: damaged, or not the configuration of a {kind} run "
                f"({reason}); restore the file or start a new run"
            ) from error

    def read_checkpoint_metadata(self) -> dict[str, Any]:
        """Return the metadata of ``last.safetensors``. Raise ChromaboxError if this file is truncated or corrupt."""
        path = self.path / "last.safetensors"
        metadata = read_metadata(path)
        if metadata is None:
            raise ChromaboxError(
                f"{path}: truncated or corrupt checkpoint; "
                f"restore the file from a copy, or delete {self.path} and start the run again"
            )
        return metadata

    def resume_config(self, kind: type[ConfigT], options: RuntimeOptions, epochs: int | None = None) -> ConfigT:
        """Return the configuration for resuming the run, with the given runtime options and number of epochs.

        Raise UsageError if the run has no checkpoint, has already started more than ``epochs`` epochs, or uses a device
        that is not available, and ChromaboxError if the checkpoint is truncated or corrupt.
        """
        config = self.load_config(kind)
        if not self.is_started:
            raise UsageError(f"--resume {self.path}: the run stopped before its first checkpoint; start the run again")
        metadata = self.read_checkpoint_metadata()
        if epochs is not None:
            # The checkpoint of a run that was interrupted within an epoch contains the number of completed batches.
            started = len(self.metrics()) + bool(metadata.get("batch"))
            if epochs < max(started, 1):
                raise UsageError(
                    f"--epochs is {epochs}, but the number of epochs already started in {self.path} is {started}; "
                    "use a larger number"
                )
            config = replace(config, max_steps=None, recipe=replace(config.recipe, epochs=epochs))
        assert config.runtime is not None
        runtime = config.runtime.with_overrides(options)
        check_device(runtime.device)  # The run may have been started on a machine with other devices.
        return replace(config, runtime=runtime)

    def reject_changes(self, config: RunConfig, given: Any, allowed: Any, changeable: str) -> None:
        """Raise UsageError if an option that was given on resuming differs from the configuration of the run.

        Args:
            config: the configuration of the run.
            given: dataclass of all options. The first field is the positional argument, and nested dataclasses are
                groups of options.
            allowed: the same dataclass with default values, except for options that can be changed on resuming.
            changeable: the names of those options, for the message.
        """
        stored = {**_flatten(asdict(config)), "output": self.path}
        defaults = _flatten(asdict(allowed))
        positional, changes = next(iter(defaults)), []
        for name, value in _flatten(asdict(given)).items():
            old = stored.get(_OPTION_FIELDS.get(name, name))
            if value != defaults[name] and str(old) not in (str(value), os.path.abspath(str(value))):
                option = name if name == positional else f"--{name.replace('_', '-')}"
                changes.append(f"{option} from {'the default' if old is None else old} to {value}")
        if changes:
            raise UsageError(
                f"--resume {self.path}: cannot change {', '.join(changes)}; only {changeable} can be changed"
            )

    def metrics(self) -> list[EpochRecord]:
        """Return the records of the finished epochs."""
        return read_metrics(self.path)

    def save_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``, which marks the run as finished."""
        write_json(self.path / "summary.json", summary)

    def summary(self) -> dict[str, Any]:
        """Return the contents of ``summary.json``.

        Raise ChromaboxError if the file is damaged. Access to a missing value also raises ChromaboxError.
        """
        path = self.path / "summary.json"
        try:
            values = parse_json(path.read_text(encoding="utf-8"))
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise ChromaboxError(f"{path}: damaged, expected a JSON object; {RESTORE_ADVICE}")
        for name, kind in _SUMMARY_TYPES.items():
            if not isinstance(values.get(name, kind()), (kind, int) if kind is float else kind):
                raise ChromaboxError(f"{path}: {name} is {values[name]!r}, which is invalid; {RESTORE_ADVICE}")
        return StoredValues(str(path), values)


def train_pending(configs: Mapping[Path, ConfigT], train: Callable[[ConfigT, RunDir], None]) -> None:
    """Call ``train`` for every run that is not finished. An interrupted run keeps its stored configuration.

    Raise UsageError, before any training, if a folder contains a run with different settings, and ChromaboxError if
    the checkpoint of an interrupted run or the summary of a finished run is damaged.
    """
    runs = {path: RunDir(path) for path in configs}
    stored = {path: run.load_config(type(configs[path])) for path, run in runs.items() if run.is_started}
    for path, config in stored.items():
        if replace(config, runtime=None) != replace(configs[path], runtime=None):
            raise UsageError(f"{path}: contains a run with other settings; use another folder with -o or delete {path}")
        if runs[path].is_finished:
            runs[path].summary()
        else:
            runs[path].read_checkpoint_metadata()
    for path, config in configs.items():
        if path in stored and runs[path].is_finished:
            log.info(f"{path}: already finished, skipping")
            continue
        log.info(f"{path}: {'resuming' if path in stored else 'training'}")
        train(stored.get(path, config), runs[path])


def _flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a flat dictionary of the innermost items of a nested dictionary."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flatten(value) if isinstance(value, dict) else {name: value}
    return flat


def rename_keys(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return a copy of ``values`` with the keys in ``names`` renamed."""
    return {names.get(key, key): value for key, value in values.items()}


def package_versions() -> dict[str, str]:
    """Return the versions of Python, of this package, and of the libraries that affect the results of a run."""
    packages = ("chromabox", "torch", "numpy", "scikit-image", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def peak_memory_bytes() -> int:
    """Return the peak resident memory of this process in bytes."""
    # On Linux, ``ru_maxrss`` includes the memory of the parent process at the time of the fork. ``VmHWM`` does not.
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    max_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max_rss if sys.platform == "darwin" else max_rss * 1024
