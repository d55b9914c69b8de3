"""Pixels in and out of the network: resizing and normalisation."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STANDARD_DEVIATION = (0.229, 0.224, 0.225)


def taps(source: np.ndarray, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bilinear interpolation from `source` pixels (any shape `[...]`) to `target` pixels: the two source pixels of
    every target pixel, and the weight of the second, `[..., target]` each.

    Pixel centres are half-integers, there is no anti-aliasing, and what lies beyond the border is mirrored
    about the centre of the border pixel. These are the conventions of scikit-image's `resize` with order 1,
    which the released code uses in training and test.
    """
    source = np.asarray(source)[..., None]
    position = (np.arange(target) + 0.5) * source / target - 0.5
    lower = np.floor(position).astype(np.int64)
    pixels = []
    for index in (lower, lower + 1):
        mirrored = np.where(index < 0, -index, np.where(index >= source, 2 * source - 2 - index, index))
        pixels.append(np.clip(mirrored, 0, source - 1))
    return pixels[0], pixels[1], (position - lower).astype(np.float32)


@lru_cache(maxsize=1024)
def _side_taps(source: int, target: int) -> tuple[Tensor, ...]:
    return tuple(map(torch.from_numpy, taps(np.array(source), target)))


def resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resizing of float `[..., H, W]` to `[..., height, width]`."""
    first, second, weight = (tap.to(pixels.device) for tap in _side_taps(pixels.shape[-2], height))
    rows = torch.lerp(pixels.index_select(-2, first), pixels.index_select(-2, second), weight[:, None])
    first, second, weight = (tap.to(pixels.device) for tap in _side_taps(pixels.shape[-1], width))
    return torch.lerp(rows.index_select(-1, first), rows.index_select(-1, second), weight)


def normalise(images: Tensor) -> Tensor:
    """RGB in 0..1, `[..., 3, H, W]`, less the ImageNet mean and over its standard deviation."""
    mean, deviation = _statistics(images.device)
    return (images - mean) / deviation


@lru_cache
@torch.inference_mode(False)
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Kept on the device: a copy from the host at every batch would make it wait."""
    return tuple(
        torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1) for values in (MEAN, STANDARD_DEVIATION)
    )


def to_input(image: np.ndarray, size: int) -> Tensor:
    """Photograph uint8 `[H, W, 3]` to network input `[3, size, size]`; the aspect ratio is not kept."""
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float() / 255
    return normalise(resize(pixels, size, size))


def to_target(mask: np.ndarray, size: int) -> Tensor:
    """Ground truth uint8 `[H, W]` to a target in 0..1, `[1, size, size]`: soft at the border of the object,
    as published."""
    pixels = torch.from_numpy(np.ascontiguousarray(mask)).float() / 255
    return resize(pixels[None], size, size)
