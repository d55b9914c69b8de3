"""Decoded images in one memory-mapped file, and training batches cut out of it on the device.

Decoding a JPEG at every step costs more than what a GPU does with it. Here every image of a set is decoded once; a
pixel is one 32-bit word of red, green, blue and ground truth, so that a batch is four gathers (the taps of bilinear
interpolation) wherever the words lie: in a file that all processes of a machine share, or in the GPU's memory.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .data import SaliencySet, read_pair
from .errors import SodlibError
from .images import normalise, taps
from .records import REPOSITORY

#: In a checkout below its build folder; a copy of the package without one uses the person's own.
_CHECKOUT = (REPOSITORY / "pyproject.toml").exists()
CACHE = REPOSITORY / "build" / "cache" if _CHECKOUT else Path.home() / ".cache" / "sodlib"

#: The released crop removes 0 to 14 rows at the top and 1 to 15 at the bottom, and columns likewise.
CROP_RANGE = 15
#: Below this side a crop would leave too little of the image.
SMALLEST_CROPPED_SIDE = 4 * CROP_RANGE
AUGMENTATIONS = ("released", "written", "stronger")
#: Of "stronger": the largest part of a side that is cut off at each end, and how far contrast and brightness (in
#: standard deviations) go.
CROP_SHARE, CONTRAST, BRIGHTNESS = 0.2, 0.3, 0.4


@dataclass(frozen=True)
class Pixels:
    """All images of a set: `words` int32 `[P]`, the pixels of image after image in rows; `sides` `[N, 2]`, height and
    width of each, and `starts` `[N]`, its first pixel. With `classes` int64 `[N]`, an image's target is its class
    instead of its ground truth."""

    words: Tensor
    sides: np.ndarray
    starts: np.ndarray
    classes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.sides)

    @property
    def device(self) -> torch.device:
        return self.words.device

    def sides_of(self, indices: np.ndarray) -> np.ndarray:
        """Height and width `[B, 2]` of these images."""
        return self.sides[indices]

    def near(self, device: torch.device) -> Pixels:
        """The pixels in the device's memory where they leave half of it free."""
        fits = device.type == "cuda" and self.words.nbytes < torch.cuda.mem_get_info(device)[0] / 2
        return self.to(device) if fits else self

    def to(self, device: torch.device) -> Pixels:
        """The same pixels in the device's memory."""
        classes = None if self.classes is None else self.classes.to(device)
        return replace(self, words=self.words.to(device), classes=classes)

    def choose(self, indices: Sequence[int], classes: Sequence[int] | None = None) -> Pixels:
        """These images of the set, with a class each where `classes` gives them; nothing is copied."""
        labels = None if classes is None else torch.tensor(classes, device=self.words.device)
        return Pixels(self.words, self.sides[indices], self.starts[indices], labels)

    def cut(self, indices: np.ndarray, size: int, crops: np.ndarray, flips: np.ndarray) -> tuple[Tensor, Tensor]:
        """Network inputs `[B, 3, size, size]`, channels last, and targets: masks in 0..1 `[B, 1, size, size]`, or
        classes `[B]`.

        Of image `indices[b]`, `crops[b]` (top, bottom, left, right) pixels are removed, it is mirrored up-down,
        left-right where `flips[b]` says so, and then resized with the conventions of `images.resize`.
        """
        cropped = self.sides[indices] - crops.reshape(-1, 2, 2).sum(2)
        first = self.starts[indices]
        (upper, lower, row_weight), (left, right, column_weight) = (
            _taps(cropped[:, axis], crops[:, 2 * axis], flips[:, axis], size) for axis in (0, 1)
        )
        width = self.sides[indices, 1, None]
        upper, lower = first[:, None] + upper * width, first[:, None] + lower * width
        upper, lower, row_weight, left, right, column_weight = (
            self._put(part) for part in (upper, lower, row_weight, left, right, column_weight)
        )

        def columns(tap: Tensor) -> Tensor:
            ends = [self._gather(rows[:, :, None] + tap[:, None, :]) for rows in (upper, lower)]
            return torch.lerp(*ends, row_weight[:, :, None, None])

        pixels = torch.lerp(columns(left), columns(right), column_weight[:, None, :, None]) / 255
        images = normalise(pixels[..., :3].permute(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last)
        if self.classes is not None:
            return images, self.classes[self._put(indices)]
        return images, pixels[..., 3][:, None].contiguous()

    def squares(self, indices: Sequence[int] | np.ndarray, size: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of these images as they are, only resized."""
        indices = np.asarray(indices)
        return self.cut(indices, size, np.zeros((len(indices), 4), int), np.zeros((len(indices), 2), bool))

    def _gather(self, positions: Tensor) -> Tensor:
        """The words at these positions as float `[..., 4]` in 0..255."""
        return self.words[positions].view(torch.uint8).view(*positions.shape, 4).float()

    def _put(self, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        # From pinned memory the copy runs beside the step before.
        return tensor.pin_memory().to(self.words.device, non_blocking=True) if self.words.is_cuda else tensor


def _taps(sides: np.ndarray, starts: np.ndarray, flips: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
    """The `images.taps` of a batch, `[B, size]` each, moved by the crop and mirrored."""
    lower, upper, weight = taps(sides, size)
    moved = (lower + starts[:, None], upper + starts[:, None], weight)
    return tuple(np.where(flips[:, None], tap[:, ::-1], tap) for tap in moved)


class Stream:
    """Shuffled and augmented batches without end; what does not fill a batch is dropped from each pass.

    A batch is a function of the seed and its step alone: a training goes on from any step. `augmentation`:
    "released", a crop of up to 15 pixels at each side (not along sides below 60 pixels), then with probability 1/4 each
    a left-right or an up-down flip; "written", the paper's left-right flip with probability 1/2. `part` (i, n) takes
    the i-th of n equal parts of every batch. Raises SodlibError where there are fewer images than one batch.
    """

    def __init__(
        self,
        pixels: Pixels,
        size: int,
        batch: int,
        seed: int,
        augmentation: str = "released",
        part: tuple[int, int] = (0, 1),
    ) -> None:
        if len(pixels) < batch:
            raise SodlibError(
                f"{len(pixels)} images do not fill a batch of {batch}; name a larger set, or lower the batch size"
            )
        if augmentation not in AUGMENTATIONS:
            raise SodlibError(f"unknown augmentation {augmentation!r}; choose one of {', '.join(AUGMENTATIONS)}")
        if batch % part[1]:
            raise SodlibError(f"a batch of {batch} cannot be shared by {part[1]} processes; choose a multiple")
        self.pixels, self.size, self.batch_size, self.seed = pixels, size, batch, seed
        self.augmentation, self.part = augmentation, part
        self.per_pass = len(pixels) // batch
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one step, counted from 0."""
        indices, crops, flips = self.choices(step)
        part, parts = self.part
        mine = slice(part * self.batch_size // parts, (part + 1) * self.batch_size // parts)
        images, targets = self.pixels.cut(indices[mine], self.size, crops[mine], flips[mine])
        if self.augmentation == "stronger":
            random = np.random.default_rng([self.seed, 2, step]).uniform(-1, 1, (self.batch_size, 2))[mine]
            contrast, brightness = (
                torch.from_numpy(by).float().to(images.device)[:, None, None, None]
                for by in (1 + CONTRAST * random[:, 0], BRIGHTNESS * random[:, 1])
            )
            images = images * contrast + brightness
        return images, targets

    def batches(self, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The first so many batches."""
        return map(self.batch, range(steps))

    def choices(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which images `[B]`, crops (top, bottom, left, right) `[B, 4]` and flips (up-down, left-right) `[B, 2]` the
        step takes."""
        pass_, place = divmod(step, self.per_pass)
        if self._order[0] != pass_:
            self._order = pass_, np.random.default_rng([self.seed, 0, pass_]).permutation(len(self.pixels))
        indices = self._order[1][place * self.batch_size : (place + 1) * self.batch_size]
        random = np.random.default_rng([self.seed, 1, step])
        if self.augmentation == "written":
            flips = np.stack([np.zeros(len(indices), bool), random.random(len(indices)) < 0.5], 1)
            return indices, np.zeros((len(indices), 4), int), flips
        if self.augmentation == "stronger":
            sides = np.repeat(self.pixels.sides_of(indices), 2, axis=1)
            crops = (random.random((len(indices), 4)) * CROP_SHARE * sides).astype(int)
            return indices, crops, np.stack([np.zeros(len(indices), bool), random.random(len(indices)) < 0.5], 1)
        crops = random.integers(CROP_RANGE, size=(len(indices), 4))
        crops[:, [1, 3]] += 1
        crops *= np.repeat(self.pixels.sides_of(indices) >= SMALLEST_CROPPED_SIDE, 2, axis=1)
        return indices, crops, random.integers(4, size=len(indices))[:, None] == [0, 1]


def open_pixels(saliency_set: SaliencySet, folder: Path = CACHE) -> Pixels:
    """The pixels of a set, memory-mapped from `folder`, where they are decoded and written first if need be.

    Raises SodlibError naming the file where an image cannot be read, and where the folder cannot be written.
    """
    place = folder / f"{saliency_set.name.replace('/', '-')}-{saliency_set.fingerprint}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Several processes may ask at once: one decodes, the others wait for it.
        with (folder / f"{place.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (place / "sides.npy").exists():
                _decode(saliency_set, place)
        sides = np.load(place / "sides.npy")
        words = np.memmap(place / "words", np.int32, mode="c", shape=(int(sides.prod(1).sum()),))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SodlibError(
            f"{place}: the decoded images cannot be kept there ({reason}); free some space or delete it"
        ) from error
    return Pixels(torch.from_numpy(words), sides, np.concatenate([[0], np.cumsum(sides.prod(1))[:-1]]))


def _decode(saliency_set: SaliencySet, place: Path) -> None:
    beside = place.with_name(f".{place.name}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    sides = []
    try:
        with (beside / "words").open("wb") as file, ThreadPoolExecutor() as pool:
            for start in range(0, len(saliency_set), 64):
                indices = range(start, min(start + 64, len(saliency_set)))
                for image, mask in pool.map(lambda index: read_pair(saliency_set, index), indices):
                    np.concatenate([image, mask[..., None]], 2).tofile(file)
                    sides.append(mask.shape)
        np.save(beside / "sides.npy", np.array(sides))
        shutil.rmtree(place, ignore_errors=True)
        os.replace(beside, place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
