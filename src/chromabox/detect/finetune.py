"""From a labelled set and trained weights to a run folder: a detector is fine-tuned by the same loop as all nets."""

import copy
import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from chromabox.detect.data import load_detection_set
from chromabox.detect.evaluate import DetectionEvaluation, evaluate_detector, evaluate_predictions, held_out_split
from chromabox.detect.freeze import Frozen, depth_of, freeze
from chromabox.detect.intervals import paired_difference
from chromabox.detect.judge import Judge, fill_judge
from chromabox.detect.labelled import DetectionSet, in_classes_of, plain_name
from chromabox.detect.loss import DetectionLoss
from chromabox.detect.nets import DetectorNet
from chromabox.detect.prefix_cache import CachePrecision, PrefixCache, fill, open_cache, plan_cache
from chromabox.detect.rates import optimisers_of, schedule_of
from chromabox.detect.recipes import FinetuneRecipe, gentler
from chromabox.detect.surgery import with_classes
from chromabox.detect.views import (
    Batch,
    Parts,
    Views,
    cached_batches,
    chunks_of,
    fill_views,
    fresh_batches,
    parts_of,
    remembering,
    targets_of,
)
from chromabox.detect.weights import TrainedDetector, describe_detector, load_detector, save_detector
from chromabox.engine.checkpoint import write_json
from chromabox.engine.execution import Execution, choose_execution
from chromabox.engine.log import Record, read_metrics
from chromabox.engine.loop import Job, Plan, fit
from chromabox.engine.options import ExecutionOptions
from chromabox.errors import UsageError

#: Pictures that the probe draws and computes.
_PROBED = 4


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """One run, complete: what stands in ``config.json``."""

    data: str
    recipe: FinetuneRecipe
    weights: str = "yolov3-tiny"
    freeze: int | str = "backbone"
    """A number of layers, or a name of ``chromabox.detect.freeze``."""
    size: int = 416
    views: int = 4
    """Fixed views of each picture whose frozen layers' outputs are cached; 0: fresh views and no cache."""
    cache_memory: float = 1.0
    """GB of memory for both caches together; what is larger lies in a file of the run folder."""
    cache_precision: CachePrecision = "float16"
    keep_old: bool = False
    retain: str | None = None
    """A labelled set of old classes on which is measured what is left of them."""
    patience: int | None = None
    seed: int = 0
    execution: Execution | None = None
    net: str = "detector"


@dataclass(frozen=True)
class Beginning:
    """The detector before the first step, with the data's classes, and the parts of the data in its classes."""

    trained: TrainedDetector
    parts: Parts

    @property
    def new(self) -> bool:
        """Whether there are classes that the weights did not know."""
        return bool(self.trained.description.get("surgery", {}).get("new"))


@dataclass(frozen=True)
class Outcome:
    """What came of a run: ``summary.json``'s content, and both evaluations on the judging pictures."""

    summary: dict[str, Any]
    before: DetectionEvaluation
    after: DetectionEvaluation
    trained: TrainedDetector
    judge: DetectionSet


def finetune(
    config: FinetuneConfig,
    folder: Path,
    *,
    options: ExecutionOptions | None = None,
    resume: bool = False,
    say: Callable[[str], None] = print,
    after_epoch: Callable[[Record], None] = lambda record: None,
) -> Outcome:
    """Fine-tune into ``folder``, which then holds all that a colour run's holds and ``start.safetensors``.

    The folder is itself weights for ``load_detector``. ``options`` is asked where ``config.execution`` is None.
    Raises UsageError for settings that do not fit, ChromaboxError for data that cannot be used.
    """
    begun = begin(config, folder if resume else None)
    for line in begun.parts.told:
        say(line)
    net = copy.deepcopy(begun.trained.net).train()
    frozen = freeze(net, config.freeze, moving_statistics=config.recipe.moving_statistics)
    say(str(frozen))
    until = 0 if frozen.moving_statistics else frozen.layers
    loss = loss_of(net, config)
    views = Views(begun.parts.train, config.recipe.name, config.size, config.seed, remembering())
    if config.execution is None:
        config = replace(config, execution=_probe(config, options or ExecutionOptions(), net, until, loss, views, say))
    assert config.execution is not None
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", asdict(config))
    if not resume:
        save_detector(folder / "start.safetensors", begun.trained)
    config.execution.place(net)
    with ExitStack() as stack:
        caches = Caches(stack, config, folder, net, until, say)
        judge = caches.judge(begun.parts.judge, views)
        watch = judge if begun.parts.watch is None else caches.judge(begun.parts.watch, views)
        batches = caches.batches(views)
        job, plan = job_and_plan(config, begun, net, until, loss, watch, batches, len(views))
        trained = fit(
            job,
            plan,
            folder=folder,
            execution=config.execution,
            resume=resume,
            after_epoch=lambda record, net: after_epoch(record),
        )
        best = _best(folder, cast(DetectorNet, trained))
        start = copy.deepcopy(begun.trained.net).to(config.execution.device).eval()
        evaluations = [evaluate_predictions(judge.predict(one), judge.data) for one in (start, best.net)]
    before, after = evaluations
    summary = {
        **_summary(config, folder, frozen, caches.seconds),
        "before": _scores(before),
        "after": _scores(after),
        "difference": {
            name: {"value": found.value, "interval": list(found.interval)}
            for name, found in paired_difference(before.matches, after.matches).items()
        },
        "warnings": [*begun.parts.told, *after.warnings],
    }
    if config.retain is not None:
        summary["retained"] = _retained(config, begun.trained, best)
    write_json(folder / "summary.json", summary)
    return Outcome(summary, before, after, best, judge.data)


def begin(config: FinetuneConfig, run: Path | None) -> Beginning:
    """Weights and data made for each other; a run that goes on has in its folder what it began from."""
    trained = load_detector(config.weights if run is None else run / "start.safetensors")
    multiple = trained.architecture.multiple
    if config.size < multiple or config.size % multiple:
        raise UsageError(f"size is {config.size}: {trained.architecture.name} needs a multiple of {multiple}")
    if config.views < 0 or not config.cache_memory >= 0:
        raise UsageError(f"views is {config.views} and cache-memory {config.cache_memory}: neither can be below 0")
    data = load_detection_set(config.data)
    if data.named and run is None:
        trained = with_classes(trained, data.classes, config.keep_old)
    data, _ = in_classes_of(data, trained.classes)
    depth_of(trained.architecture, config.freeze)
    parts = parts_of(data, config.seed, watch=config.patience is not None)
    return Beginning(replace(trained, size=config.size), parts)


def loss_of(net: DetectorNet, config: FinetuneConfig) -> DetectionLoss:
    """The loss of the net's kind with the recipe's weights."""
    return DetectionLoss(
        net.architecture,
        net.kind,
        net.architecture.classes,
        cls_pw=config.recipe.class_weight,
        obj_pw=config.recipe.objectness_weight,
        size=config.size,
        recipe=config.recipe.name,
    )


class Caches:
    """The caches of a run, one after another from the memory that is allowed; they live as long as ``stack``."""

    def __init__(
        self,
        stack: ExitStack,
        config: FinetuneConfig,
        folder: Path,
        net: DetectorNet,
        until: int,
        say: Callable[[str], None],
    ) -> None:
        self.stack, self.config, self.folder, self.net, self.until, self.say = stack, config, folder, net, until, say
        assert config.execution is not None
        self.workers = config.execution.threads
        self.left = round(config.cache_memory * 1e9)
        #: Seconds that filling took.
        self.seconds = 0.0

    def open(self, pictures: int, precision: CachePrecision, name: str) -> PrefixCache:
        plan = plan_cache(self.net, self.until, self.config.size, pictures, precision)
        cache = self.stack.enter_context(open_cache(plan, self.folder / name, self.left, self.say))
        self.left -= plan.bytes if plan.bytes <= self.left else 0
        return cache

    def judge(self, data: DetectionSet, views: Views) -> Judge:
        """Plain views, exactly."""
        begin = time.perf_counter()
        cache = self.open(len(data.pictures), "float32", f"cache-{data.splits[0]}")
        judge = fill_judge(cache, self.net, self.until, data, self.config.size, views.read, workers=self.workers)
        self.seconds += time.perf_counter() - begin
        return judge

    def batches(self, views: Views) -> Callable[[int, int], Any]:
        """Training batches, from a cache where anything stands still and views are fixed."""
        config = self.config
        assert config.execution is not None
        device, batch = config.execution.device, config.recipe.batch_size
        if not self.until or not config.views:
            return fresh_batches(views, batch, device=device, workers=self.workers)
        begin = time.perf_counter()
        numbers = min(config.views, config.recipe.epochs)
        cache = self.open(numbers * len(views), config.cache_precision, "cache-train")
        boxes = fill_views(cache, self.net, self.until, views, numbers, workers=self.workers)
        self.seconds += time.perf_counter() - begin
        self.say(f"filling the caches took {self.seconds:.1f} s")
        return cached_batches(cache, boxes, len(views), batch, config.seed, device=device)


def losses_of(until: int, loss: DetectionLoss) -> Callable[[Callable[[Tensor], Tensor], Batch], dict[str, Tensor]]:
    """The terms of a batch, whose outputs of the first ``until`` layers are there already."""

    def losses(call: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
        kept, targets = batch
        # Never compiled, see _probe: what is called is the net itself.
        return loss(cast(DetectorNet, call).forward_rest(kept, until), targets)

    return losses


def job_and_plan(
    config: FinetuneConfig,
    begun: Beginning,
    net: DetectorNet,
    until: int,
    loss: DetectionLoss,
    watch: Judge,
    batches: Callable[[int, int], Any],
    pictures: int,
) -> tuple[Job[Batch], Plan]:
    recipe = config.recipe if begun.new else gentler(config.recipe)
    cached = bool(until and config.views)
    plan = Plan(
        epochs=recipe.epochs,
        steps_per_epoch=len(chunks_of(pictures, recipe.batch_size, config.seed, 0)),
        accumulate=recipe.accumulate,
        average_decay=recipe.average_decay,
        average_ramp=recipe.average_ramp,
        watch="val_ap50_missing" if begun.parts.watch is not None else None,
        patience=config.patience,
    )
    if recipe.average:
        decay = max(0.0, 1 - 1 / (recipe.average * plan.updates))
        plan = replace(plan, average_decay=decay, average_ramp=plan.updates / 50)
    optimisers = optimisers_of(net, recipe)
    description = {**describe_detector(begun.trained), "recipe": recipe.name, "data": Path(config.data).name}
    job = Job(
        net=net,
        optimisers=optimisers,
        batches=batches,
        losses=losses_of(until if cached else 0, loss),
        validate=lambda net: watch.measure(cast(DetectorNet, net), loss),
        schedule=schedule_of(recipe, optimisers, recipe.epochs, plan.steps_per_epoch),
        describe=lambda: description,
    )
    return job, plan


def _best(folder: Path, trained: DetectorNet) -> TrainedDetector:
    """The run's result, as whoever loads the folder gets it, where the net is."""
    best = load_detector(folder)
    best.net.to(next(trained.parameters()).device)
    return best


def _probe(
    config: FinetuneConfig,
    options: ExecutionOptions,
    net: DetectorNet,
    until: int,
    loss: DetectionLoss,
    views: Views,
    say: Callable[[str], None],
) -> Execution:
    """How to run, by measuring real steps on copies; tells what the run will take."""
    begin = time.perf_counter()
    count = min(_PROBED, len(views))
    drawn = [views.draw(0, index) for index in range(count)]
    drawing = (time.perf_counter() - begin) / count
    begin = time.perf_counter()
    cached = bool(until and config.views)
    depth = until if cached else 0
    plan = plan_cache(net, depth, config.size, count, "float32")
    cache = PrefixCache(plan, None)
    fill(cache, net, depth, (torch.from_numpy(pixels) for pixels, _ in drawn))
    computing = (time.perf_counter() - begin) / count
    many = [place % count for place in range(min(config.recipe.batch_size, len(views)))]
    kept, targets = cache.read(many), targets_of([drawn[place][1] for place in many])
    batches = len(chunks_of(len(views), config.recipe.batch_size, config.seed, 0))
    run = losses_of(depth, loss)

    def step(call: Callable[[Tensor], Tensor]) -> Tensor:
        device = next(cast(nn.Module, call).parameters()).device
        return run(call, ({layer: one.to(device) for layer, one in kept.items()}, targets.to(device)))["loss"]

    # What is trained is a part of the net, called by a method of its own, which torch.compile does not reach.
    steps = batches * config.recipe.epochs
    execution = choose_execution(replace(options, compiled="no"), net, step, steps)
    twin = copy.deepcopy(net).train()
    execution.place(twin)
    with execution.autocast():
        begin = time.perf_counter()
        step(cast(Callable[[Tensor], Tensor], twin)).backward()
        seconds = time.perf_counter() - begin
    epoch = batches * seconds + (0 if cached else len(views) * drawing / execution.threads)
    filling = min(config.views, config.recipe.epochs) * len(views) * (drawing + computing) if cached else 0.0
    say(
        f"{len(views):,} pictures train, {batches} batches an epoch, running on {execution}; about "
        + (f"{filling:.0f} s to fill the cache, then " if cached else "")
        + f"{epoch:.1f} s an epoch besides validation, "
        f"{(filling + epoch * config.recipe.epochs) / 60:.1f} minutes in all, and {peak_memory() / 1e9:.1f} GB of "
        "memory besides the caches"
    )
    return execution


def peak_memory() -> int:
    """The most memory, in bytes, that this process has had."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _scores(evaluation: DetectionEvaluation) -> dict[str, Any]:
    """An evaluation for ``summary.json``."""
    described = evaluation.as_json()
    return {name: described[name] for name in ("ap", "ap50", "ap_interval", "ap50_interval", "per_class")}


def _summary(config: FinetuneConfig, folder: Path, frozen: Frozen, filling: float) -> dict[str, Any]:
    records = read_metrics(folder)
    return {
        "net": "detector",
        "weights": config.weights,
        "data": config.data,
        "recipe": config.recipe.name,
        "seed": config.seed,
        "size": config.size,
        "frozen": frozen.as_json(),
        "epochs": int(records[-1]["epoch"]),
        "seconds_per_epoch": round(float(np.median([record["seconds"] for record in records])), 3),
        "seconds_filling": round(filling, 3),
        "seconds": round(sum(record["seconds"] for record in records) + filling, 3),
        "peak_memory": peak_memory(),
    }


def _retained(config: FinetuneConfig, start: TrainedDetector, best: TrainedDetector) -> dict[str, Any]:
    """Mean AP50 on the retention set of the classes known before and after; before is the weights' own net."""
    assert config.retain is not None
    data = load_detection_set(config.retain)
    chosen = held_out_split(data)
    data = data if chosen is None else data.split(chosen)
    old = load_detector(config.weights)
    if not data.named:
        data, _ = in_classes_of(data, old.classes)
    scores = {}
    for name, detector in (("before", old), ("after", best)):
        found = evaluate_detector(detector, data, size=config.size, draws=2)
        known = {plain_name(each): index for index, each in enumerate(found.classes)}
        shared = [plain_name(each) for each in old.classes if plain_name(each) in map(plain_name, best.classes)]
        values = found.coco.table[0, [known[each] for each in shared]]
        scores[name] = float(np.nanmean(values))
    return {"data": config.retain, "ap50_before": scores["before"], "ap50_after": scores["after"]}


def read_finetune_config(folder: Path) -> FinetuneConfig:
    """The configuration of a run's folder. Raises UsageError if it is none of fine-tuning."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        values["recipe"] = FinetuneRecipe(**values["recipe"])
        values["execution"] = Execution(**values["execution"])
        config = FinetuneConfig(**values)
        if config.net != "detector":
            raise ValueError(f"it is of a {config.net}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{folder}: holds no config.json of chromabox finetune; give the folder of a run that it began"
        ) from error
    return config
