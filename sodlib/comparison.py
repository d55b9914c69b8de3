"""Table 7 and what stands beside it: the published rows, those trained here, those scored here with their authors'
weights, and peers from the literature. Each comes from one evaluator, and they are never mixed in one column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from . import paper
from .description import Run
from .evidence import Evidence
from .records import REPOSITORY, Record
from .severing import severed
from .study import CENTRE, COMPARED, IMAGENET, MIDDLE, REDUNDANT, STARTS, TABLE_7, replace

#: The paper's names of the six sets, and ours.
SETS = {"ECSSD": "ECSSD", "PASCAL-S": "PASCAL-S", "DUT-O": "DUT-OMRON", "HKU-IS": "HKU-IS", "SOD": "SOD",
        "DUTS-TE": "DUTS-TE"}  # fmt: skip
#: Networks trained here that the paper has no row for.
BESIDE = {
    "CSNet×1.5-L categories": (replace(STARTS["categories"], pruning=REDUNDANT),),
    "CSF on EfficientNet-Lite0": COMPARED[MIDDLE],
    "CSF on EfficientNet-Lite0, ImageNet": IMAGENET,
}
#: Table 7's networks that were made for other tasks, and its large ones that are trained here.
LIGHT = ("Eff.Net", "Sf.Netv2", "ENet", "CGNet", "DABNet", "ESPNetv2", "BiseNet")
LARGE = ("CSF+R", "CSF+R2")
#: Why a row is not quite the paper's.
NOTES = {
    "CSNet×1.5-L ImageNet": "pre-trained on ten classes, not on ImageNet (page 06)",
    "CSF+R": "from random weights: those of ImageNet are not at hand; the paper's MACC fits a larger image",
    "CSF+R2": "from random weights: those of ImageNet are not at hand; the paper's MACC fits a larger image",
    "Eff.Net": "the paper does not say which EfficientNet; B2 comes nearest",
    "Sf.Netv2": "the paper does not say which width; ×2 comes nearest",
    "ESPNetv2": "the paper does not say which width; ×1 comes nearest",
    "BiseNet": "pytorchcv's ResNet-18 variant, without auxiliary outputs",
}


def published() -> pd.DataFrame:
    """Table 7 as printed, a row a network: parameters, MACC, then max F-measure and MAE by set."""
    table = paper.table(7)
    wide = table.pivot(index="network", columns="set", values=["max_f", "mae"])
    wide = wide.swaplevel(axis="columns")[[(name, measure) for name in SETS for measure in ("max_f", "mae")]]
    sizes = table.drop_duplicates("network").set_index("network")[["parameters_k", "macc_g"]]
    sizes.columns = pd.MultiIndex.from_product([["size"], sizes.columns])
    return sizes.join(wide).loc[sizes.index]


def trained(item: Evidence, sets: Sequence[str]) -> pd.DataFrame:
    """The rows of Table 7 that were trained here, and those beside: sizes in the paper and here, the learning rate that
    the validation split chose, for each of these sets max F-measure and MAE, the paper's and ours, and what is to be
    known of a row: where it is not quite the paper's, no better than the mean mask, or of a severed network."""
    printed = published()
    rows = {}
    for name, ways in {**TABLE_7, **BESIDE}.items():
        run = item.chosen(ways)
        row: dict[tuple[str, str], Any] = {
            ("parameters (K)", "paper"): _printed(printed, name, ("size", "parameters_k")),
            ("parameters (K)", "ours"): _mean(item, run, lambda data: data["parameters"] / 1e3),
            ("MACC (G)", "paper"): _printed(printed, name, ("size", "macc_g")),
            ("MACC (G)", "ours"): _mean(item, run, lambda data: (data["macs"]["paper"] or np.nan) / 1e9),
            ("convolutions (G)", "ours"): _mean(item, run, lambda data: data["macs"]["conv"] / 1e9),
            ("learning rate", "ours"): (run.learning_rate or item.preset.learning_rate) if item.of(run) else np.nan,
        }
        for test_set in sets:
            there = item.on(test_set)
            score = there.score(run)
            row |= {
                (test_set, "max F, paper"): _printed(printed, name, (paper_name(test_set), "max_f")),
                (test_set, "max F"): score.value,
                (test_set, "95 %"): score.span,
                (test_set, "MAE, paper"): _printed(printed, name, (paper_name(test_set), "mae")),
                (test_set, "MAE"): there.score(run, "mae").value,
            }
        row["remark", ""] = "; ".join(filter(None, [NOTES.get(name, ""), *_warnings(item, run)]))
        rows[name] = row
    return _paired(rows)


def best(item: Evidence, names: Sequence[str]) -> str:
    """Of these rows of Table 7 the one that scores highest on the validation split; the first where none is
    recorded."""
    by_run = {item.chosen(TABLE_7[name]): name for name in names}
    return by_run[item.chosen(list(by_run))]


def _warnings(item: Evidence, run: Run) -> list[str]:
    if not item.of(run):
        return []
    said = [] if not item.of(CENTRE) or item.knows_more(run) else ["no more than the mean mask"]
    if run.pruning and (layers := severed(item.of(run.parent))) > 0:
        said.append(f"{layers:.0f} of 54 layers severed before pruning")
    return said


def scored(records: Mapping[str, Record], sets: Sequence[str]) -> pd.DataFrame:
    """Networks with their authors' weights, scored here (`published.measure`)."""
    rows = {}
    for name, record in records.items():
        row: dict[tuple[str, str], Any] = {
            ("size", "parameters (K)"): record.data["parameters"] / 1e3,
            ("size", "input"): record.data["input_size"],
            ("size", "convolutions (G)"): record.data["macs"]["conv"] / 1e9,
        }
        for test_set in sets:
            scores = record.data["scores"].get(test_set, {}).get("released")
            low, high = scores["max_f_interval"] if scores else (np.nan, np.nan)
            row |= {
                (test_set, "max F"): scores["max_f"] if scores else np.nan,
                (test_set, "95 %"): f"{low:.3f} to {high:.3f}" if scores else "",
                (test_set, "MAE"): scores["mae"] if scores else np.nan,
            }
        rows[name] = row
    return _paired(rows)


def literature() -> pd.DataFrame:
    """Later light-weight detectors, with what their authors say of them on ECSSD and where."""
    return pd.read_csv(REPOSITORY / "data" / "literature" / "peers.csv", index_col="network")


def _paired(rows: Mapping[str, Mapping[tuple[str, str], Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows.values(), index=list(rows))
    table.columns = pd.MultiIndex.from_tuples(table.columns)
    return table


def paper_name(test_set: str) -> str:
    """The name of one of our sets in the paper's Table 7; of another, itself."""
    return next((name for name, ours in SETS.items() if ours == test_set), test_set)


def _printed(printed: pd.DataFrame, network: str, column: tuple[str, str]) -> float:
    return printed[column].get(network, np.nan) if column in printed else np.nan


def _mean(item: Evidence, run: Run, number: Any) -> float:
    found = [number(record.data) for record in item.of(run)]
    return float(np.mean(found)) if found else np.nan
