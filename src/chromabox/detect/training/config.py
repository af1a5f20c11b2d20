"""Configuration of a fine-tuning run, stored as ``config.json`` in its folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from chromabox.detect.training.recipes import FinetuneRecipe
from chromabox.engine.autotune import RuntimeConfig
from chromabox.engine.runs import read_config_values
from chromabox.errors import UsageError

CachePrecision = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """All settings of one run; the contents of ``config.json``."""

    data: str
    recipe: FinetuneRecipe
    weights: str = "yolov3-tiny"
    freeze: int | str = "backbone"
    """Number of layers to freeze, or a name accepted by ``chromabox.detect.training.freeze``."""
    size: int = 416
    num_cached_views: int = 4
    """Augmented views per image whose frozen-layer features are cached; 0: no cache, new augmentation every epoch."""
    cache_memory_gb: float = 1.0
    """Maximum memory in GB for all caches together; larger caches are memory-mapped files in the run folder."""
    cache_precision: CachePrecision = "float16"
    keep_old_classes: bool = False
    retention_data: str | None = None
    """Labelled dataset used to measure how well the original classes are retained."""
    patience: int | None = None
    seed: int = 0
    runtime: RuntimeConfig | None = None
    model: str = "detector"


def read_finetune_config(folder: Path) -> FinetuneConfig:
    """Read the configuration of a run. Raise UsageError if the folder contains no fine-tuning run."""
    try:
        values = read_config_values(folder)
        values["recipe"] = FinetuneRecipe(**values["recipe"])
        values["runtime"] = RuntimeConfig(**values["runtime"])
        config = FinetuneConfig(**values)
        if config.model != "detector":
            raise ValueError(f"run of model {config.model}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{folder}: no valid config.json of a fine-tuning run; expected a folder written by chromabox finetune"
        ) from error
    return config
