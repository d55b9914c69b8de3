"""What gOctConv does beside its convolutions in a training step on CUDA, as Triton kernels.

Pooling, and the sum with an upsampled map. A program works on columns x channels of one row, laid out channels last,
in float32. Imported on CUDA alone, where torch brings Triton along.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from .triton_norm import CHANNELS, channels_last, kernel

#: Numbers in a block.
BLOCK = 1024


@triton.jit
def _block(width, channels, W: tl.constexpr, C: tl.constexpr):
    """Columns, channels and their mask of a program that works on one row."""
    x, c = tl.program_id(1) * W + tl.arange(0, W), tl.program_id(2) * C + tl.arange(0, C)
    return x[:, None], c[None, :], (x < width)[:, None] & (c < channels)[None, :]


@kernel("height", "width")
def _mix_forward(
    base, low, y, height, width, channels, FACTOR: tl.constexpr, BASE: tl.constexpr, W: tl.constexpr, C: tl.constexpr
):
    """`low` `[B, C, height, width]`, upsampled; with BASE, added to `base`."""
    row, x_low = tl.program_id(0), width * FACTOR
    x, c, mask = _block(x_low, channels, W, C)
    from_y = tl.maximum((row % (height * FACTOR) + 0.5) / FACTOR - 0.5, 0.0)
    from_x = tl.maximum((x + 0.5) / FACTOR - 0.5, 0.0)
    top, left = from_y.to(tl.int32), from_x.to(tl.int32)
    down, right = from_y - top, from_x - left
    above = (row // (height * FACTOR) * height + top) * width
    below = above + tl.where(top + 1 < height, width, 0)
    beside = tl.minimum(left + 1, width - 1)
    upper = tl.load(low + (above + left) * channels + c, mask, 0.0).to(tl.float32) * (1 - right)
    upper += tl.load(low + (above + beside) * channels + c, mask, 0.0).to(tl.float32) * right
    lower = tl.load(low + (below + left) * channels + c, mask, 0.0).to(tl.float32) * (1 - right)
    lower += tl.load(low + (below + beside) * channels + c, mask, 0.0).to(tl.float32) * right
    value = upper * (1 - down) + lower * down
    places = (row * x_low + x) * channels + c
    if BASE:
        value += tl.load(base + places, mask, 0.0).to(tl.float32)
    tl.store(y + places, value.to(y.dtype.element_ty), mask)


@kernel("height", "width")
def _mix_backward(gradient, of_low, height, width, channels, FACTOR: tl.constexpr, W: tl.constexpr, C: tl.constexpr):
    """Every low pixel gathers from the 2 FACTOR x 2 FACTOR pixels that it was spread over."""
    row = tl.program_id(0)
    x, c, mask = _block(width, channels, W, C)
    y = row % height
    value = tl.zeros([W, C], tl.float32)
    for i in range(2 * FACTOR):
        at_y = y * FACTOR - FACTOR // 2 + i
        from_y = tl.minimum(tl.maximum((at_y + 0.5) / FACTOR - 0.5, 0.0), height - 1.0)
        share_y = tl.maximum(1.0 - tl.abs(from_y - y), 0.0)
        exists = (at_y >= 0) & (at_y < height * FACTOR)
        line = (row // height * height * FACTOR + at_y) * width * FACTOR
        for j in tl.static_range(2 * FACTOR):
            at_x = x * FACTOR - FACTOR // 2 + j
            from_x = tl.minimum(tl.maximum((at_x + 0.5) / FACTOR - 0.5, 0.0), width - 1.0)
            share = share_y * tl.maximum(1.0 - tl.abs(from_x - x), 0.0)
            there = mask & exists & (at_x >= 0) & (at_x < width * FACTOR)
            value += share * tl.load(gradient + (line + at_x) * channels + c, there, 0.0).to(tl.float32)
    tl.store(of_low + (row * width + x) * channels + c, value.to(of_low.dtype.element_ty), mask)


@kernel("height", "width")
def _pool_forward(
    x, y, chosen, height, width, channels, SIDE: tl.constexpr, MAX: tl.constexpr, W: tl.constexpr, C: tl.constexpr
):
    """The mean of SIDE x SIDE pixels, or with MAX the largest and which it is; `height` and `width` of `y`."""
    row = tl.program_id(0)
    column, c, mask = _block(width, channels, W, C)
    value = tl.zeros([W, C], tl.float32)
    which = tl.zeros([W, C], tl.int32)
    for k in tl.static_range(SIDE * SIDE):
        line = (row * SIDE + k // SIDE) * width * SIDE
        one = tl.load(x + (line + column * SIDE + k % SIDE) * channels + c, mask, 0.0).to(tl.float32)
        if MAX:
            better = (one > value) | (k == 0)
            value, which = tl.where(better, one, value), tl.where(better, k, which)
        else:
            value += one / (SIDE * SIDE)
    places = (row * width + column) * channels + c
    tl.store(y + places, value.to(y.dtype.element_ty), mask)
    if MAX:
        tl.store(chosen + places, which.to(tl.uint8), mask)


@kernel("width")
def _pool_backward(
    gradient, chosen, of_x, width, channels, SIDE: tl.constexpr, MAX: tl.constexpr, W: tl.constexpr, C: tl.constexpr
):
    row = tl.program_id(0)
    x, c, mask = _block(width, channels, W, C)
    places = (row // SIDE * (width // SIDE) + x // SIDE) * channels + c
    value = tl.load(gradient + places, mask, 0.0).to(tl.float32)
    if MAX:
        mine = row % SIDE * SIDE + x % SIDE
        value = tl.where(tl.load(chosen + places, mask, 0) == mine, value, 0.0)
    else:
        value = value / (SIDE * SIDE)
    tl.store(of_x + (row * width + x) * channels + c, value.to(of_x.dtype.element_ty), mask)


def _empty(x: Tensor, height: int, width: int) -> Tensor:
    """A map of another size."""
    return torch.empty((*x.shape[:2], height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _rows(x: Tensor) -> tuple[tuple[int, int, int], dict[str, int]]:
    """Grid and block of the kernels that work row by row on `x`."""
    samples, channels, height, width = x.shape
    of_channels = min(CHANNELS, triton.next_power_of_2(channels))
    columns = min(triton.next_power_of_2(width), BLOCK // of_channels)
    grid = (samples * height, triton.cdiv(width, columns), triton.cdiv(channels, of_channels))
    return grid, {"W": columns, "C": of_channels}


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, base: Tensor | None, low: Tensor, factor: int) -> Tensor:
        ctx.factor, ctx.added, (height, width) = factor, base is not None, low.shape[2:]
        y = _empty(low, factor * height, factor * width)
        grid, block = _rows(y)
        _mix_forward[grid](base, low, y, height, width, low.shape[1], factor, ctx.added, **block)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        gradient = channels_last(gradient)
        of_low = _empty(gradient, *(length // ctx.factor for length in gradient.shape[2:]))
        grid, block = _rows(of_low)
        _mix_backward[grid](gradient, of_low, *of_low.shape[2:], of_low.shape[1], ctx.factor, **block)
        return gradient if ctx.added else None, of_low, None


def upsampled_sum_triton(base: Tensor | None, low: Tensor, factor: int) -> Tensor:
    """`octconv.upsampled_sum` on CUDA, in the precision of the maps where autocast would take float32."""
    return _Mix.apply(base if base is None else channels_last(base), channels_last(low), factor)


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, side: int, largest: bool) -> Tensor:
        height, width = (length // side for length in x.shape[2:])
        y = _empty(x, height, width)
        ctx.side, ctx.shape, ctx.largest = side, x.shape, largest
        ctx.chosen = torch.empty_like(y, dtype=torch.uint8) if largest else None
        grid, block = _rows(y)
        _pool_forward[grid](x, y, ctx.chosen, height, width, x.shape[1], side, largest, **block)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        gradient, of_x = channels_last(gradient), _empty(gradient, *ctx.shape[2:])
        grid, block = _rows(of_x)
        _pool_backward[grid](gradient, ctx.chosen, of_x, ctx.shape[3], ctx.shape[1], ctx.side, ctx.largest, **block)
        return of_x, None, None


def max_pool_triton(x: Tensor, side: int) -> Tensor:
    """`F.max_pool2d` on CUDA; as in torch, the gradient goes to the first of equal pixels."""
    return _pool(x, side, True)


def average_pool_triton(x: Tensor, side: int) -> Tensor:
    """`F.avg_pool2d` on CUDA."""
    return _pool(x, side, False)


def _pool(x: Tensor, side: int, largest: bool) -> Tensor:
    if x.shape[2] % side or x.shape[3] % side:
        return (F.max_pool2d if largest else F.avg_pool2d)(x, side)
    return _Pool.apply(channels_last(x), side, largest)
