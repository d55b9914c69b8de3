"""What the records of one table or figure say: scores with intervals, differences, and what made them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from .data import WHOLE
from .description import CENTRE, Run
from .errors import SodlibError
from .metrics import drawn_scores, interval, resample
from .plots import LABELS
from .presets import Preset
from .records import Record
from .seeds import SeedVariance, population, student

RESAMPLES = 10_000
MEASURES = ("max_f", "mae")
#: How far above the mean mask, in max F, the whole interval of a network lies that has learned more than it.
KNOWS_MORE = 0.005


@dataclass(frozen=True)
class Estimate:
    """A number with the ends of its 95 % interval; NaN where its runs are not recorded. `one_seed`: a difference of two
    trainings of one seed each whose interval is of the images alone, as nothing says what seeds do. `blind`: one of its
    networks has learned no more than where objects usually lie."""

    value: float
    low: float
    high: float
    one_seed: bool = False
    blind: bool = False

    @property
    def span(self) -> str:
        """The interval in print."""
        return "" if np.isnan(self.value) else f"{self.low:.3f} to {self.high:.3f}"

    @property
    def sign(self) -> str:
        """Of a difference: "higher", "lower", "not told apart" where the interval holds zero, "not known with one seed"
        where it does not allow for other seeds, "no more than the mean mask" of a blind network, which says nothing
        of how it is built, or "not recorded"."""
        if np.isnan(self.value):
            return "not recorded"
        if self.blind:
            return "no more than the mean mask"
        if self.low <= 0 <= self.high:
            return "not told apart"
        if self.one_seed:
            return "not known with one seed"
        return "higher" if self.value > 0 else "lower"

    def __str__(self) -> str:
        return "" if np.isnan(self.value) else f"{self.value:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


@dataclass(frozen=True, eq=False)
class Evidence:
    """The records that an item of the paper, such as "Table 6", is shown from: all of one preset (or, of
    `tuning.at_rates`, of presets that differ in their learning rate), and for every run the same seeds, or none. Runs
    are named by their description at seed 0. `seed_variances`: by test set, measure and `seeds.population`, what seeds
    do to the networks of this preset. `tested`: another test set than the one that the preset asks for."""

    item: str
    preset: Preset
    seeds: tuple[int, ...]
    records: Mapping[Run, tuple[Record, ...]]
    seed_variances: Mapping[tuple[str, str, str], SeedVariance] = field(default_factory=dict)
    tested: str = ""

    def of(self, run: Run) -> tuple[Record, ...]:
        """The records of a run, one a seed, or none. Raises SodlibError where the item has no such run."""
        if run not in self.records:
            raise SodlibError(f"{self.item} has no run {run.key(self.preset.name)}; declare it in sodlib/study.py")
        return self.records[run]

    def with_runs_of(self, other: Evidence) -> Evidence:
        """With the records of another item beside its own, where both have the same preset and seeds; else as it is."""
        alike = (other.preset, other.seeds) == (self.preset, self.seeds)
        return replace(self, records={**other.records, **self.records}) if alike else self

    @property
    def test_set(self) -> str:
        """The set that the numbers are from: the first that the preset asks for, or that of the classifiers."""
        if self.of_classifiers:
            return self.preset.part("classes-test")
        return self.tested or self.preset.tests[0]

    def on(self, test_set: str) -> Evidence:
        """The same records on another test set; none of a run that was not scored on it."""
        found = {
            run: several if all(test_set in record.data["scores"] for record in several) else ()
            for run, several in self.records.items()
        }
        return replace(self, records=found, tested=test_set)

    @property
    def of_classifiers(self) -> bool:
        """Whether the networks of this item are scored by their accuracy."""
        return any(run.classification and not run.is_pretraining for run in self.records)

    @property
    def where(self) -> str:
        """Test set and number of images, for an axis."""
        whole = WHOLE.get(self.test_set, self.images)
        return f"{self.test_set}, n = {self.images:,}" + (f" of {whole:,}" if self.images < whole else "")

    @cached_property
    def images(self) -> int:
        """The number of test images."""
        return self.one_record.data["images"][self.test_set]

    def score(self, run: Run, measure: str = "max_f") -> Estimate:
        """The mean over the seeds on the test set; the interval draws images and, where there are several, allows for
        other seeds by Student's t. With one seed it is of that network."""
        by_seed = [self._drawn(record)[measure] for record in self.of(run)]
        return _estimate(by_seed, [(self._varies(measure, run) if len(self.seeds) > 1 else SeedVariance(), by_seed)])

    def values(self, run: Run, measure: str = "max_f") -> list[float]:
        """The score with every seed."""
        if self.of_classifiers:
            return [float(self._drawn(record)[measure][-1]) for record in self.of(run)]
        return [record.data["scores"][self.test_set]["released"][measure] for record in self.of(run)]

    def difference(self, first: Run, second: Run, measure: str = "max_f") -> Estimate:
        """How far the first lies above the second: every draw takes the same images for both. What has one training in
        common, pruned networks or classifiers, is compared seed by seed; the seeds of two trainings have nothing in
        common but their number. With one seed the interval allows for others between two trainings, where something is
        known of seeds, and not between two prunings of one, or above the mean mask. Blind where the item has the mean
        mask to tell: of two trainings one, or the one of which both are prunings."""
        both = {run: [self._drawn(record)[measure] for record in self.of(run)] for run in (first, second)}
        by_seed = [one - other for one, other in zip(both[first], both[second], strict=False)]
        networks = [run for run in both if run != CENTRE]
        trainings = {replace(run, pruning=None, activation_map="") for run in networks}
        apart = len(trainings) > 1
        alone = len(self.seeds) == 1
        known = apart or (CENTRE in both and not alone)
        vary = [(self._varies(measure, run) if known else SeedVariance(), both[run]) for run in networks]
        told = all(varies.freedom for varies, _ in vary)
        if (alone and not told) or len({training.parent for training in trainings}) == 1:
            kinds = {varies for varies, _ in vary}
            vary = [(kinds.pop() if len(kinds) == 1 else SeedVariance(), by_seed)]
        estimate = _estimate(by_seed, vary)
        looked_at = networks if apart else trainings
        if self.records.get(CENTRE) and len(networks) == 2 and not all(map(self.knows_more, looked_at)):
            estimate = replace(estimate, blind=True)
        return replace(estimate, one_seed=apart and alone and not told)

    def of_seeds(self, of: str = "as trained", measure: str = "max_f") -> float:
        """How large a difference of two networks of a `seeds.population`, with one seed each, could come from their
        seeds alone; NaN where that is not known."""
        return self.seed_variances.get((self.test_set, measure, of), SeedVariance()).luck

    def _varies(self, measure: str, run: Run) -> SeedVariance:
        """What seeds do to such a network; nothing to the mean mask."""
        if run == CENTRE:
            return SeedVariance()
        return self.seed_variances.get((self.test_set, measure, population(run)), SeedVariance())

    def knows_more(self, run: Run) -> bool:
        """Whether a network has learned more than where objects usually lie."""
        return self.difference(run, CENTRE).low > KNOWS_MORE

    def parameters(self, run: Run) -> float:
        """The mean over the seeds; NaN without a record."""
        return _mean(record.data["parameters"] for record in self.of(run))

    def scales(self, run: Run) -> np.ndarray:
        """|gamma| inside the ILBlocks, of all seeds one after the other; empty without a record. Raises
        SodlibError where the item has no such run."""
        return np.concatenate([record.scales() for record in self.of(run)] or [np.empty(0)])

    def deviations(self, run: Run) -> np.ndarray:
        """The standard deviation between the channels of every layer inside the ILBlocks (Figure 4), `[seeds, layers]`.
        Raises SodlibError where the item has no such run."""
        return np.stack([record.arrays["channel_deviation"] for record in self.of(run)])

    def accuracy(self, run: Run) -> tuple[Estimate, ...]:
        """The accuracy of a classifier with each seed and its exact binomial interval (Clopper and Pearson), which says
        what so few test images can tell of one network. `score(run, "accuracy")` is their mean."""
        scores = [record.data["scores"][self.test_set]["top1"] for record in self.of(run)]
        tests = [binomtest(score["right"], score["images"]) for score in scores]
        intervals = [test.proportion_ci(method="exact") for test in tests]
        return tuple(Estimate(test.statistic, *ends) for test, ends in zip(tests, intervals, strict=True))

    def validation(self, run: Run, measure: str = "max_f") -> float:
        """The mean over the seeds on the validation split after the last epoch, on squares of the input size."""
        return _mean(record.data["history"][-1][f"validation_{measure}"] for record in self.of(run))

    def chosen(self, runs: Sequence[Run]) -> Run:
        """Of several ways to train a network, the one with the best max F-measure on the validation split; the first
        where none is recorded."""
        return max((run for run in runs if self.of(run)), key=self.validation, default=runs[0])

    def by_epoch(self, run: Run, measure: str) -> np.ndarray:
        """An entry of the histories such as "validation_mae", `[seeds, epochs]`."""
        return np.array([[entry[measure] for entry in record.data["history"]] for record in self.of(run)])

    def table(self, runs: Mapping[Any, Run], printed: pd.DataFrame | None = None) -> pd.DataFrame:
        """A row a run, by name: parameters in thousands, the paper's MACC and the convolutions' MACs in 10^9 for one
        image of 224 x 224 (means over the seeds), max F-measure and MAE with their intervals.

        Where `printed` holds the paper's rows in the same order, its numbers stand beside ours and the columns are
        pairs (measure, "paper" | "ours" | "95 %").
        """
        rows = []
        for run in runs.values():
            data = [record.data for record in self.of(run)]
            row = {
                ("parameters_k", "ours"): self.parameters(run) / 1e3,
                ("macc_g", "ours"): _mean(
                    entry["macs"]["paper"] / 1e9 for entry in data if entry["macs"]["paper"] is not None
                ),
                ("convolution_g", "ours"): _mean(entry["macs"]["conv"] / 1e9 for entry in data),
            }
            for measure in MEASURES:
                score = self.score(run, measure)
                row |= {(measure, "ours"): score.value, (measure, "95 %"): score.span}
            rows.append(row)
        table = pd.DataFrame(rows, index=list(runs))
        if printed is None:
            table.columns = [name if kind == "ours" else f"{LABELS[name]}, {kind}" for name, kind in table]
            return table
        table.columns = pd.MultiIndex.from_tuples(table.columns)
        if len(printed) != len(table):
            raise SodlibError(f"{self.item}: {len(printed)} printed rows for {len(table)} runs; give one a row")
        for column in ("parameters_k", "macc_g", *MEASURES):
            if column in printed:
                table.insert(table.columns.get_loc((column, "ours")), (column, "paper"), printed[column].to_numpy())
        return table

    @property
    def origin(self) -> str:
        """Preset and seeds, for the corner of a figure."""
        return f"preset {self.preset.name}, seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}"

    @property
    def caption(self) -> str:
        """What the numbers are from, for the end of a caption."""
        seeds = f"seed {self.seeds[0]}" if len(self.seeds) == 1 else f"mean of seeds {', '.join(map(str, self.seeds))}"
        settings = self.preset
        budget = f"{self.steps:,} steps of {settings.batch} at {settings.size} × {settings.size}"
        recorded = sum(map(bool, self.records.values()))
        luck = {of: self.of_seeds(of) for of in dict.fromkeys(map(population, self.records))}
        known = ", ".join(f"{value:.3f} {of}" for of, value in luck.items() if not np.isnan(value))
        if known and len(self.seeds) == 1 and not self.of_classifiers:
            seeds += f" (seeds alone may make a difference in max F of {known})"
        left = "" if recorded == len(self.records) else f"; {recorded} of {len(self.records)} runs recorded so far"
        return f"preset {settings.name} ({budget}); {self.where}; {seeds}{left}"

    @property
    def steps(self) -> int:
        """Optimiser steps of a training."""
        return self.preset.epochs * self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Of a training on `training_set`."""
        return self.preset.steps_per_epoch or self.one_record.data["images"][self.training_set] // self.preset.batch

    @property
    def training_set(self) -> str:
        """The set that the networks were trained on, the first that a record names."""
        return next(iter(self.one_record.data["images"]))

    @property
    def one_record(self) -> Record:
        """A record that was scored on the test set. Raises SodlibError without one."""
        for records in self.records.values():
            if records and self.test_set in records[0].data["images"]:
                return records[0]
        raise SodlibError(f"{self.item}: no recorded run is scored on {self.test_set}; choose another set")

    def _drawn(self, record: Record) -> dict[str, np.ndarray]:
        if not self.of_classifiers:
            return _drawn_scores(record, self.test_set)
        looked_at = f"energy/{self.test_set}" in record.arrays
        return (_drawn_localisation if looked_at else _drawn_accuracy)(record, self.test_set)


def _estimate(by_seed: Sequence[np.ndarray], vary: Iterable[tuple[SeedVariance, Sequence[np.ndarray]]]) -> Estimate:
    """The mean over the seeds of what was drawn, the last draw being every image once, the value itself. The interval
    allows for the seeds of what varies with them, which is given with what is known of its like."""
    if not by_seed:
        return Estimate(np.nan, np.nan, np.nan)
    values = np.mean(by_seed, axis=0)
    drawn, alike = values[:-1], {}
    for varies, network in vary:
        alike.setdefault(varies, []).append([of_seed[-1] for of_seed in network])
    for which, (varies, scores) in enumerate(alike.items()):
        spread, freedom = varies.spread(scores)
        drawn = drawn + spread * student(freedom, len(drawn), which)
    return Estimate(float(values[-1]), *interval(drawn))


def shown(value: float, form: str) -> str:
    """The number in print, a dash where there is none."""
    return "–" if np.isnan(value) else form.format(value)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else np.nan


@lru_cache(maxsize=2)  # some hundred megabytes each
def _weights(images: int) -> np.ndarray:
    """The draws of the test images, the same for all results, and below them every image once."""
    return np.concatenate([resample(images, RESAMPLES), np.full((1, images), 1 / images)])


@cache
def _drawn_scores(record: Record, test_set: str) -> dict[str, np.ndarray]:
    result = record.by_image(test_set)
    drawn = drawn_scores(result, _weights(result["images"]))
    # A record keeps the images' curves in 255 steps, but the value itself exactly.
    for measure, values in drawn.items():
        values[-1] = record.data["scores"][test_set][result["protocol"]][measure]
    return drawn


@cache
def _drawn_accuracy(record: Record, test_set: str) -> dict[str, np.ndarray]:
    right = record.arrays[f"logits/{test_set}"].argmax(1) == record.arrays[f"classes/{test_set}"]
    return {"accuracy": _weights(len(right)) @ right}


@cache
def _drawn_localisation(record: Record, test_set: str) -> dict[str, np.ndarray]:
    values = {
        name: record.arrays[f"{name}/{test_set}"] for name in ("energy", "pointing", "area", "centre", "separation")
    }
    # Beyond what a map scores that knows nothing of the image.
    values |= {
        "energy beyond area": values["energy"] - values["area"],
        "pointing beyond centre": values["pointing"] - values["centre"],
    }
    return {name: _weights(len(of_images)) @ of_images for name, of_images in values.items()}
