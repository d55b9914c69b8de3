"""From a photograph to its saliency map."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .data import SaliencySet, read_image, to_rgb
from .errors import SodlibError
from .images import resize, to_input

#: Networks without an input size of their own are fed squares of this side, as in the paper.
DEFAULT_SIZE = 224


def predict(model: nn.Module, image: str | Path | Image.Image | np.ndarray, size: int | None = None) -> np.ndarray:
    """The saliency map of one photograph: float32 `[H, W]` in 0..1, of the photograph's own size.

    `image` is a path, a PIL image, or a uint8 array `[H, W, 3]` or `[H, W]`. It is resized to a square of side
    `size` (default: the network's input size) without keeping its aspect ratio, and the map is resized back,
    as published. Raises SodlibError for an unreadable file, an array of another kind, or a size below 1.
    """
    if isinstance(image, str | Path):
        pixels = read_image(image, upright=True)
    elif isinstance(image, Image.Image):
        try:
            pixels = to_rgb(image, upright=True)
        except ValueError as error:
            raise SodlibError(f"the image cannot be taken: {error}") from error
    else:
        pixels = np.asarray(image)
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise SodlibError(
            f"an image must have pixels, an array be uint8 [H, W, 3] or [H, W], not {pixels.dtype} {list(pixels.shape)}"
        )
    return predict_batch(model, [pixels], size)[0]


def predict_batch(model: nn.Module, images: Sequence[np.ndarray], size: int | None = None) -> list[np.ndarray]:
    """Saliency maps of several uint8 photographs `[H, W, 3]`, each of its own size."""
    size = _input_size(model, size)
    maps = _maps(model, torch.stack([to_input(image, size) for image in images]))
    return [resize(map_[0], *image.shape[:2]).numpy() for map_, image in zip(maps, images, strict=True)]


def predict_files(
    model: nn.Module, photographs: Sequence[Path], write: Callable[[int, np.ndarray], None], size: int | None = None
) -> Iterator[tuple[int, SodlibError | None]]:
    """The maps of many photographs, as 8-bit grey, to `write` with the number of each; yields the numbers, with the
    reason where a photograph cannot be read.

    While the network runs, threads read the next photographs and write the last maps, so that every core has work.
    """
    size, cores, threads = _input_size(model, size), os.cpu_count() or 1, torch.get_num_threads()

    def read(path: Path) -> tuple[Tensor, tuple[int, int]] | SodlibError:
        try:
            image = read_image(path, upright=True)
        except SodlibError as error:
            return error
        return to_input(image, size), image.shape[:2]

    def finish(index: int, saliency_map: Tensor, sides: tuple[int, int]) -> int:
        write(index, quantise(resize(saliency_map[0], *sides).numpy()))
        return index

    batch = 2 * cores
    with ThreadPoolExecutor(cores, initializer=lambda: torch.set_num_threads(1)) as pool:
        reading = deque(pool.submit(read, path) for path in photographs[: 2 * batch])
        writing: deque[Future[int]] = deque()
        try:
            for start in range(0, len(photographs), batch):
                read_ones = [reading.popleft().result() for _ in photographs[start : start + batch]]
                reading.extend(pool.submit(read, path) for path in photographs[start + 2 * batch : start + 3 * batch])
                whole = [(start + i, *one) for i, one in enumerate(read_ones) if not isinstance(one, SodlibError)]
                yield from ((start + i, one) for i, one in enumerate(read_ones) if isinstance(one, SodlibError))
                if whole:
                    maps = _maps(model, torch.stack([inputs for _, inputs, _ in whole]))
                    for (index, _, sides), map_ in zip(whole, maps, strict=True):
                        writing.append(pool.submit(finish, index, map_, sides))
                while len(writing) > batch:
                    yield writing.popleft().result(), None
            while writing:
                yield writing.popleft().result(), None
        finally:
            for future in (*reading, *writing):
                future.cancel()
            # The threads of the pool have set it for all threads that come after them.
            torch.set_num_threads(threads)


def _input_size(model: nn.Module, size: int | None) -> int:
    size = getattr(model, "input_size", DEFAULT_SIZE) if size is None else size
    if size < 1:
        raise SodlibError(f"the input size {size} is not positive; leave it out for the network's own")
    return size


def _maps(model: nn.Module, inputs: Tensor) -> Tensor:
    """The maps of network inputs, on the processor, in the inputs' size."""
    device = next(model.parameters()).device
    were_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            # Channels last, depthwise convolutions, batch norm and PReLU walk through memory in order: 1.5 times as
            # fast.
            logits = model(inputs.to(device).contiguous(memory_format=torch.channels_last))
            if logits.dim() != 4:
                raise SodlibError(f"a {type(model).__name__} makes no saliency maps; give a network for saliency")
            return torch.sigmoid(logits).cpu()
    finally:
        for module in were_training:
            module.training = True


def predict_set(
    model: nn.Module, saliency_set: SaliencySet, size: int | None = None, batch: int = 8
) -> Iterator[np.ndarray]:
    """The saliency maps of a whole set in order, as 8-bit grey: the map times 255, cut, as published."""
    for start in range(0, len(saliency_set), batch):
        images = [read_image(path) for path in saliency_set.images[start : start + batch]]
        for saliency_map in predict_batch(model, images, size):
            yield quantise(saliency_map)


def quantise(saliency_map: np.ndarray) -> np.ndarray:
    """A map in 0..1 as uint8: cut, not rounded, as the released code writes its PNG files."""
    return np.clip(saliency_map * 255, 0, 255).astype(np.uint8)
