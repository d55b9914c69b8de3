"""Structure and counts of a network in the form of the paper's tables, to lay beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from . import paper
from .channels import ChannelPlan, Split
from .cost import count_parameters, paper_macc
from .csnet import CSNet
from .errors import SodlibError

#: Decimals in print: thousands of parameters, 10^9 MACC.
DECIMALS = {"parameters_k": 0, "macc_g": 2}
COLUMNS = tuple(DECIMALS)
ROUNDED, CUT = "rounded", "cut"

#: How a notebook shows the columns of `compare` and `count`.
FORMATS = {
    ("parameters_k", "paper"): "{:.0f}",
    ("parameters_k", "ours"): "{:.3f}",
    ("parameters_k", "difference"): "{:+.3f}",
    ("macc_g", "paper"): "{:.2f}",
    ("macc_g", "ours"): "{:.4f}",
    ("macc_g", "difference"): "{:+.4f}",
    ("parameters_k", "before pruning"): "{:.3f}",
    ("macc_g", "before pruning"): "{:.4f}",
    "parameters_k": "{:.3f}",
    "macc_g": "{:.4f}",
    "convolution_g": "{:.4f}",
}


def extractor_rows(plan: ChannelPlan, size: int = 224) -> pd.DataFrame:
    """Table 2: groups of equal blocks with the columns of `paper.table(2)`, less the two alike convolutions.

    The stem counts to stage 1. A low resolution without channels is that of a merging block.
    """
    rows = []
    for block in plan.block_plans():
        size //= block.stride
        high, low = (*block.outputs, 0)[:2]
        kernel = f"{block.kernel_size}×{block.kernel_size}"
        stage = max(1, int(block.name.removeprefix("stage").partition(".")[0]))
        rows.append((stage, size, high, size // 2, low, f"OctConv {kernel}, {block.stride}"))
    columns = ["stage", "high_size", "high_channels", "low_size", "low_channels", "first"]
    return pd.DataFrame(rows, columns=columns).groupby(columns, sort=False).size().reset_index(name="repeats")


def fusion_rows(plan: ChannelPlan, size: int = 224) -> pd.DataFrame:
    """Table 1: an output scale of a fusion layer a row, with the columns size, channels and
    channels_per_dilation of `paper.table(1)`; empty cells as there."""
    side = size >> (plan.fused_stages[0] - 1)
    rows = [(side >> j, count, None) for j, count in enumerate(plan.fusion.outputs)]
    rows += [(side >> j, None, "+".join(map(str, split))) for j, split in enumerate(plan.fusion.dilated)]
    rows += [(side, plan.fusion.merged, None), (side, 1, None)]
    table = pd.DataFrame(rows, columns=["size", "channels", "channels_per_dilation"])
    return table.astype({"channels": "Int64"})


def without_stem(plan: ChannelPlan) -> ChannelPlan:
    """The plan with the 17 blocks that Table 2 prints: its 3x3 block is the first of stage 1's three."""
    return replace(plan, blocks=plan.blocks[:1] + plan.blocks[2:], stages=(plan.stages[0] - 1, *plan.stages[1:]))


def as_printed(plan: ChannelPlan) -> pd.Series:
    """Of Table 1, row by row, whether every printed cell is that of the plan."""
    ours, printed = fusion_rows(plan), paper.table(1)
    cells = printed[list(ours)].astype("string").fillna("") == ours.astype("string").fillna("")
    return cells.all(axis="columns")


def count(model: CSNet) -> dict[str, float]:
    """Parameters in thousands and the paper's MACC in 10^9 for one image of 224 x 224."""
    return {"parameters_k": count_parameters(model) / 1e3, "macc_g": paper_macc(model.plan) / 1e9}


def compare(ours: pd.DataFrame, printed: pd.DataFrame, on: Sequence[str], missing: str) -> pd.DataFrame:
    """`paper.compare` of parameters and MACC, and a column that says why they differ: how the paper shortened
    an exact count for print, or, for a row without ours, `missing`.

    Raises SodlibError where a difference is more than that.
    """
    table = paper.compare(ours, printed, on=list(on), values=list(COLUMNS)).round(9)
    table["reason", ""] = [_reason(row, missing) for _, row in table.iterrows()]
    return table


def _reason(row: pd.Series, missing: str) -> str:
    if any(np.isnan(row[value, "ours"]) for value in COLUMNS):
        return missing
    parameters, macc = (shortening(row[value, "ours"], row[value, "paper"], value) for value in COLUMNS)
    return f"{parameters} in print" if parameters == macc else f"in print parameters {parameters}, MACC {macc}"


def shortening(exact: float, printed: float, value: str) -> str:
    """How the paper came from the exact to the printed "parameters_k" or "macc_g": ROUNDED or CUT.

    Raises SodlibError where it is neither.
    """
    step = 10.0 ** -DECIMALS[value]
    if abs(exact - printed) <= step / 2:
        return ROUNDED
    if 0 < exact - printed < step:
        return CUT
    raise SodlibError(f"{value}: the paper prints {printed}, ours is {exact:.4f}; print cannot explain that.")


def low_resolution(plans: Sequence[ChannelPlan]) -> pd.DataFrame:
    """The share of the low resolution among the output channels of the blocks of stages 1 to 4 that keep two, a row a
    stage, the mean over the plans: of "all" such blocks, of those in the "middle" and of the first and last, the
    "ends", where there are three or more (Figure 10)."""

    def share(splits: Sequence[Split]) -> float:
        return sum(low for _, low in splits) / sum(map(sum, splits))

    found: dict[str, list[dict[str, float]]] = {}
    for plan in plans:
        kept: dict[str, list[Split]] = {}
        for block in list(plan.block_plans())[1:]:
            if len(block.outputs) > 1:
                kept.setdefault(f"stage {block.name[len('stage')]}", []).append(block.outputs)
        for stage, splits in kept.items():
            parts = {"middle": share(splits[1:-1]), "ends": share([splits[0], splits[-1]])} if len(splits) > 2 else {}
            found.setdefault(stage, []).append({"all": share(splits)} | parts)
    means = {stage: pd.DataFrame(rows).mean() for stage, rows in found.items()}
    return pd.DataFrame(means).T.reindex(columns=["all", "middle", "ends"])
