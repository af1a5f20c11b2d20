"""What a fine-tuning run begins with, and what the training loop is told to do: weights, data, loss, rates.

The caches of a fine-tuning run and the batches that come from them.

How a fine-tuning run is best run on this machine, and how long it will take: measured on a few real pictures.

The optimisers of fine-tuning, and the rate, momentum and decay of every update as a recipe says.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from chromabox.detect.data.augment import read_pixels
from chromabox.detect.data.dataset import DetectionSet, in_classes_of
from chromabox.detect.data.load import load_detection_set
from chromabox.detect.models.darknet import DetectorNet
from chromabox.detect.training.batches import (
    Batch,
    Parts,
    Views,
    cached_batches,
    chunks_of,
    fill_views,
    fresh_batches,
    parts_of,
    targets_of,
)
from chromabox.detect.training.config import CachePrecision, FinetuneConfig
from chromabox.detect.training.feature_cache import PrefixCache, open_cache, plan_cache
from chromabox.detect.training.freeze import Frozen, depth_of, freeze, trainable_heads
from chromabox.detect.training.loss import DetectionLoss
from chromabox.detect.training.recipes import FinetuneRecipe, gentler
from chromabox.detect.training.transfer import OldNet, with_classes
from chromabox.detect.training.validator import Judge, fill_judge
from chromabox.detect.weights.load import TrainedDetector, describe_detector, load_detector
from chromabox.engine.autotune import Execution, choose_execution, device_of
from chromabox.engine.optim import KernelMuon
from chromabox.engine.runs import peak_memory
from chromabox.engine.runtime_options import ExecutionOptions
from chromabox.engine.trainer import Job, Plan, Settings
from chromabox.errors import UsageError


@dataclass(frozen=True)
class Beginning:
    """The detector before the first step, with the data's classes, and the parts of the data in its classes."""

    trained: TrainedDetector
    parts: Parts

    @property
    def new(self) -> int:
        """The number of classes that the weights did not know."""
        return len(self.trained.description.get("surgery", {}).get("new", ()))


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
        trained = with_classes(trained, data.classes, config.keep_old, surest=config.recipe.surest_new)
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


def freeze_for(config: FinetuneConfig, begun: Beginning, net: DetectorNet) -> Frozen:
    """Freeze what the configuration says, and all normalisation where the weights know all classes and so is wished."""
    recipe = config.recipe
    still = recipe.still_normalisation and not begun.new
    return freeze(net, config.freeze, moving_statistics=recipe.moving_statistics, still_normalisation=still)


def old_net_of(config: FinetuneConfig, begun: Beginning, loss: DetectionLoss, device: torch.device) -> OldNet | None:
    """What holds the old classes to what they were, where they are kept beside new ones and the recipe has it."""
    if not (config.recipe.old_net and config.keep_old and begun.new):
        return None
    net = copy.deepcopy(begun.trained.net).to(device).eval()
    return OldNet(net, len(begun.trained.classes) - begun.new, loss)


def losses_of(
    until: int, loss: DetectionLoss, old: OldNet | None = None
) -> Callable[[Callable[[Tensor], Tensor], Batch], dict[str, Tensor]]:
    """The terms of a batch, whose outputs of the first ``until`` layers are there already."""

    def losses(call: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
        kept, targets = batch
        # Never compiled, see the probe: what is called is the net itself.
        outputs = cast(DetectorNet, call).forward_rest(kept, until)
        if old is None:
            return loss(outputs, targets)
        opinion = old.look(kept, until, targets)
        terms, distances = loss(outputs, targets, opinion.sure), old.distances(outputs, opinion)
        return {**terms, **distances, "loss": terms["loss"] + torch.stack(list(distances.values())).sum()}

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
    recipe = config.recipe
    if not begun.new:
        recipe = gentler(recipe, recipe.gentle)
    elif config.keep_old:
        recipe = gentler(recipe, recipe.gentle_beside)
    old = old_net_of(config, begun, loss, next(net.parameters()).device)
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
        losses=losses_of(until if cached else 0, loss, old),
        validate=lambda net: watch.measure(cast(DetectorNet, net), loss),
        schedule=schedule_of(recipe, optimisers, recipe.epochs, plan.steps_per_epoch),
        describe=lambda: description,
    )
    return job, plan


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


#: Pictures that are tried: as many as go through the frozen layers at once.
_PROBED = 8


@dataclass(frozen=True)
class Costs:
    """Seconds, each measured after a first time that warms up."""

    read: float
    """To decode a picture."""
    view: float
    """To draw a view of decoded pictures and compute the frozen layers for it."""
    step: float
    """Of training on a batch."""
    judged: float
    """To validate on a picture."""


@dataclass(frozen=True)
class Probe:
    """What is tried: a net whose first ``until`` layers stand still, the data, and the loss."""

    config: FinetuneConfig
    net: DetectorNet
    until: int
    loss: DetectionLoss
    views: Views
    begun: Beginning

    @property
    def depth(self) -> int:
        """The layers whose outputs for training views are kept."""
        return self.until if self.config.views else 0

    def choose(self, options: ExecutionOptions, say: Callable[[str], None]) -> Execution:
        """How to run, by measuring real steps on copies; tells what the run will take."""
        config, few = self.config, self._few(self.views.data)
        cache = self._cache(self.depth, len(few.pictures))
        boxes = fill_views(cache, self.net, self.depth, replace(self.views, data=few), 1)
        places = [place % len(boxes) for place in range(min(config.recipe.batch_size, len(self.views)))]
        batch = cache.read(places), targets_of([boxes[place] for place in places])
        # What is trained is a part of the net, called by a method of its own, which torch.compile does not reach.
        options = replace(options, compiled="no")
        steps = self._batches() * config.recipe.epochs
        loss = self._loss(torch.device(device_of(options)), batch)
        execution = choose_execution(options, self.net, loss, steps)
        self._tell(self.costs(execution, cache, loss), execution, say)
        return execution

    def costs(
        self, execution: Execution, cache: PrefixCache, loss: Callable[[Callable[[Tensor], Tensor]], Tensor]
    ) -> Costs:
        """What things cost in the way of running that was chosen, on a copy of the net."""
        net = copy.deepcopy(self.net).train()
        execution.place(net)
        few = replace(self.views, data=self._few(self.views.data))
        read = _seconds(lambda: [read_pixels(one.path) for one in few.data.pictures]) / len(few)
        view = _seconds(lambda: fill_views(cache, net, self.depth, few, 1, workers=execution.threads)) / len(few)

        optimisers = optimisers_of(net, self.config.recipe)

        def backward() -> None:
            with execution.autocast():
                value = loss(cast(Callable[[Tensor], Tensor], net))
            value.backward()
            value.item()  # Waits for a graphics card to finish.

        step = _seconds(backward)
        step += _seconds(lambda: [one.step() for one in optimisers]) / self.config.recipe.accumulate
        data = self._few(self.begun.parts.watch or self.begun.parts.judge)
        own, size = self._cache(self.until, len(data.pictures)), self.config.size
        judge = fill_judge(own, net, self.until, data, size, self.views.read, workers=execution.threads)
        net.eval()
        return Costs(read, view, step, _seconds(lambda: judge.measure(net, self.loss)) / len(data.pictures))

    def _tell(self, costs: Costs, execution: Execution, say: Callable[[str], None]) -> None:
        config, parts = self.config, self.begun.parts
        watched = 0 if parts.watch is None else len(parts.watch.pictures)
        judged, count = len(parts.judge.pictures), len(self.views)
        views = min(config.views, config.recipe.epochs) * count if self.depth else 0
        filling = (views + judged + watched) * costs.view + (count + judged + watched) * costs.read
        epoch = self._batches() * costs.step + (watched or judged) * costs.judged
        # Without a cache views are drawn while the net computes, but not for nothing where cores are few.
        epoch += 0 if self.depth else count * costs.view
        say(
            f"{count:,} pictures train, {self._batches()} batches an epoch, running on {execution}; about "
            f"{filling:.0f} s to fill the caches, then {epoch:.1f} s an epoch, "
            f"{(filling + epoch * config.recipe.epochs) / 60:.1f} minutes in all, and {peak_memory() / 1e9:.1f} GB of "
            "memory besides the caches"
        )

    def _batches(self) -> int:
        return len(chunks_of(len(self.views), self.config.recipe.batch_size, self.config.seed, 0))

    def _cache(self, depth: int, views: int) -> PrefixCache:
        return PrefixCache(plan_cache(self.net, depth, self.config.size, views, "float32"), None)

    def _loss(self, device: torch.device, batch: Batch) -> Callable[[Callable[[Tensor], Tensor]], Tensor]:
        """The loss of a batch, as a function of what is called on it."""
        losses = losses_of(self.depth, self.loss, old_net_of(self.config, self.begun, self.loss, device))
        kept, targets = batch
        moved = {layer: one.to(device) for layer, one in kept.items()}, targets.to(device)
        return lambda call: losses(call, moved)["loss"]

    @staticmethod
    def _few(data: DetectionSet) -> DetectionSet:
        return replace(data, pictures=data.pictures[:_PROBED])


def _seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The middle of a few times after one that warms up."""
    durations = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        work()
        durations.append(time.perf_counter() - begin)
    return sorted(durations[1:])[repeats // 2]


Schedule = Callable[[int], Sequence[Sequence[Settings]]]


def optimisers_of(net: DetectorNet, recipe: FinetuneRecipe) -> list[torch.optim.Optimizer]:
    """The optimisers of whatever is not frozen, at their peak rates; groups without a parameter are left out.

    sgd: kernels, with weight decay; the weights of batch normalisation; biases. muon: Muon for kernels, with weight
    decay; AdamW for the heads' last kernels, whose rows mean different things each, and for everything else.
    """
    kernels, weights, biases = _by_role(net)
    if recipe.optimiser == "sgd":
        nominal = recipe.batch_size * recipe.accumulate / (recipe.nominal_batch or recipe.batch_size)
        groups: list[dict[str, Any]] = [
            {"params": kernels, "lr": recipe.learning_rate, "weight_decay": recipe.weight_decay * nominal},
            {"params": weights, "lr": recipe.other_learning_rate},
            {"params": biases, "lr": recipe.other_learning_rate},
        ]
        groups = [{**group, "bias": at == 2} for at, group in enumerate(groups) if group["params"]]
        return [torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=True)]
    heads = {id(parameter) for parameter in trainable_heads(net)}
    inner = [kernel for kernel in kernels if id(kernel) not in heads]
    last = [kernel for kernel in kernels if id(kernel) in heads]
    adam = torch.optim.AdamW([*last, *weights, *biases], lr=recipe.other_learning_rate, betas=(0.9, 0.99))
    adam.param_groups[0]["weight_decay"] = 0.0
    if not inner:
        return [adam]
    muon = KernelMuon(inner, recipe.learning_rate, recipe.weight_decay, recipe.momentum)
    return [muon, adam]


def _by_role(net: DetectorNet) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Trained kernels, weights of normalisation, biases."""
    trained = [parameter for parameter in net.named_parameters() if parameter[1].requires_grad]
    kernels = [parameter for _, parameter in trained if parameter.ndim == 4]
    weights = [parameter for name, parameter in trained if parameter.ndim == 1 and name.endswith("weight")]
    return kernels, weights, [parameter for name, parameter in trained if name.endswith("bias")]


def schedule_of(
    recipe: FinetuneRecipe, optimisers: Sequence[torch.optim.Optimizer], epochs: int, batches: int
) -> Schedule:
    """The settings of every update of a run of ``epochs`` epochs of ``batches`` batches.

    The course's cosine falls from epoch to epoch; ours are straight lines from update to update.
    """
    peaks = [[float(group["lr"]) for group in optimiser.param_groups] for optimiser in optimisers]
    biases = [[bool(group.get("bias")) for group in optimiser.param_groups] for optimiser in optimisers]
    updates = math.ceil(batches / recipe.accumulate)
    warm_up = recipe.warm_up(epochs, batches)

    def settings(update: int, peak: float, bias: bool) -> Settings:
        epoch, within = divmod(update, updates)
        batch = epoch * batches + within * recipe.accumulate
        if recipe.schedule == "cosine":
            fall = (1 + math.cos(math.pi * epoch / epochs)) / 2
            full = peak * (recipe.final_share + (1 - recipe.final_share) * fall)
            up = batch / warm_up if warm_up else 1.0
            low = recipe.warm_up_bias_rate if bias else 0.0
        else:
            # Half an update in: neither the first nor the last step is wasted on a rate of 0.
            place = batch + recipe.accumulate / 2
            left = (epochs * batches - place) / max(epochs * batches - warm_up, 1)
            full = peak * min(recipe.final_share + (1 - recipe.final_share) * left, 1.0)
            up, low = place / warm_up if warm_up else 1.0, 0.0
        found = {"lr": low + (full - low) * min(up, 1.0)}
        if recipe.warm_up_momentum is not None:
            start = recipe.warm_up_momentum
            found["momentum"] = start + (recipe.momentum - start) * min(up, 1.0)
        return found

    def schedule(update: int) -> Sequence[Sequence[Settings]]:
        return [
            [settings(update, peak, bias) for peak, bias in zip(*groups, strict=True)]
            for groups in zip(peaks, biases, strict=True)
        ]

    return schedule
