"""Distributed training: process group, all-reduce operations and synchronised BatchNorm.

The process group is configured by the environment variables of ``torchrun`` (RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR, MASTER_PORT). All functions return immediately for a single process.

Gradients are averaged by a single all-reduce of one flat tensor after the backward pass. ``DistributedDataParallel``,
which overlaps communication and computation, would save little time, because the models are small. It would also change
the parameter names in checkpoints.
"""

import logging
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
    """Rank of this process (0 to ``world_size`` − 1), and number of processes."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints to the terminal."""
        return self.rank == 0


@contextmanager
def init_distributed() -> Iterator[DistInfo]:
    """Join torchrun's process group within the context. Without torchrun, yield a group of one process.

    Each process uses the GPU of its local rank. With fewer GPUs than processes, the backend is gloo, because nccl
    requires one GPU per process.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield DistInfo()
        return
    local_rank, local_size = (int(os.environ.get(name, "0")) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus:
        torch.cuda.set_device(local_rank % gpus)
    # Flags and restored metric sums are on the CPU, for which nccl has no operations.
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus >= max(local_size, 1) else "gloo")
    if dist.get_rank():
        logging.getLogger("chromabox").setLevel(logging.ERROR)  # Only the main process prints.
    try:
        yield DistInfo(dist.get_rank(), world_size)
    finally:
        dist.destroy_process_group()


def all_reduce_gradients(parameters: Sequence[nn.Parameter], dist_info: DistInfo) -> None:
    """Replace every gradient by its mean over the processes, with one all-reduce."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if dist_info.world_size == 1 or not gradients:
        return
    flat = all_reduce_mean(torch.cat([gradient.reshape(-1) for gradient in gradients]), dist_info)
    for gradient, piece in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(piece.view(gradient.shape))


def all_reduce_mean(values: Float[Tensor, " values"], dist_info: DistInfo) -> Float[Tensor, " values"]:
    """Return, in every process, the elementwise mean of ``values`` over the processes."""
    if dist_info.world_size == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / dist_info.world_size


def all_reduce_any(flag: bool, dist_info: DistInfo) -> bool:
    """Return, in every process, whether the flag is true in at least one process."""
    return all_reduce_mean(torch.tensor([float(flag)]), dist_info).item() > 0


def broadcast_object(value: T, dist_info: DistInfo) -> T:
    """Return, in every process, the ``value`` of the main process."""
    if dist_info.world_size == 1:
        return value
    values: list[T] = [value]
    dist.broadcast_object_list(values)
    return values[0]


def barrier(dist_info: DistInfo) -> None:
    """Wait until the main process also calls this function, so that all files it wrote earlier exist."""
    broadcast_object(None, dist_info)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes (Ioffe & Szegedy 2015).

    PyTorch's ``SyncBatchNorm`` requires a GPU. This class uses differentiable all-reduce operations and also supports
    the gloo backend. In evaluation mode, the output is equal to that of ``nn.BatchNorm2d``.
    """

    def forward(self, input: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Normalise by the mean and variance over the batches of all processes, and update the running statistics."""
        if not self.training:
            return super().forward(input)
        values = input.float()
        count = torch.tensor([values.numel() / values.shape[1]], device=values.device)
        # The mean is reduced first, because a variance computed as mean square minus squared mean would be imprecise.
        dist.all_reduce(count)
        mean = differentiable.all_reduce(values.sum((0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = differentiable.all_reduce(centred.square().sum((0, 2, 3))) / count
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            # As in ``nn.BatchNorm2d``, the running variance is unbiased, and without momentum, averages are cumulative.
            with torch.no_grad():
                self.num_batches_tracked += 1
                momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), momentum)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        output = centred * scale[:, None, None]
        return (output + self.bias[:, None, None] if self.affine else output).to(input.dtype)


def convert_sync_batchnorm(model: nn.Module, dist_info: DistInfo) -> None:
    """Replace every ``nn.BatchNorm2d`` in ``model`` with a ``SyncBatchNorm2d`` that has the same parameter objects."""
    if dist_info.world_size == 1:
        return
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.BatchNorm2d:
                sync_norm = SyncBatchNorm2d(
                    child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
                )
                sync_norm._parameters, sync_norm._buffers = child._parameters, child._buffers
                sync_norm.train(child.training)
                setattr(module, name, sync_norm)
