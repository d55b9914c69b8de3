"""Max F-measure and mean absolute error, by two protocols that must not be mixed.

"released": the one behind the paper's tables. Precision and recall of every image are taken at the thresholds
    0 to 255 (salient where the 8-bit map is above), averaged over the images, and only then combined:
    F(t) = 1.3 P R / (0.3 P + R). Max F is the largest F(t).
"pysodmetrics": the one of the package of that name, common today. Every map is first stretched to 0..255, F is
    taken per image (salient where the map reaches the threshold) and averaged; max F is the largest average.
The two differ by 0.01 to 0.02. Ground truth is salient above 128 in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .data import SaliencySet, find_set, read_mask
from .errors import SodlibError
from .prediction import predict_set

PROTOCOLS = ("released", "pysodmetrics")
BETA_SQUARED = 0.3
LEVELS = 256
#: Added to counts by the released protocol, so that an empty map or mask divides by something.
SMOOTHING = 1e-4


def evaluate(
    model_or_maps: nn.Module | str | Path | Mapping[str, np.ndarray],
    dataset: SaliencySet | str | Path,
    protocol: str = "released",
    size: int | None = None,
) -> dict[str, Any]:
    """Score a network, a folder of PNG maps, or maps by file stem (uint8 `[H, W]`) on a set, or on that of this name
    (`data.find_set`: "cutouts/test", or with SODLIB_DATA set "ECSSD").

    Returns "max_f", "mae", "curve" (256 values each of "precision", "recall" and "f" over the thresholds),
    "images", "protocol", and "per_image" ("precision" and "recall" `[N, 256]`, "mae" `[N]`), from which
    `bootstrap` makes confidence intervals. Raises SodlibError for an unknown protocol, a missing set or map, or a
    map of another size than its ground truth.
    """
    dataset = dataset if isinstance(dataset, SaliencySet) else find_set(dataset)
    return evaluate_all(model_or_maps, dataset, (protocol,), size)[protocol]


def evaluate_all(
    model_or_maps: nn.Module | str | Path | Mapping[str, np.ndarray],
    dataset: SaliencySet,
    protocols: Iterable[str] = PROTOCOLS,
    size: int | None = None,
) -> dict[str, dict[str, Any]]:
    """`evaluate` by several protocols in one pass over the maps."""
    protocols = tuple(protocols)
    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise SodlibError(f"unknown protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
    if isinstance(model_or_maps, nn.Module):
        maps: Iterable[np.ndarray] = predict_set(model_or_maps, dataset, size)
    else:
        maps = _given_maps(model_or_maps, dataset)
    scores: dict[str, list[tuple[np.ndarray, np.ndarray, float]]] = {protocol: [] for protocol in protocols}
    for path, saliency_map in zip(dataset.masks, maps, strict=True):
        ground_truth = read_mask(path)
        if saliency_map.shape != ground_truth.shape:
            raise SodlibError(
                f"the map for {path} is {saliency_map.shape[1]} x {saliency_map.shape[0]} pixels, "
                f"its ground truth {ground_truth.shape[1]} x {ground_truth.shape[0]}; resize the map first"
            )
        for protocol in protocols:
            scores[protocol].append(score(saliency_map, ground_truth, protocol))
    return {protocol: _summary(scores[protocol], protocol) for protocol in protocols}


def score(
    saliency_map: np.ndarray, ground_truth: np.ndarray, protocol: str = "released"
) -> tuple[np.ndarray, np.ndarray, float]:
    """Precision `[256]`, recall `[256]` and mean absolute error of one uint8 map against uint8 ground truth.

    Two histograms, of the salient and of the other pixels, hold all that the 256 thresholds need.
    """
    salient = ground_truth > 128
    if protocol == "released":
        error = np.abs(saliency_map.astype(np.int16) - ground_truth).mean() / 255
        levels = saliency_map
    else:
        stretched = saliency_map / 255
        if stretched.max() > stretched.min():
            stretched = (stretched - stretched.min()) / (stretched.max() - stretched.min())
        error = np.abs(stretched - salient).mean()
        levels = (stretched * 255).astype(np.uint8)
    # Object and background counts in one histogram: levels of salient pixels are moved up by 256.
    counts = np.bincount((levels + (salient * np.uint16(LEVELS))).ravel(), minlength=2 * LEVELS)
    # reached[t]: pixels with level >= t; the released protocol asks for level > t.
    negatives, positives = (np.cumsum(part[::-1])[::-1] for part in counts.reshape(2, LEVELS))
    if protocol == "released":
        negatives, positives = (np.append(reached[1:], 0) for reached in (negatives, positives))
        precision = (positives + SMOOTHING) / (positives + negatives + SMOOTHING)
        recall = (positives + SMOOTHING) / (salient.sum() + SMOOTHING)
    else:
        precision = positives / np.maximum(positives + negatives, 1)
        recall = positives / max(salient.sum(), 1)
    return precision, recall, float(error)


def score_batch(maps: Tensor, targets: Tensor) -> Tensor:
    """`score` by the released protocol for a batch of maps and targets in 0..1, `[B, 1, S, S]`, on their device: MAE,
    precision and recall in one row each, `[B, 1 + 256 + 256]`."""
    levels, truth = ((values.flatten(1) * 255).to(torch.uint8) for values in (maps, targets))
    error = (levels.float() - truth.float()).abs().mean(1) / 255
    salient = truth > 128
    bins = levels.long() + LEVELS * salient + 2 * LEVELS * torch.arange(len(levels), device=levels.device)[:, None]
    counts = torch.bincount(bins.flatten(), minlength=2 * LEVELS * len(levels)).view(-1, 2, LEVELS).double()
    # Pixels above each threshold: all, less those up to it.
    negatives, positives = (counts.sum(2, keepdim=True) - counts.cumsum(2)).unbind(1)
    precision = (positives + SMOOTHING) / (positives + negatives + SMOOTHING)
    recall = (positives + SMOOTHING) / (salient.sum(1, keepdim=True) + SMOOTHING)
    return torch.cat([error[:, None].double(), precision, recall], 1)


def f_measure(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """The weighted harmonic mean of precision and recall with beta squared 0.3; 0 where both are 0."""
    denominator = BETA_SQUARED * precision + recall
    return (1 + BETA_SQUARED) * precision * recall / np.where(denominator > 0, denominator, 1)


def bootstrap(result: Mapping[str, Any], resamples: int = 10_000, seed: int = 0) -> dict[str, np.ndarray]:
    """Max F and MAE of `resamples` draws of the test images with replacement, `[resamples]` each.

    `result` comes from `evaluate` or `curves.unpack`. The same seed draws the same images, so that the difference
    of two results on one set, draw by draw, is a paired bootstrap; `paired` makes it.
    """
    images, random = len(result["per_image"]["mae"]), np.random.default_rng(seed)
    # A thousand draws at a time, since of all of a large set the weights alone fill a gigabyte.
    parts = [drawn_scores(result, _drawn(random, images, min(1000, resamples - start)))
             for start in range(0, resamples, 1000)]  # fmt: skip
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def resample(images: int, resamples: int, seed: int = 0) -> np.ndarray:
    """Draws of all images with replacement: how often each image comes, as float64 weights `[resamples, images]`
    that sum to 1. In float32 the number of threads would show in the scores."""
    return _drawn(np.random.default_rng(seed), images, resamples)


def _drawn(random: np.random.Generator, images: int, resamples: int) -> np.ndarray:
    return random.multinomial(images, [1 / images] * images, resamples) / images


def f_of_draws(result: Mapping[str, Any], weights: np.ndarray) -> np.ndarray:
    """F over the thresholds in every draw, `[resamples, T]`, by the protocol of the result."""
    precision, recall = (result["per_image"][name] for name in ("precision", "recall"))
    if result["protocol"] == "released":
        return f_measure(weights @ precision, weights @ recall)
    return weights @ f_measure(precision, recall)


def interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The central interval that holds this share of the draws."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired(
    first: Mapping[str, Any], second: Mapping[str, Any], resamples: int = 10_000, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """How two results on the same images differ: "max_f" and "mae", each as the difference first - second and the
    ends of its 95 % interval.

    Both come from `evaluate` or `curves.unpack`. Each draw takes the same images for both, so that images which
    are hard for both cancel: a smaller difference shows than by comparing two intervals. Raises SodlibError where
    the number of images or the protocol differs.
    """
    described = [f"{len(result['per_image']['mae'])} images by {result['protocol']}" for result in (first, second)]
    if described[0] != described[1]:
        raise SodlibError(f"{' and '.join(described)} cannot be paired; compare scores of one set by one protocol")
    count = len(first["per_image"]["mae"])

    def difference(weights: np.ndarray) -> dict[str, np.ndarray]:
        one, other = (drawn_scores(result, weights) for result in (first, second))
        return {name: one[name] - other[name] for name in one}

    all_once, drawn = (difference(x) for x in (np.full((1, count), 1 / count), resample(count, resamples, seed)))
    return {name: (float(all_once[name][0]), *interval(drawn[name])) for name in drawn}


def drawn_scores(result: Mapping[str, Any], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Max F and MAE of a result in every draw of `resample`, `[resamples]` each."""
    return {"max_f": f_of_draws(result, weights).max(1), "mae": weights @ result["per_image"]["mae"]}


def _summary(scores: list[tuple[np.ndarray, np.ndarray, float]], protocol: str) -> dict[str, Any]:
    if not scores:
        raise SodlibError("there are no images to score; name a set that holds some")
    precision, recall, error = (np.stack(part) for part in zip(*scores, strict=True))
    mean_precision, mean_recall = precision.mean(0), recall.mean(0)
    per_image = protocol == "pysodmetrics"
    f = f_measure(precision, recall).mean(0) if per_image else f_measure(mean_precision, mean_recall)
    return {
        "max_f": float(f.max()),
        "mae": float(error.mean()),
        "images": len(scores),
        "protocol": protocol,
        "curve": {"precision": mean_precision, "recall": mean_recall, "f": f},
        "per_image": {"precision": precision, "recall": recall, "mae": error},
    }


def _given_maps(maps: str | Path | Mapping[str, np.ndarray], dataset: SaliencySet) -> Iterable[np.ndarray]:
    for stem in dataset.stems:
        if isinstance(maps, Mapping):
            if stem not in maps:
                raise SodlibError(f"there is no map for {stem} of {dataset.name}; give one for every image")
            given = np.asarray(maps[stem])
            if given.dtype != np.uint8 or given.ndim != 2:
                raise SodlibError(f"the map of {stem} is {given.dtype} {list(given.shape)}; give uint8 [H, W], as "
                                  "`prediction.quantise` makes it of a map in 0..1")  # fmt: skip
            yield given
        else:
            yield read_mask(Path(maps) / f"{stem}.png")
