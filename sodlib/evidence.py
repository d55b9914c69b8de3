"""What the records of one table or figure say: scores with intervals, differences, and what made them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import pandas as pd

from .errors import SodlibError
from .metrics import f_of_draws, interval, resample
from .presets import Preset
from .records import Record
from .study import Run

RESAMPLES = 10_000
MEASURES = ("max_f", "mae")


@dataclass(frozen=True)
class Estimate:
    """A number with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def span(self) -> str:
        """The interval in print."""
        return f"{self.low:.3f} to {self.high:.3f}"

    @property
    def sign(self) -> str:
        """Of a difference: "higher", "lower", or "not told apart" where the interval holds zero."""
        if self.low <= 0 <= self.high:
            return "not told apart"
        return "higher" if self.value > 0 else "lower"

    def __str__(self) -> str:
        return f"{self.value:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


@dataclass(frozen=True, eq=False)
class Evidence:
    """The records that an item of the paper, such as "Table 6", is shown from: all of one preset, and for every run
    the same seeds. Runs are named by their description at seed 0."""

    item: str
    preset: Preset
    seeds: tuple[int, ...]
    records: Mapping[Run, tuple[Record, ...]]

    def of(self, run: Run) -> tuple[Record, ...]:
        """The records of a run, one a seed. Raises SodlibError where the item has no such run."""
        if run not in self.records:
            raise SodlibError(f"{self.item} has no run {run.key(self.preset.name)}; declare it in sodlib/study.py")
        return self.records[run]

    @property
    def test_set(self) -> str:
        """The set that the numbers are from: the first that the preset asks for."""
        return self.preset.tests[0]

    @cached_property
    def images(self) -> int:
        """The number of test images."""
        return next(iter(self.records.values()))[0].data["images"][self.test_set]

    def score(self, run: Run, measure: str = "max_f") -> Estimate:
        """The mean over the seeds on the test set; the interval draws images and, where there are several, seeds."""
        return self._estimate([self._drawn(record)[measure] for record in self.of(run)])

    def difference(self, first: Run, second: Run, measure: str = "max_f") -> Estimate:
        """How far the first lies above the second, paired: every draw takes the same images for both, and seeds by
        pairs."""
        pairs = zip(self.of(first), self.of(second), strict=True)
        return self._estimate([self._drawn(one)[measure] - self._drawn(other)[measure] for one, other in pairs])

    def validation(self, run: Run, measure: str = "max_f") -> float:
        """The mean over the seeds on the validation split after the last epoch, on squares of the input size."""
        return float(np.mean([record.data["history"][-1][f"validation_{measure}"] for record in self.of(run)]))

    def table(self, runs: Mapping[Any, Run]) -> pd.DataFrame:
        """A row a run: parameters in thousands, the paper's MACC and the convolutions' MACs in 10^9 for 224 x 224 (all
        three the mean over the seeds), max F-measure and MAE with their intervals."""
        rows = {}
        for name, run in runs.items():
            data = [record.data for record in self.of(run)]
            scores = {measure: self.score(run, measure) for measure in MEASURES}
            rows[name] = {
                "parameters_k": np.mean([entry["parameters"] for entry in data]) / 1e3,
                "macc_g": np.mean([entry["macs"]["paper"] for entry in data]) / 1e9,
                "convolution_g": np.mean([entry["macs"]["conv"] for entry in data]) / 1e9,
                "max_f": scores["max_f"].value,
                "max F, 95 %": scores["max_f"].span,
                "mae": scores["mae"].value,
                "MAE, 95 %": scores["mae"].span,
            }
        return pd.DataFrame.from_dict(rows, orient="index")

    @property
    def caption(self) -> str:
        """What the numbers are from, for the end of a caption."""
        seeds = f"seed {self.seeds[0]}" if len(self.seeds) == 1 else f"mean of seeds {', '.join(map(str, self.seeds))}"
        return f"{self.budget}; {self.test_set}, n = {self.images:,}; {seeds}"

    @property
    def budget(self) -> str:
        """The preset in a few words."""
        first = next(iter(self.records.values()))[0].data
        per_epoch = self.preset.steps_per_epoch or first["images"][self.preset.train] // self.preset.batch
        size = self.preset.size
        return (
            f"{self.preset.name} ({self.preset.epochs * per_epoch:,} steps of {self.preset.batch} at {size} × {size})"
        )

    def _drawn(self, record: Record) -> dict[str, np.ndarray]:
        return _draws(record, self.test_set)

    def _estimate(self, by_seed: Sequence[np.ndarray]) -> Estimate:
        # The last draw is every image once: the value itself.
        values = np.stack(by_seed)
        draws = values[:, :-1]
        if len(values) > 1:
            chosen = np.random.default_rng(0).integers(len(values), size=draws.shape)
            draws = np.take_along_axis(draws, chosen, 0)
        return Estimate(float(values[:, -1].mean()), *interval(draws.mean(0)))


def provenance(found: Iterable[Evidence]) -> str:
    """A few sentences on what made the numbers of a page: budgets, images, seeds, hardware, and how far below the
    paper's they lie."""
    by_preset: dict[str, list[Evidence]] = {}
    for evidence in found:
        by_preset.setdefault(evidence.preset.name, []).append(evidence)
    sentences = []
    for several in by_preset.values():
        first = several[0]
        preset, data = first.preset, next(iter(first.records.values()))[0].data
        per_epoch = preset.steps_per_epoch or data["images"][preset.train] // preset.batch
        items = ", ".join(evidence.item for evidence in several)
        hardware = sorted({r.data["hardware"] for e in several for rs in e.records.values() for r in rs})
        sentences.append(
            f"**{items}: preset {preset.name}.** {preset.epochs} epochs of {per_epoch} steps of {preset.batch} images "
            f"from {data['images'][preset.train]:,} of {preset.train}, at {preset.size} × {preset.size}, learning rate "
            f"{preset.learning_rate:g}, Adam's second beta {preset.beta2:g}; {preset.after_steps} batches after pruning; "
            f"tested on {first.test_set} (n = {first.images:,}). Made on {'; '.join(hardware)}."
        )
    return "\n\n".join(sentences)


@cache
def _weights(images: int) -> np.ndarray:
    """The draws of the test images, the same for all results, and below them every image once."""
    once = np.full((1, images), 1 / images, np.float32)
    return np.concatenate([resample(images, RESAMPLES), once])


@cache
def _draws(record: Record, test_set: str) -> dict[str, np.ndarray]:
    result = record.by_image(test_set)
    weights = _weights(result["images"])
    mae = result["per_image"]["mae"].astype(np.float32)
    return {"max_f": f_of_draws(result, weights).max(1), "mae": weights @ mae}
