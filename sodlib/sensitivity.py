"""Whether a category that was left out of the training is found worse than the others. (Paper, section 5.1.3.)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from . import labels
from .errors import SodlibError
from .metrics import drawn_scores, interval, resample
from .records import Record
from .seeds import mean_over_seeds, seed_weights

#: A category with fewer test images is not shown: its F would move with every one of them.
FEWEST = 10
#: Draws of the seeds for each draw of the images: Student's t has long tails, and images cost more.
SEED_DRAWS = 10


@dataclass(frozen=True)
class Sensitivity:
    """Relative changes of max F-measure, in percent: `draws` `[D, R, C]`, for R networks that were trained without
    something and C categories of test images; the last draw is every image and seed once, the others are draws
    of both. `rows`, `columns`: their names; `images`: test images a column."""

    draws: np.ndarray
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    images: tuple[int, ...]

    @property
    def change(self) -> np.ndarray:
        """The changes themselves, `[R, C]`."""
        return self.draws[-1]

    def means(self) -> tuple[float, float]:
        """The mean change on the category that was left out, and on all others."""
        own = np.array([[row == column for column in self.columns] for row in self.rows])
        return float(self.change[own].mean()), float(self.change[~own].mean())

    def lowest(self) -> tuple[int, int]:
        """Of how many networks the category that was left out, where it is tested, loses most; and of how many."""
        rows = [row for row, name in enumerate(self.rows) if name in self.columns]
        worst = [self.columns[self.change[row].argmin()] for row in rows]
        return sum(self.rows[row] == name for row, name in zip(rows, worst, strict=True)), len(rows)

    def less(self, control: Sensitivity) -> Sensitivity:
        """What is left of the changes beyond those of a control, draw by draw."""
        return Sensitivity(self.draws - control.draws, self.rows, self.columns, self.images)

    def own(self) -> tuple[float, float, float]:
        """How much lower the category that was left out lies than the others, in percentage points, with its 95 %
        interval: the mean of the diagonal after the means of rows and columns are taken off, so that neither large
        categories nor difficult ones count. These means hold the diagonal too, one of S, which is made up for. 0 where
        the category does not matter."""
        draws = np.trace(self._centred, axis1=1, axis2=2) / (self._centred.shape[1] - 1)
        return float(draws[-1]), *interval(draws[:-1])

    def chance(self, permutations: int = 10_000) -> float:
        """The share of random assignments of categories to networks whose mean is as low as that of the true one: the
        p value of a one-sided permutation test."""
        random = np.random.default_rng(0)
        rest = self._centred[-1]
        places = np.arange(len(rest))
        sums = np.array([rest[places, random.permutation(places)].sum() for _ in range(permutations)])
        return (int((sums <= np.trace(rest) + 1e-12).sum()) + 1) / (permutations + 1)

    @cached_property
    def _centred(self) -> np.ndarray:
        """The draws for the categories that are both left out and tested, `[D, S, S]`, less the means of rows and
        columns."""
        shared = [name for name in self.rows if name in self.columns]
        rows, columns = ([names.index(name) for name in shared] for names in (self.rows, self.columns))
        square = self.draws[:, rows][:, :, columns]
        means = square.mean(1, keepdims=True), square.mean(2, keepdims=True), square.mean((1, 2), keepdims=True)
        return square - means[0] - means[1] + means[2]


def sensitivity(
    baseline: Sequence[Record],
    without: Mapping[str, Sequence[Record]],
    test_set: str,
    fewest: int | None = None,
    resamples: int = 1000,
) -> Sensitivity:
    """The changes against the networks that were trained on everything, seed by seed.

    `without`: by category, the records of the networks trained without it, with the seeds of `baseline`. `fewest`: the
    test images that a category must have, FEWEST unless the preset scores only some of the set. Raises SodlibError
    where the seeds differ, no record of `baseline` is given or the test set has no labels.
    """
    if not baseline:
        raise SodlibError("a change needs the network that was trained on everything; make its run first")
    if any(len(found) != len(baseline) for found in without.values()):
        raise SodlibError("a change needs the same seeds with and without a category; make the missing runs")
    shown = _shown(baseline[0], test_set)
    if fewest is None:
        fewest = 1 if baseline[0].data["preset"]["images"] else FEWEST
    members = {name: np.flatnonzero(shown == name) for name in dict.fromkeys((*labels.CATEGORIES, *labels.UNSEEN))}
    members = {name: found for name, found in members.items() if len(found) >= fewest}
    seeds = seed_weights(len(baseline), resamples * SEED_DRAWS)
    before_images = [record.by_image(test_set) for record in baseline]
    by_row = [[record.by_image(test_set) for record in found] for found in without.values()]
    draws = np.empty((resamples * SEED_DRAWS + 1, len(without), len(members)))
    for column, chosen in enumerate(members.values()):
        weights = np.concatenate([resample(len(chosen), resamples), np.full((1, len(chosen)), 1 / len(chosen))])
        before = _drawn(before_images, chosen, weights)
        for row, found in enumerate(by_row):
            change = 100 * (_drawn(found, chosen, weights) / before - 1)
            draws[:-1, row, column] = mean_over_seeds(np.tile(change[:-1].T, SEED_DRAWS), seeds)
            draws[-1, row, column] = change[-1].mean()
    return Sensitivity(draws, tuple(without), tuple(members), tuple(map(len, members.values())))


def p_value(chance: float) -> str:
    """What `Sensitivity.chance` gives, for a sentence."""
    return "p < 0.001" if chance < 0.001 else f"p = {chance:.3f}"


def _drawn(found: Sequence[Mapping[str, Any]], chosen: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Max F of some images in every draw, `[D, seeds]`."""
    results = []
    for result in found:
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
