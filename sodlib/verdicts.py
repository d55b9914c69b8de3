"""The rules by which the word for a claim follows from numbers; the claims themselves are in `ledger.py`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from .description import Run
from .evidence import MEASURES, Estimate, Evidence
from .plots import LABELS

#: How far below zero a difference may lie where the paper claims that there is none: a hundredth of max F, and half of
#: that in MAE, as CSNet-x2-L and x1-L differ in both (Table 7).
MARGIN, MARGIN_MAE = 0.01, 0.005
AGREES, OPPOSITE = "as in the paper", "opposite"


def verdict(signs: Sequence[str]) -> str:
    """One word from how each part of a claim stands to the paper (`same_sign`): "reproduced" where all parts
    agree, "partly" where some do, "not reproduced" where none does and one is opposite, "open" where nothing could be
    told apart at this budget, "not testable here" without any part."""
    if not signs:
        return "not testable here"
    if agreeing := sum(sign == AGREES for sign in signs):
        return "reproduced" if agreeing == len(signs) else "partly"
    return "not reproduced" if OPPOSITE in signs else "open"


def no_loss(difference: Estimate, margin: float = MARGIN) -> str:
    """How a difference stands to the claim that nothing is lost: as in the paper where the whole interval lies above
    -margin, opposite where it lies below."""
    if np.isnan(difference.value):
        return "not recorded"
    if difference.blind or difference.one_seed:
        return difference.sign
    return AGREES if difference.low > -margin else OPPOSITE if difference.high < -margin else "not told apart"


def lossless(sign: str) -> str:
    """The sign of `no_loss` in print: that it stands to a claim of no loss, not to a difference."""
    return f"no loss: {sign}"


def holds(value: bool | None) -> str:
    """The sign of a part that is a fact and no estimate; None where its runs are not recorded."""
    return "not recorded" if value is None else AGREES if value else OPPOSITE


#: What a page says of a difference in max F-measure: what is compared, the paper's difference (None where it prints
#: none), ours.
Effect = tuple[str, float | None, Estimate]


#: A difference to be measured: name, the paper's difference (None where it prints none, 1 or -1 where only its sign),
#: two runs, and the measure if it is not max F.
Row = tuple[Any, ...]


def rows_between(pairs: Mapping[str, tuple[Any, Any]], runs: Mapping[Any, Run], printed: pd.Series) -> list[Row]:
    """Rows from pairs of a table's rows, by name: the first's printed max F-measure over the second's, and the runs."""
    return [
        (name, round(printed[first] - printed[second], 3), runs[first], runs[second])
        for name, (first, second) in pairs.items()
    ]


def measured(item: Evidence, rows: Iterable[Row]) -> list[Effect]:
    """What the records of an item say of these differences."""
    return [(name, printed, item.difference(*runs)) for name, printed, *runs in rows]


def effects(rows: Iterable[Effect], equal: Collection[str] = ()) -> pd.DataFrame:
    """A row a difference: the paper's, ours with its 95 % interval, and how it stands to the claim, which is the
    paper's sign, or for those named in `equal` that nothing is lost."""
    table = [
        {
            "difference in max F": name,
            "paper": np.nan if printed is None else printed,
            "ours": ours.value,
            "ours, 95 %": "" if np.isnan(ours.value) else f"{ours.low:+.3f} to {ours.high:+.3f}",
            "here": no_loss(ours) if name in equal else same_sign(printed, ours),
        }
        for name, printed, ours in rows
    ]
    return pd.DataFrame(table)


def listed(rows: Iterable[Effect], equal: Collection[str] = ()) -> str:
    """The same in words, for a verdict."""
    rows = list(rows)
    signs = effects(rows, equal)["here"]
    return "; ".join(f"{name}: {ours} {sign}" for (name, _, ours), sign in zip(rows, signs, strict=True))


def answered(answers: Iterable[tuple[str, Evidence, str]]) -> pd.DataFrame:
    """What a page found, for its end: a row a claim with the item that it was asked of and what its records say."""
    return pd.DataFrame(
        [
            {"claim": claim, "here": here, "seeds": len(item.seeds), "preset": item.preset.name}
            for claim, item, here in answers
        ]
    )


def with_seeds(
    table: pd.DataFrame, item: Evidence | None, rows: Iterable[Row], equal: Collection[str] = ()
) -> pd.DataFrame:
    """A table of `effects` with one more column: the same differences where more seeds are recorded
    (`Page.repeated`), and how they stand there. As it is where `item` is None."""
    if item is None:
        return table
    changes = measured(item, rows)
    signs = effects(changes, equal)["here"]
    return table.assign(**{item.origin: [f"{ours} {sign}" for (*_, ours), sign in zip(changes, signs, strict=True)]})


def differences_of(item: Evidence, pairs: Mapping[str, tuple[Run, Run]]) -> pd.DataFrame:
    """A row a pair of runs that is recorded, by name: how far the first lies above the second in max F-measure and
    MAE, with the 95 % intervals."""
    rows = {
        name: {f"{LABELS[measure]}, 95 %": str(item.difference(*runs, measure)) for measure in MEASURES}
        for name, runs in pairs.items()
        if all(map(item.of, runs))
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def same_sign(printed: float | None, ours: Estimate) -> str:
    """How a difference of ours stands to the paper's: "as in the paper", "opposite", or "not told apart" from zero;
    where the paper prints none or zero, only "higher" or "lower"; "not recorded" without ours."""
    if not printed or np.isnan(printed) or ours.sign not in ("higher", "lower"):
        return ours.sign
    return AGREES if (ours.value > 0) == (printed > 0) else OPPOSITE


#: What comes behind it in an entry is no part of the verdict.
ASIDE = "; no part of the verdict"


@dataclass(frozen=True)
class Entry:
    """What the records say of one claim: `ours` in words with intervals, the `signs` of its parts, the study's `item`
    (its preset, seeds and, where it is `scored`, test images), where to read more (`page`, `section`), and why it may
    differ."""

    ours: str
    signs: tuple[str, ...]
    page: str = ""
    section: str = ""
    item: str = ""
    cause: str = ""
    scored: bool = True


def joined(first: Entry, *others: Entry) -> Entry:
    """One entry with the parts of all; what else it says is the first's."""
    every = (first, *others)
    return replace(first, ours="; ".join(e.ours for e in every), signs=tuple(sign for e in every for sign in e.signs))


def beside(item: Evidence, what: str, rows: Mapping[str, tuple[Run, Run]], measure: str, entry: Entry) -> Entry:
    """The entry with what another item says beside it, in words and named differences, which are no part of the
    verdict."""
    estimates = {name: str(item.difference(*runs, measure)) for name, runs in rows.items()}
    shown = ", ".join(f"{name} {estimate}" for name, estimate in estimates.items() if estimate)
    seeds = f"{len(item.seeds)} seed{'s' if len(item.seeds) > 1 else ''}"
    more = f"{ASIDE}: at {item.preset.name}, {what}, {seeds}: {shown}"
    return replace(entry, ours=entry.ours + more) if shown else entry


def in_words(names: Sequence[str], ours: Sequence[Estimate], signs: Sequence[str]) -> str:
    """Differences by name, in print, and how each stands to the paper."""
    parts = zip(names, ours, signs, strict=True)
    return "; ".join(f"{name} {one} [{sign}]" if str(one) else f"{name} [{sign}]" for name, one, sign in parts)
