"""One training on several GPUs, machines or cores, started by `torchrun`, with the result of one process.

    torchrun --nproc-per-node 8 -m sodlib train --preset paper

On several machines, each with the training images, the same with `--nnodes 2 --node-rank 0 --master-addr HOST`, and
on the second one `--node-rank 1`; the record is written on the first.

Every process takes an equal part of every batch. The batch norms see the moments of the whole batch, and gradients,
loss and the pooled features of dynamic decay are averaged, so that all networks stay the same, and the same as in one
process but for rounding. The first process leads: it alone decides, scores and writes, and tells the others at every
step what to do. Without `torchrun` there is one process and nothing to exchange.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import torch
from torch import Tensor, distributed, nn

from .errors import SodlibError

#: For so long a process is waited for. The others wait while the first one scores on the test sets or prunes.
PATIENCE = timedelta(hours=1)
#: `torchrun` ends all processes within so many seconds after one has failed.
GRACE = 10


@cache
def join() -> None:
    """Meet the other processes that `torchrun` started; where there are GPUs, this one then works on that of its local
    rank. Without others, and after the first time, nothing happens. Raises SodlibError where a process lacks a GPU."""
    started = distributed.is_available() and distributed.is_torchelastic_launched()
    if not started or os.environ["WORLD_SIZE"] == "1":
        return
    backend = "gloo"
    if torch.cuda.is_available():
        place, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if place >= count:
            raise SodlibError(f"process {place} of this machine has no GPU; choose --nproc-per-node {count}")
        torch.cuda.set_device(place)
        # What the first process tells goes from memory to memory, so that no GPU is waited for.
        backend = "cpu:gloo,cuda:nccl"
    with _others_answer():
        distributed.init_process_group(backend, timeout=PATIENCE)


def leave() -> None:
    """Part from the others; from here on this process is alone."""
    if joined():
        distributed.destroy_process_group()


def dismiss() -> None:
    """Tell the others that there is nothing more to do, and leave. Only the first process calls this."""
    tell(None)
    leave()


def joined() -> bool:
    """Whether this process trains together with others."""
    return distributed.is_available() and distributed.is_initialized()


def part() -> tuple[int, int]:
    """This process's rank and how many there are: (0, 1) for one alone, the first of one."""
    return (distributed.get_rank(), distributed.get_world_size()) if joined() else (0, 1)


def tell(order: Any) -> None:
    """Hand something to all others, which `hear` it. Only the first process calls this."""
    if joined():
        with _others_answer():
            distributed.broadcast_object_list([order], device=torch.device("cpu"))


def hear() -> Any:
    """Wait for what the first process tells next."""
    orders = [None]
    with _others_answer():
        distributed.broadcast_object_list(orders, device=torch.device("cpu"))
    return orders[0]


@torch.no_grad()
def average(tensors: list[Tensor]) -> None:
    """Replace every tensor by its average over all processes, by one exchange; they share type and device."""
    if joined():
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        _reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(tensors, [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])


def norm_activation(x: Tensor, norm: nn.BatchNorm2d, activation: nn.PReLU) -> Tensor:
    """`octconv.norm_activation`, in training by the mean and variance of the whole batch, of which the processes hold
    equal parts. (torch's SyncBatchNorm does the same, on GPUs alone.)"""
    if not norm.training:
        return activation(norm(x))
    variance, mean = (moment.double() for moment in torch.var_mean(x, (0, 2, 3), correction=0))
    mean, square = _Average.apply(torch.stack([mean, variance + mean**2]))
    variance = square - mean**2
    with torch.no_grad():
        count = part()[1] * x[:, 0].numel()
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean.to(x.dtype), norm.momentum)
        norm.running_var.lerp_((variance * count / (count - 1)).to(x.dtype), norm.momentum)
    scale = norm.weight * (variance + norm.eps).rsqrt().to(x.dtype)
    mean, scale, shift = (values[:, None, None] for values in (mean.to(x.dtype), scale, norm.bias))
    return activation(torch.addcmul(shift, x - mean, scale))


class _Average(torch.autograd.Function):
    """The average over all processes. Backward, each one's gradient is the average of what all of them want."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _reduce(values.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _reduce(gradient.clone())


def _reduce(values: Tensor) -> Tensor:
    with _others_answer():
        distributed.all_reduce(values)
    return values.div_(part()[1])


@contextmanager
def _others_answer() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # The process that failed has said why, and `torchrun` now ends this one. Only where it does not, speak.
        time.sleep(GRACE)
        raise SodlibError(
            "another process of this training ended or did not answer; see its message, then run the same command again"
        ) from error
