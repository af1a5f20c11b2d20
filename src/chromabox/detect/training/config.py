"""Configuration of a fine-tuning run, stored as ``config.json`` in its folder."""

from dataclasses import dataclass
from typing import Literal

from chromabox.detect.training.recipes import FinetuneRecipe
from chromabox.engine.runs import RunConfig

CachePrecision = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """All settings of one run; the contents of ``config.json``."""

    model: Literal["detector"] = "detector"
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
