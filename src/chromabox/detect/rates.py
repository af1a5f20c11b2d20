"""The optimisers of fine-tuning, and the rate, momentum and decay of every update as a recipe says."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from chromabox.detect.freeze import trainable_heads
from chromabox.detect.nets import DetectorNet
from chromabox.detect.recipes import FinetuneRecipe
from chromabox.engine.optim import KernelMuon
from chromabox.engine.trainer import Settings

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
