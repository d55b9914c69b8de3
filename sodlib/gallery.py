"""The embedded photographs on which every record of a saliency network keeps its maps, so that networks can be shown
beside each other without their weights. (Paper, Figure 12.)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from . import labels
from .data import SaliencySet, find_set, read_image, read_pair
from .images import resize, to_input
from .prediction import DEFAULT_SIZE, predict_batch, quantise
from .records import REPOSITORY, Record

#: The largest side of a map that a record keeps, so that it stays small.
SIDE = 96
PHOTOS = REPOSITORY / "data" / "photos"
Photograph = tuple[str, np.ndarray, np.ndarray | None]


@cache
def photographs() -> tuple[Photograph, ...]:
    """(name, uint8 `[H, W, 3]`, ground truth uint8 `[H, W]` or None): the whole photographs, which have none, and the
    first test image of every category of the embedded set, which have."""
    whole = [(path.stem, read_image(path), None) for path in sorted(PHOTOS.glob("*.jpg"))]
    cutouts = find_set("cutouts/test")
    first = labels.first_of_each(cutouts.stems, labels.words("cutouts"))
    return (*whole, *((f"{name}, cut out", *read_pair(cutouts, index)) for name, index in first.items()))


@torch.inference_mode()
def maps(model: nn.Module) -> np.ndarray:
    """The network's maps of all of them at its input size, uint8 `[N, S, S]`, or at SIDE where that is smaller."""
    size = getattr(model, "input_size", DEFAULT_SIZE)
    device = next(model.parameters()).device
    inputs = (to_input(image, size)[None].to(device) for _, image, _ in photographs())
    found = (torch.sigmoid(model.eval()(x)) for x in inputs)
    kept = (F.interpolate(one, size=SIDE, mode="area") if size > SIDE else one for one in found)
    return np.stack([quantise(one[0, 0].cpu().numpy()) for one in kept])


def beside(
    networks: Mapping[str, Record], reference: Record, benchmark: SaliencySet | None = None, count: int = 5
) -> tuple[list[Photograph], dict[str, list[np.ndarray]]]:
    """The photographs of Figure 12 and the maps that these networks make of them, by name, at the photographs' size.

    By a rule and not by hand: of the images with ground truth those at which the error (MAE) of the network of
    `reference` stands at equal steps of its ranking, the best first, the worst last; before them the first three whole
    photographs. Networks whose record keeps no maps are left out. With a `benchmark` the images are its own, and
    networks whose weights are not at hand are left out.
    """
    if benchmark is None:
        shown = photographs()
        whole = [index for index, (_, _, truth) in enumerate(shown) if truth is None][:3]
        judged = [index for index, (_, _, truth) in enumerate(shown) if truth is not None]
        mistakes = [_error(reference.arrays["maps"][index], shown[index][2]) for index in judged]
        chosen = [*whole, *(judged[place] for place in _steps(mistakes, count))]
        by_network = {
            name: [_sized(record.arrays["maps"][index], shown[index][1]) for index in chosen]
            for name, record in networks.items()
            if "maps" in record.arrays
        }
        return [shown[index] for index in chosen], by_network
    mistakes = reference.by_image(benchmark.name)["per_image"]["mae"]
    chosen = _steps(mistakes, count + 3)
    shown = [(benchmark.stems[index], *read_pair(benchmark, index)) for index in chosen]
    by_network = {
        name: [quantise(one) for one in predict_batch(record.model(), [image for _, image, _ in shown])]
        for name, record in networks.items()
        if record.has_weights
    }
    return shown, by_network


def _steps(mistakes: Sequence[float], count: int) -> list[int]:
    ranked = np.argsort(mistakes, kind="stable")
    return [int(ranked[round(place)]) for place in np.linspace(0, len(ranked) - 1, count)]


def _sized(saliency_map: np.ndarray, image: np.ndarray) -> np.ndarray:
    return resize(torch.from_numpy(saliency_map).float(), *image.shape[:2]).numpy().astype(np.uint8)


def _error(saliency_map: np.ndarray, truth: np.ndarray) -> float:
    return float(np.abs(_sized(saliency_map, truth).astype(float) - truth).mean())
