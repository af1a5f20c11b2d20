"""What a trained UNet's skips are worth to it: its score when what they carry is taken away or is another picture's.

This tells how much the net that was trained relies on a skip, not what a net trained without it would reach.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from chromabox.colour.data import Pictures
from chromabox.colour.loss import loss_and_accuracy
from chromabox.colour.nets import UNet

Change = Callable[[Tensor], Tensor]

#: What is done to what a skip carries. "shuffled": each picture of a batch gets the one before its own, so that the
#: values are as ever but say nothing of the picture (unless it is alone in its batch).
CHANGES: Mapping[str, Change] = {"zeroed": torch.zeros_like, "shuffled": lambda carried: carried.roll(1, 0)}
#: The skips: block 1's output, shown to block 4 ("half", for its resolution), and the input, shown to the last layer.
SKIPS = ("half", "input")


@contextmanager
def skips_changed(net: UNet, changes: Mapping[str, Change]) -> Iterator[None]:
    """Within, the named skips carry what their change makes of what they would carry."""
    readers = {"half": (net.block4, net.block3), "input": (net.last, net.block4)}
    hooks = []
    for skip, change in changes.items():
        reader, before = readers[skip]
        own = _channels(before)  # The skip's channels come after those of the layer before.
        hooks.append(reader.register_forward_pre_hook(_changing(own, change)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _changing(own: int, change: Change) -> Callable[[nn.Module, tuple[Tensor]], Tensor]:
    def changed(reader: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        (features,) = inputs
        return torch.cat([features[:, :own], change(features[:, own:])], 1)

    return changed


def _channels(block: nn.Module) -> int:
    outputs: int = block.get_submodule("0").out_channels  # type: ignore[assignment]
    return outputs


def ablate_skips(net: UNet, pictures: Pictures) -> dict[tuple[str, str], tuple[float, float]]:
    """Loss (nats a pixel) and accuracy (0 to 1) by (skip, change); ("none", "intact") is the net as it is.

    Skips are "half", "input", and "both" of them. The net should be in evaluation mode.
    """
    found = {("none", "intact"): loss_and_accuracy(net, pictures.grey, pictures.labels)}
    for name, skips in (*((skip, (skip,)) for skip in SKIPS), ("both", SKIPS)):
        for how, change in CHANGES.items():
            with skips_changed(net, dict.fromkeys(skips, change)):
                found[name, how] = loss_and_accuracy(net, pictures.grey, pictures.labels)
    return found
