"""What seeds do to a score: how far trainings that differ in nothing else lie apart, and what that does to intervals.

Three seeds alone say little of their own spread: the interval that allows for that, by Student's t with two degrees of
freedom, is 4.3 standard errors wide either way. The other networks of a preset say more. Their variances are weighed
with a network's own as Smyth does (2004, https://doi.org/10.2202/1544-6115.1027): the more alike they are, the more
degrees of freedom their common value is worth, and at most as many as they have together. Two networks that need not
vary alike bring a Student's t each into their difference, as Behrens and Fisher have it: to pool their degrees of
freedom would make knowledge out of two times next to none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats
from scipy.special import digamma, polygamma

from .description import Run
from .records import Record

#: Trainings that it takes to tell how alike the variances are.
FEWEST = 4
#: Networks that seeds do the same to. What is cut to a size may lose all.
POPULATIONS = ("as trained", "without redundant channels", "cut to a size")


def population(run: Run) -> str:
    """Whose scores vary alike: one of POPULATIONS, or "otherwise"."""
    if not run.pruning:
        return POPULATIONS[0]
    if run.pruning.redundant and run.pruning.afterwards != "evened":
        return POPULATIONS[1]
    return POPULATIONS[2] if run.pruning.parameters else "otherwise"


@dataclass(frozen=True)
class SeedVariance:
    """The variance of a score over the seeds of one training, as the trainings of a preset have it, and the degrees of
    freedom that this knowledge is worth: none where nothing is known."""

    variance: float = 0.0
    freedom: float = 0.0

    @property
    def luck(self) -> float:
        """How large a difference between two trainings of one seed each could come from their seeds alone: the end of
        the 95 % interval around none. NaN where nothing is known."""
        return float(stats.t.ppf(0.975, self.freedom) * np.sqrt(2 * self.variance)) if self.freedom else np.nan

    def spread(self, scores: Sequence[Sequence[float]]) -> tuple[float, float]:
        """The standard error that seeds bring into a difference (or sum) of means over them, given the scores with
        every seed of each network, and its degrees of freedom; (0, 0) of single seeds where nothing is known. All
        networks are taken to vary alike."""
        squares = sum(len(of_seeds) * np.var(of_seeds) for of_seeds in scores)
        freedom = self.freedom + sum(len(of_seeds) - 1 for of_seeds in scores)
        if not freedom:
            return 0.0, 0.0
        variance = (self.freedom * self.variance + squares) / freedom
        return float(np.sqrt(len(scores) * variance / len(scores[0]))), freedom


def seed_variance(scores: Sequence[Sequence[float]]) -> SeedVariance:
    """What the scores of several trainings, each with as many seeds, say of another's variance: by the moments of the
    logarithms of theirs (Smyth, section 6.2). Nothing where they are fewer than FEWEST. A variance of zero is left out:
    it is of a network that makes the same map of everything. Where they differ no more than by chance, so few seeds may
    not show it: they are worth no more than the degrees of freedom that they have."""
    variances = np.array([np.var(of_seeds, ddof=1) for of_seeds in scores])
    positive = variances[variances > 0]
    if len(positive) < FEWEST:
        return SeedVariance()
    freedom = len(scores[0]) - 1
    logs = np.log(positive) - digamma(freedom / 2) + np.log(freedom / 2)
    more_than_chance = logs.var(ddof=1) - polygamma(1, freedom / 2)
    most = len(positive) * freedom
    if more_than_chance <= polygamma(1, most / 2):
        return SeedVariance(float(positive.mean()), most)
    half = optimize.brentq(lambda x: polygamma(1, x) - more_than_chance, 1e-3, most / 2)
    return SeedVariance(float(np.exp(logs.mean() + digamma(half) - np.log(half))), 2 * half)


def seed_variances(
    trainings: Iterable[Sequence[Record]], measures: Sequence[str]
) -> dict[tuple[str, str], SeedVariance]:
    """`seed_variance` by test set and measure, from the records of trainings with as many seeds each; of what is
    known."""
    scored: dict[tuple[str, str], list[list[float]]] = {}
    for several in trainings:
        scores = [record.data["scores"] for record in several]
        for test_set in set.intersection(*map(set, scores)):
            for measure in measures:
                values = [of_seed[test_set]["released"][measure] for of_seed in scores]
                scored.setdefault((test_set, measure), []).append(values)
    found = {name: seed_variance(of_trainings) for name, of_trainings in scored.items()}
    return {name: one for name, one in found.items() if one.freedom}


def student(freedom: float, draws: int, which: int = 0) -> np.ndarray:
    """Values of Student's t at equal steps of probability, in an order that is the same at every call and another for
    each `which`; zeros without a degree of freedom."""
    if not freedom:
        return np.zeros(draws)
    return np.random.default_rng(which).permutation(stats.t.ppf((np.arange(draws) + 0.5) / draws, freedom))


def seed_weights(seeds: int, draws: int) -> np.ndarray:
    """What every draw takes of the seeds' deviations from their mean, `[seeds, draws]`, for `mean_over_seeds`: normal
    numbers over the root of a chi-square, so that what comes out is Student's t with seeds - 1 degrees of freedom, for
    each combination of values alike."""
    if seeds == 1:
        return np.zeros((1, draws))
    random = np.random.default_rng(0)
    return random.standard_normal((seeds, draws)) / np.sqrt(seeds * random.chisquare(seeds - 1, draws))


def mean_over_seeds(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean over seeds of `[seeds, draws]` values, as far off in every draw as `seed_weights` say."""
    means = values.mean(0)
    return means + (weights * (values - means)).sum(0)
