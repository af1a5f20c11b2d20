"""The configuration of a fine-tuning run: what its ``config.json`` holds, and reading it."""

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
    """One run, complete: what stands in ``config.json``."""

    data: str
    recipe: FinetuneRecipe
    weights: str = "yolov3-tiny"
    freeze: int | str = "backbone"
    """A number of layers, or a name of ``chromabox.detect.training.freeze``."""
    size: int = 416
    num_cached_views: int = 4
    """Fixed views of each picture whose frozen layers' outputs are cached; 0: fresh views and no cache."""
    cache_memory_gb: float = 1.0
    """GB of memory for both caches together; what is larger lies in a file of the run folder."""
    cache_precision: CachePrecision = "float16"
    keep_old_classes: bool = False
    retention_data: str | None = None
    """A labelled set of old classes on which is measured what is left of them."""
    patience: int | None = None
    seed: int = 0
    runtime: RuntimeConfig | None = None
    model: str = "detector"


def read_finetune_config(folder: Path) -> FinetuneConfig:
    """The configuration of a run's folder. Raises UsageError if it is none of fine-tuning."""
    try:
        values = read_config_values(folder)
        values["recipe"] = FinetuneRecipe(**values["recipe"])
        values["runtime"] = RuntimeConfig(**values["runtime"])
        config = FinetuneConfig(**values)
        if config.model != "detector":
            raise ValueError(f"it is of a {config.model}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{folder}: holds no config.json of chromabox finetune; give the folder of a run that it began"
        ) from error
    return config
