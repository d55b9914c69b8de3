"""The claims on pruning: what each is reduced to. As `claims.py`, where the limits are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd

from .channels import ChannelPlan
from .claims import ALIKE, BUDGET, EVEN, LEFT, at_most, beyond, missing, size, thousands, with_every
from .counts import low_resolution
from .description import Pruning, Run
from .evidence import Evidence, shown
from .severing import severed_layers
from .study import AT_SIZE, LOST, RATIO_SIZES, REDUNDANT, X2
from .verdicts import AGREES, MARGIN, Entry, in_words, joined, lossless, no_loss, same_sign

#: Table 10's thresholds that lie inside the gap of the published scales: the smallest network, and the largest.
IN_GAP = (3e-3, 1e-20)


def of_images(item: Evidence) -> str:
    """What intervals between prunings of one training with one seed do not allow for."""
    return " (one training: intervals of the images alone)" if len(item.seeds) == 1 else ""


def compression(longest: Evidence, sized: Evidence) -> Entry:
    """At the published size, and by what the training itself calls redundant, where both are of one preset."""
    if (longest.preset, longest.seeds) != (sized.preset, sized.seeds):
        longest = replace(longest, records=dict.fromkeys(longest.records, ()))
    small, left, standard = AT_SIZE[X2], replace(X2, pruning=REDUNDANT), replace(X2, decay="standard")
    lost = {run: item.difference(run, X2) for run, item in ((small, sized), (left, longest))}
    share = {run: item.parameters(run) / item.parameters(X2) for run, item in ((small, sized), (left, longest))}
    few = at_most(longest, left, X2, LEFT)
    signs = (no_loss(lost[small]), few, no_loss(lost[left]))
    without = sized.difference(AT_SIZE[standard], standard)
    merit = ", so that this is no merit of the dynamic one" if no_loss(without) == AGREES else ""
    small_removed, removed = (shown(1 - share[run], "{:.0%}") for run in (small, left))
    said = (
        f"×2 at the published size, {small_removed} removed: max F {lost[small]} [{lossless(signs[0])}] (with standard "
        f"decay {without}{merit}); without its redundant channels, {removed} removed [{signs[1]}]: max F "
        f"{lost[left]} [{lossless(signs[2])}]{of_images(sized)}"
    )
    return Entry(
        said, signs, item=sized.item, cause="how much becomes redundant depends on the learning rate (page 02)"
    )


def thresholds(item: Evidence, sized: Evidence) -> Entry:
    """That a threshold inside the gap has no effect, and is better than a fixed ratio with fewer parameters: as the
    paper's threshold, and at the paper's size, which is `sized`'s if it is of the same training."""
    smallest, largest = (replace(X2, pruning=Pruning(threshold=value)) for value in IN_GAP)
    ratios = {left: replace(X2, pruning=Pruning(parameters=left)) for left in RATIO_SIZES}
    lost = item.difference(smallest, largest)
    spread = size(item, f"thresholds {IN_GAP[1]:g} and {IN_GAP[0]:g}", largest, smallest, ALIKE)
    effect = Entry(in_words(["max F of the second over the first"], [lost], [lossless(sign := no_loss(lost))]), (sign,))
    cuts, at_size = {f"threshold {IN_GAP[0]:g}": smallest}, AT_SIZE[X2]
    item = item.with_runs_of(sized)
    if at_size in item.records:
        cuts[f"the threshold that leaves {thousands(at_size.pruning.parameters)}"] = at_size
    pairs = {f"{name} over the fixed ratio of {thousands(left)}": (run, ratio)
             for name, run in cuts.items() for left, ratio in ratios.items()}  # fmt: skip
    over = [item.difference(*pair) for pair in pairs.values()]
    signs = tuple(same_sign(printed, one) for printed, one in zip((0.035, 0.001) * len(cuts), over, strict=True))
    why = "after a short training the scales fill what is a gap in the published network"
    better = Entry(in_words(list(pairs), over, signs) + of_images(item), signs)
    return replace(joined(spread, effect, better), item=item.item, cause=why)


#: The steps from a network to its pruned one (`LOST`).
STEPS = ("new statistics", "redundant channels as constants", "without them")


def steps_lost(item: Evidence) -> pd.DataFrame:
    """What each step from a network to its pruned one changes of max F, and all together, a row a recorded network by
    width and seed."""
    rows = {}
    for run, steps in LOST.items():
        for seed, values in zip(item.seeds, zip(*map(item.values, steps), strict=False), strict=False):
            rows[run.width, seed] = [*np.diff(values), values[-1] - values[0]]
    index = pd.MultiIndex.from_tuples(rows, names=["width", "seed"])
    return pd.DataFrame(rows.values(), index, [*STEPS, "pruned over whole"], dtype=float)


def position(item: Evidence) -> str:
    """A cause of what pruning costs, where that is lost as the redundant channels become constants: with every
    network, but for a part that is small beside what pruning costs; "" elsewhere."""
    lost = steps_lost(item)
    whole = lost["pruned over whole"]
    rest = (whole - lost[STEPS[1]]).abs().max()
    if not (whole.min() < -MARGIN and rest < MARGIN / 4):
        return ""
    networks = f"each of {len(lost)} networks" if len(lost) > 1 else "the network"
    return (f"; with {networks} what pruning changes is, to {rest:.4f}, what it changes to take the redundant channels "
            "as constants: they told the position (page 03)")  # fmt: skip


def resolutions(item: Evidence) -> Entry:
    """From every stage to the next the share of the low resolution rises; within a stage, of the blocks that keep two,
    those between the first and the last keep more of the high one than these: with every seed."""
    records = item.of(Run(pruning=REDUNDANT))
    if not records:
        return missing("Figure 10")
    plans = [ChannelPlan.from_json(record.data["plan"]) for record in records]
    cut = {f"stage {layer[len('stage')]}" for record in item.of(Run()) for layer in severed_layers(record)}
    shares, by_seed = low_resolution(plans), [low_resolution([plan]) for plan in plans]

    def told(differences: Iterable[float]) -> str:
        return with_every([beyond(difference, EVEN) for difference in differences])

    stages = list(shares.index)
    rises = [told(one.loc[after, "all"] - one.loc[before, "all"] for one in by_seed)
             for before, after in pairwise(stages) if not {before, after} & cut]  # fmt: skip
    within = shares.dropna().drop(list(cut), errors="ignore")
    middles = [told(one.loc[stage, "ends"] - one.loc[stage, "middle"] for one in by_seed) for stage in within.index]
    said = [f"{stage} {row['middle']:.0%} in the middle, {row['ends']:.0%} at its ends [{sign}]"
            for (stage, row), sign in zip(within.iterrows(), middles, strict=True)]  # fmt: skip
    by_stage = ", ".join(f"{share:.0%}" for share in shares["all"])
    said = [f"low resolution, stages 1 to 4: {by_stage} [{', '.join(rises)}]", *said]
    said += [f"{stage}: severed layers, not judged" for stage in sorted(cut)]
    return Entry(
        f"{'; '.join(said)} (less than {EVEN:.0%} is even)",
        (*rises, *middles),
        item="Figure 10",
        cause=BUDGET,
        scored=False,
    )
