"""Pixels in and out of the network: resizing, normalisation, the published augmentation."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STANDARD_DEVIATION = (0.229, 0.224, 0.225)

#: The crop removes 0 to 14 rows at the top and 1 to 15 at the bottom, and columns likewise.
CROP_RANGE = 15
#: Below this side a crop would leave too little of the image.
SMALLEST_CROPPED_SIDE = 4 * CROP_RANGE


@lru_cache(maxsize=1024)
def resize_taps(source: int, target: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bilinear interpolation from `source` to `target` pixels: the two source pixels of every target pixel, and the
    weight of the second, `[target]` each.

    Pixel centres are half-integers, there is no anti-aliasing, and what lies beyond the border is mirrored
    about the centre of the border pixel. These are the conventions of scikit-image's `resize` with order 1,
    which the released code uses in training and test.
    """
    position = (np.arange(target) + 0.5) * source / target - 0.5
    lower = np.floor(position).astype(int)
    taps = []
    for index in (lower, lower + 1):
        mirrored = np.where(index < 0, -index, np.where(index >= source, 2 * source - 2 - index, index))
        taps.append(torch.from_numpy(np.clip(mirrored, 0, source - 1)))
    return taps[0], taps[1], torch.from_numpy((position - lower).astype(np.float32))


def resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resizing of float `[..., H, W]` to `[..., height, width]`."""
    first, second, weight = (tap.to(pixels.device) for tap in resize_taps(pixels.shape[-2], height))
    rows = torch.lerp(pixels.index_select(-2, first), pixels.index_select(-2, second), weight[:, None])
    first, second, weight = (tap.to(pixels.device) for tap in resize_taps(pixels.shape[-1], width))
    return torch.lerp(rows.index_select(-1, first), rows.index_select(-1, second), weight)


def normalise(images: Tensor) -> Tensor:
    """RGB in 0..1, `[..., 3, H, W]`, less the ImageNet mean and over its standard deviation."""
    mean = torch.tensor(MEAN, device=images.device).view(3, 1, 1)
    deviation = torch.tensor(STANDARD_DEVIATION, device=images.device).view(3, 1, 1)
    return (images - mean) / deviation


def to_input(image: np.ndarray, size: int) -> Tensor:
    """Photograph uint8 `[H, W, 3]` to network input `[3, size, size]`; the aspect ratio is not kept."""
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float() / 255
    return normalise(resize(pixels, size, size))


def to_target(mask: np.ndarray, size: int) -> Tensor:
    """Ground truth uint8 `[H, W]` to a target in 0..1, `[1, size, size]`: soft at the border of the object,
    as published."""
    pixels = torch.from_numpy(np.ascontiguousarray(mask)).float() / 255
    return resize(pixels[None], size, size)


def augment(image: np.ndarray, mask: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The released augmentation: a random crop of up to 15 pixels at each side, then with probability 1/4 each
    a left-right or an up-down flip. (The paper mentions the flip alone.)

    Images with a side below 60 pixels are not cropped along it.
    """
    window = []
    for side in image.shape[:2]:
        start, end = int(random.integers(CROP_RANGE)), int(random.integers(CROP_RANGE)) + 1
        window.append(slice(start, side - end) if side >= SMALLEST_CROPPED_SIDE else slice(None))
    image, mask = image[tuple(window)], mask[tuple(window)]
    flip = random.integers(4)
    if flip < 2:
        image, mask = np.flip(image, axis=flip), np.flip(mask, axis=flip)
    return image, mask
