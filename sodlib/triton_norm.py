"""Batch norm and PReLU of a training step on CUDA, as Triton kernels.

They read a map twice forward and twice backward, and the sums that both need go by chunks of pixels, so that the whole
GPU has work and the result does not depend on the order. A program works on pixels x channels, laid out channels last,
in float32. Imported on CUDA alone, where torch brings Triton along.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from .octconv import norm_activation

#: Numbers in a block, channels in it at most, and programs that share one map.
BLOCK, CHANNELS, PROGRAMS = 4096, 32, 256


def kernel(*sizes: str) -> Any:
    """A Triton kernel that is not compiled anew for every value of these sizes."""
    return triton.jit(do_not_specialize=sizes)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@triton.jit
def _place(parts, length, pixels, channels, C: tl.constexpr):
    """The part of the pixels and the channels of this program: sample, first and last pixel, channels, their mask."""
    chunk = tl.program_id(0)
    first = (chunk % parts) * length
    c = tl.program_id(1) * C + tl.arange(0, C)
    return chunk // parts * pixels, first, tl.minimum(first + length, pixels), c, c < channels


@triton.jit
def _pixels(start, last, sample, channels, c, inside, P: tl.constexpr):
    """Where the next P pixels of a program lie, and which of them exist."""
    p = start + tl.arange(0, P)
    return (sample + p)[:, None] * channels + c[None, :], (p < last)[:, None] & inside[None, :]


@triton.jit
def _total(partial, index, count: tl.constexpr, chunks, channels, c, inside, CHUNKS: tl.constexpr):
    """Sum over the chunks of one of `count` partial sums `[chunks, count, channels]`."""
    chunk = tl.arange(0, CHUNKS)
    places = (chunk * count + index)[:, None] * channels + c[None, :]
    return tl.sum(tl.load(partial + places, (chunk < chunks)[:, None] & inside[None, :], 0.0), 0)


@kernel("parts", "length", "pixels")
def _norm_sums(x, partial, parts, length, pixels, channels, P: tl.constexpr, C: tl.constexpr):
    """Sums of the values and of their squares in every chunk, both from the map's first pixel, which keeps the squares
    from cancelling."""
    sample, first, last, c, inside = _place(parts, length, pixels, channels, C)
    origin = tl.load(x + c, inside, 0.0).to(tl.float32)[None, :]
    sums, squares = tl.zeros([P, C], tl.float32), tl.zeros([P, C], tl.float32)
    for start in range(first, last, P):
        places, mask = _pixels(start, last, sample, channels, c, inside, P)
        value = tl.load(x + places, mask, 0.0).to(tl.float32)
        value = tl.where(mask, value - origin, 0.0)
        sums += value
        squares += value * value
    place = partial + tl.program_id(0) * 2 * channels + c
    tl.store(place, tl.sum(sums, 0), inside)
    tl.store(place + channels, tl.sum(squares, 0), inside)


@kernel("chunks", "parts", "length", "pixels")
def _norm_forward(
    x, partial, gamma, beta, slope, running_mean, running_variance, batches, moments, y, pooled, momentum, eps,
    chunks, parts, length, pixels, channels, CHUNKS: tl.constexpr, P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Normalise and activate; the first chunk's programs also keep what the backward pass and the running statistics
    need. `moments` `[2, channels]`: mean and inverse deviation; `pooled` `[chunks, channels]`: sums of `y`."""
    sample, first, last, c, inside = _place(parts, length, pixels, channels, C)
    size = (chunks // parts * pixels).to(tl.float32)
    shift = _total(partial, 0, 2, chunks, channels, c, inside, CHUNKS) / size
    variance = _total(partial, 1, 2, chunks, channels, c, inside, CHUNKS) / size - shift * shift
    variance = tl.maximum(variance, 0.0)
    mean = tl.load(x + c, inside, 0.0).to(tl.float32) + shift
    inverse = 1.0 / tl.sqrt(variance + eps)
    # Masks, not branches: with branches, one gradient in eight checks on an H100 was wrong, for no known reason.
    keeps = inside & (tl.program_id(0) == 0)
    tl.store(moments + c, mean, keeps)
    tl.store(moments + channels + c, inverse, keeps)
    old_mean, old_variance = tl.load(running_mean + c, keeps, 0.0), tl.load(running_variance + c, keeps, 0.0)
    tl.store(running_mean + c, old_mean + momentum * (mean - old_mean), keeps)
    unbiased = variance * size / (size - 1.0)
    tl.store(running_variance + c, old_variance + momentum * (unbiased - old_variance), keeps)
    counts = tl.program_id(0) + tl.program_id(1) == 0
    tl.store(batches, tl.load(batches, counts, 0) + 1, counts)
    scale = (tl.load(gamma + c, inside, 0.0) * inverse)[None, :]
    bias, bend = tl.load(beta + c, inside, 0.0)[None, :], tl.load(slope + c, inside, 0.0)[None, :]
    sums = tl.zeros([P, C], tl.float32)
    for start in range(first, last, P):
        places, mask = _pixels(start, last, sample, channels, c, inside, P)
        value = (tl.load(x + places, mask, 0.0).to(tl.float32) - mean[None, :]) * scale + bias
        value = tl.where(value > 0, value, value * bend)
        tl.store(y + places, value.to(y.dtype.element_ty), mask)
        sums += tl.where(mask, value, 0.0)
    tl.store(pooled + tl.program_id(0) * channels + c, tl.sum(sums, 0), inside)


@triton.jit
def _bent(gradient, x, places, mask, moments, gamma, beta, bend, channels, c, inside):
    """The normalised value, what goes into PReLU, and the gradients after and before PReLU."""
    mean, inverse = tl.load(moments + c, inside, 0.0), tl.load(moments + channels + c, inside, 0.0)
    normal = (tl.load(x + places, mask, 0.0).to(tl.float32) - mean[None, :]) * inverse[None, :]
    value = normal * tl.load(gamma + c, inside, 0.0)[None, :] + tl.load(beta + c, inside, 0.0)[None, :]
    after = tl.load(gradient + places, mask, 0.0).to(tl.float32)
    return normal, value, after, tl.where(value > 0, after, after * bend)


@kernel("parts", "length", "pixels")
def _norm_gradient_sums(
    gradient, x, moments, gamma, beta, slope, partial, parts, length, pixels, channels,
    P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """The gradients of gamma, beta and slope, as sums over every chunk `[chunks, 3, channels]`."""
    sample, first, last, c, inside = _place(parts, length, pixels, channels, C)
    bend = tl.load(slope + c, inside, 0.0)[None, :]
    of_gamma, of_beta = tl.zeros([P, C], tl.float32), tl.zeros([P, C], tl.float32)
    of_slope = tl.zeros([P, C], tl.float32)
    for start in range(first, last, P):
        places, mask = _pixels(start, last, sample, channels, c, inside, P)
        normal, value, after, before = _bent(gradient, x, places, mask, moments, gamma, beta, bend, channels, c, inside)
        of_gamma += before * normal
        of_beta += before
        of_slope += tl.where(value > 0, 0.0, after * value)
    place = partial + tl.program_id(0) * 3 * channels + c
    tl.store(place, tl.sum(of_gamma, 0), inside)
    tl.store(place + channels, tl.sum(of_beta, 0), inside)
    tl.store(place + 2 * channels, tl.sum(of_slope, 0), inside)


@kernel("chunks", "parts", "length", "pixels")
def _norm_backward(
    gradient, x, moments, gamma, beta, slope, partial, of_x, of_parameters,
    chunks, parts, length, pixels, channels, CHUNKS: tl.constexpr, P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """The gradient of the input, and from the first chunk's programs those of gamma, beta and slope
    `[3, channels]`."""
    sample, first, last, c, inside = _place(parts, length, pixels, channels, C)
    of_gamma = _total(partial, 0, 3, chunks, channels, c, inside, CHUNKS)
    of_beta = _total(partial, 1, 3, chunks, channels, c, inside, CHUNKS)
    keeps = inside & (tl.program_id(0) == 0)
    of_slope = _total(partial, 2, 3, chunks, channels, c, keeps, CHUNKS)
    tl.store(of_parameters + c, of_gamma, keeps)
    tl.store(of_parameters + channels + c, of_beta, keeps)
    tl.store(of_parameters + 2 * channels + c, of_slope, keeps)
    size = (chunks // parts * pixels).to(tl.float32)
    along, level = (of_gamma / size)[None, :], (of_beta / size)[None, :]
    scale = (tl.load(gamma + c, inside, 0.0) * tl.load(moments + channels + c, inside, 0.0))[None, :]
    bend = tl.load(slope + c, inside, 0.0)[None, :]
    for start in range(first, last, P):
        places, mask = _pixels(start, last, sample, channels, c, inside, P)
        normal, _, _, before = _bent(gradient, x, places, mask, moments, gamma, beta, bend, channels, c, inside)
        tl.store(of_x + places, (scale * (before - level - normal * along)).to(of_x.dtype.element_ty), mask)


def _chunks(x: Tensor) -> tuple[tuple[int, int], tuple[int, ...], dict[str, int]]:
    """Grid, sizes (chunks, parts of a sample, pixels of a part and of a sample, channels) and block of the kernels of
    batch norm."""
    samples, channels, height, width = x.shape
    of_channels = min(CHANNELS, triton.next_power_of_2(channels))
    blocks, pixels, at_once = triton.cdiv(channels, of_channels), height * width, min(BLOCK // of_channels, 1024)
    parts = max(1, min(triton.cdiv(pixels, at_once), PROGRAMS // (samples * blocks)))
    length = triton.cdiv(pixels, parts)
    parts = triton.cdiv(pixels, length)
    sizes = (samples * parts, parts, length, pixels, channels)
    return (samples * parts, blocks), sizes, {"P": at_once, "C": of_channels, "num_warps": 8}


class _NormActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, slope: Tensor, norm: nn.BatchNorm2d) -> Any:
        grid, sizes, block = _chunks(x)
        chunks, channels = sizes[0], sizes[-1]
        partial, pooled, moments = (gamma.new_empty(rows, channels) for rows in (2 * chunks, chunks, 2))
        y = torch.empty_like(x)
        running = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
        _norm_sums[grid](x, partial, *sizes[1:], **block)
        _norm_forward[grid](
            x, partial, gamma, beta, slope, *running, moments, y, pooled, norm.momentum, norm.eps, *sizes,
            CHUNKS=triton.next_power_of_2(chunks), **block,
        )  # fmt: skip
        ctx.save_for_backward(x, moments, gamma, beta, slope)
        pooled = pooled.view(len(x), -1, channels).sum(1) / sizes[3]
        ctx.mark_non_differentiable(pooled)
        ctx.set_materialize_grads(False)
        return y, pooled

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: None) -> Any:
        x, *others = ctx.saved_tensors
        grid, sizes, block = _chunks(x)
        gradient, of_x = channels_last(gradient), torch.empty_like(x)
        partial, of_parameters = (others[0].new_empty(3 * count * sizes[-1]) for count in (sizes[0], 1))
        _norm_gradient_sums[grid](gradient, x, *others, partial, *sizes[1:], **block)
        _norm_backward[grid](
            gradient, x, *others, partial, of_x, of_parameters, *sizes, CHUNKS=triton.next_power_of_2(sizes[0]), **block
        )
        return of_x, *of_parameters.view(3, -1), None


def norm_activation_triton(x: Tensor, norm: nn.BatchNorm2d, activation: nn.PReLU) -> Tensor:
    """`octconv.norm_activation` on CUDA; leaves the features' means over the pixels `[B, C]` with them, as the
    attribute `pooled`. Outside training, and for one pixel in all, torch does it."""
    if not norm.training or x[:, 0].numel() < 2:
        return norm_activation(x, norm, activation)
    features, pooled = _NormActivation.apply(channels_last(x), norm.weight, norm.bias, activation.weight, norm)
    features.pooled = pooled
    return features
