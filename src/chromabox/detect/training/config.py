"""Configuration of a fine-tuning run, stored as ``config.json`` in its folder."""

from dataclasses import dataclass
from typing import Literal

from chromabox.detect.training.recipes import FinetuneRecipe
from chromabox.engine.runs import RunConfig

CachePrecision = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """Settings of a fine-tuning run: the contents of ``config.json``."""

    model: Literal["detector"] = "detector"
    recipe: FinetuneRecipe
    weights: str = "yolov3-tiny"
    freeze: int | str = "backbone"
    """Number of layers to freeze, ``none``, ``backbone`` or ``auto``."""
    size: int = 416
    num_cached_views: int = 4
    """Number of augmented views per image whose features are cached. 0: no cache, and new views in every epoch."""
    cache_memory_gb: float = 1.0
    """Maximum memory in GB for all feature caches. Caches that do not fit are memory-mapped files in the run folder."""
    cache_precision: CachePrecision = "float16"
    classes: list[str] | None = None
    """Names or numbers of the dataset's classes to use. None: all classes."""
    keep_old_classes: bool = False
    new_classes: list[str] | None = None
    """Classes of the dataset that are new although the weights have a class of this name. []: all classes."""
    retention_data: str | None = None
    """Labelled dataset on which AP50 of the original classes is measured before and after fine-tuning."""
