"""Several processes as one: who we are, and what must be added up between us.

Nothing here knows who started the processes beyond the variables that ``torchrun`` sets (RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR, MASTER_PORT). One process is the common case and pays nothing.

Gradients are averaged by one all-reduce of one flat tensor after the backward pass. The nets here are small, so
overlapping communication with computation (what ``DistributedDataParallel`` is for) gains little, and a net that is
not wrapped keeps its parameter names in checkpoints.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
from jaxtyping import Float
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class DistInfo:
    """This process's place: ``rank`` in 0 … ``size`` − 1."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks on the terminal."""
        return self.rank == 0


@contextmanager
def init_distributed() -> Iterator[DistInfo]:
    """Join the group that torchrun describes, and leave it at the end; alone where there is none.

    Each process takes the GPU of its local rank; where there are fewer GPUs than processes, messages go through gloo,
    because nccl wants one GPU for each.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield DistInfo()
        return
    local_rank, local_size = (int(os.environ.get(name, "0")) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus:
        torch.cuda.set_device(local_rank % gpus)
    # Flags and saved sums are on the CPU, which nccl does not serve.
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus >= max(local_size, 1) else "gloo")
    try:
        yield DistInfo(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


def all_reduce_gradients(parameters: Sequence[nn.Parameter], dist_info: DistInfo) -> None:
    """Replace every gradient by its mean over the processes, in one message."""
    if dist_info.world_size == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist_info.world_size
    for gradient, piece in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(piece.view(gradient.shape))


def all_reduce_mean(values: Float[Tensor, " numbers"], dist_info: DistInfo) -> Float[Tensor, " numbers"]:
    """The mean of the processes' values, the same in each."""
    if dist_info.world_size == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / dist_info.world_size


def all_reduce_any(flag: bool, dist_info: DistInfo) -> bool:
    """Whether any process raised its flag, so that all leave the loop at the same step."""
    if dist_info.world_size == 1:
        return flag
    raised = torch.tensor(int(flag))
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return bool(raised.item())


def broadcast_object(value: T, dist_info: DistInfo) -> T:
    """The main process's value, in every process."""
    if dist_info.world_size == 1:
        return value
    box: list[T] = [value]
    dist.broadcast_object_list(box)
    return box[0]


def barrier(dist_info: DistInfo) -> None:
    """Go on only after the main process came here too: what it wrote before is there."""
    broadcast_object(None, dist_info)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose batch is that of all processes together (Ioffe & Szegedy 2015).

    PyTorch's own ``SyncBatchNorm`` needs a GPU; this one is plain differentiable arithmetic and runs under gloo. In
    evaluation it is ``nn.BatchNorm2d``.
    """

    def forward(self, input: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Normalise by the mean and variance of all processes' pixels; move the running statistics likewise."""
        if not self.training:
            return super().forward(input)
        values = input.float()
        count = torch.tensor([values.numel() / values.shape[1]], device=values.device)
        # Two rounds, mean first: squaring before subtracting would lose digits that one process would keep.
        dist.all_reduce(count)
        mean = differentiable.all_reduce(values.sum((0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = differentiable.all_reduce(centred.square().sum((0, 2, 3))) / count
        self._update_running_stats(mean, variance, count)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
            return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)
        return (centred * scale[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _update_running_stats(
        self, mean: Float[Tensor, " channels"], variance: Float[Tensor, " channels"], count: Float[Tensor, "1"]
    ) -> None:
        """Move the running statistics as ``nn.BatchNorm2d`` does: the variance unbiased, momentum None a plain mean."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), momentum)


def convert_sync_batchnorm(model: nn.Module, dist_info: DistInfo) -> None:
    """Exchange every ``nn.BatchNorm2d`` inside ``net`` for the synchronised one, keeping its parameters' identity."""
    if dist_info.world_size == 1:
        return
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.BatchNorm2d:
                twin = SyncBatchNorm2d(
                    child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
                )
                twin._parameters, twin._buffers = child._parameters, child._buffers
                twin.train(child.training)
                setattr(module, name, twin)
