"""Whether a category that was left out of the training is found worse than the others. (Paper, section 5.1.3.)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from . import labels
from .errors import SodlibError
from .metrics import drawn_scores, interval, resample
from .records import Record

#: A category with fewer test images is not shown: its F would move with every one of them.
FEWEST = 10


@dataclass(frozen=True)
class Sensitivity:
    """Relative changes of max F-measure, in percent: `draws` `[D, R, C]`, for R networks that were trained without
    something and C categories of test images; the last draw is every image and seed once, the others are bootstrap
    draws of both. `rows`, `columns`: their names; `images`: test images a column."""

    draws: np.ndarray
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    images: tuple[int, ...]

    @property
    def change(self) -> np.ndarray:
        """The changes themselves, `[R, C]`."""
        return self.draws[-1]

    def less(self, control: Sensitivity) -> Sensitivity:
        """What is left of the changes beyond those of a control, draw by draw."""
        return Sensitivity(self.draws - control.draws, self.rows, self.columns, self.images)

    def own(self) -> tuple[float, float, float]:
        """How much lower the category that was left out lies than the others, in percentage points, with its 95 %
        interval: the mean of the diagonal after the means of rows and columns are taken off, so that neither large
        categories nor difficult ones count. 0 where the category does not matter."""
        draws = self._own(self.draws, range(len(self._shared)))
        return float(draws[-1]), *interval(draws[:-1])

    def chance(self, permutations: int = 10_000) -> float:
        """The share of random assignments of categories to networks whose mean is as low as that of the true one: the
        p value of a one-sided permutation test."""
        random = np.random.default_rng(0)
        orders = [random.permutation(len(self._shared)) for _ in range(permutations)]
        true = self._own(self.draws[-1:], range(len(self._shared)))[0]
        lower = sum(self._own(self.draws[-1:], order)[0] <= true + 1e-12 for order in orders)
        return (lower + 1) / (permutations + 1)

    @property
    def _shared(self) -> list[str]:
        """The categories that are both left out and tested."""
        return [name for name in self.rows if name in self.columns]

    def _own(self, draws: np.ndarray, order: Sequence[int]) -> np.ndarray:
        shared = self._shared
        square = draws[:, [self.rows.index(name) for name in shared]][
            :, :, [self.columns.index(name) for name in shared]
        ]
        rest = (
            square - square.mean(1, keepdims=True) - square.mean(2, keepdims=True) + square.mean((1, 2), keepdims=True)
        )
        return rest[:, range(len(shared)), list(order)].mean(1)


def sensitivity(
    baseline: Sequence[Record], without: Mapping[str, Sequence[Record]], test_set: str, resamples: int = 1000
) -> Sensitivity:
    """The changes against the networks that were trained on everything, seed by seed.

    `without`: by category, the records of the networks trained without it, with the seeds of `baseline`. Raises
    SodlibError where the seeds differ or the test set has no labels.
    """
    if any(len(found) != len(baseline) for found in without.values()):
        raise SodlibError("a change needs the same seeds with and without a category; make the missing runs")
    shown = _shown(baseline[0], test_set)
    members = {name: np.flatnonzero(shown == name) for name in dict.fromkeys((*labels.CATEGORIES, *labels.UNSEEN))}
    members = {name: found for name, found in members.items() if len(found) >= FEWEST}
    seeds = np.random.default_rng(0).integers(len(baseline), size=(resamples, len(baseline)))
    seeds = np.concatenate([seeds, np.arange(len(baseline))[None]])
    draws = np.empty((resamples + 1, len(without), len(members)))
    for column, chosen in enumerate(members.values()):
        once = np.full((1, len(chosen)), 1 / len(chosen), np.float32)
        weights = np.concatenate([resample(len(chosen), resamples), once])
        before = _drawn(baseline, test_set, chosen, weights)
        for row, found in enumerate(without.values()):
            change = _drawn(found, test_set, chosen, weights) / before - 1
            draws[:, row, column] = 100 * np.take_along_axis(change, seeds, 1).mean(1)
    return Sensitivity(draws, tuple(without), tuple(members), tuple(map(len, members.values())))


def _drawn(found: Sequence[Record], test_set: str, chosen: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Max F of some images in every draw, `[D, seeds]`."""
    results = []
    for record in found:
        result = record.by_image(test_set)
        of_chosen = {name: values[chosen] for name, values in result["per_image"].items()}
        results.append(drawn_scores({**result, "per_image": of_chosen}, weights)["max_f"])
    return np.stack(results, 1)


def _shown(record: Record, test_set: str) -> np.ndarray:
    """The category of every image of a test set, in its order."""
    by_stem = labels.categories(test_set)
    _, _, part = test_set.rpartition("/")
    stems = sorted(labels.part(by_stem, part, test_set) if labels.PART.fullmatch(part) else by_stem)
    stems = stems[: record.data["preset"]["images"]]
    if len(stems) != record.data["images"][test_set]:
        raise SodlibError(f"{test_set} has {len(stems)} labels for {record.data['images'][test_set]} images")
    return np.array([by_stem[stem] for stem in stems])
