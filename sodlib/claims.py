"""The claims that are more than a list of differences: what each is reduced to, and its limits, which are our reading.

Every function returns the `verdicts.Entry` of one claim, or of a part of one, from its records.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from . import paper, published, timing
from .channels import ChannelPlan, plan_channels
from .comparison import LIGHT, best
from .cost import count_parameters
from .counts import as_printed, count, low_resolution, without_stem
from .csnet import CSNet
from .decay import GAP
from .description import Run
from .evidence import Evidence, shown
from .features import DEVIATION_IMAGES
from .records import Record
from .severing import severed
from .study import (
    AT_SIZE,
    DECAYS_COMPARED,
    LOST,
    MATCHED,
    RATIO_SIZES,
    REDUNDANT,
    TABLE_7,
    VANILLA,
    X2,
    Pruning,
    replace,
)
from .verdicts import AGREES, MARGIN, OPPOSITE, Entry, holds, in_words, joined, no_loss, same_sign

#: Our limits where a claim is no difference. The share of parameters that may stay ("about 80 % fewer"); how many more
#: or fewer of the scales must lie there ("a clear gap"); how many times larger a network may be where it is "hardly
#: larger", and where a threshold "has no effect"; how large a network for saliency may be beside one for classes ("far
#: fewer"); by which factor "ten times as fast" may be missed; from which share of the channels on one is "more".
LEFT, MORE, LARGER, ALIKE, FAR, TENFOLD, EVEN = 0.25, 0.05, 2.0, 1.1, 2 / 3, 1.5, 0.02
#: Max F-measure and parameters of the headline (CSNet-x1-L's, x2-L's).
HEADLINE_F, HEADLINE_PARAMETERS = 0.900, 150_000
#: Table 10's thresholds that lie inside the gap of the published scales: the smallest network, and the largest.
IN_GAP = (3e-3, 1e-20)

BUDGET = "a short training, far below the paper's"


def budget(item: Evidence, runs: Mapping[str, Run]) -> str:
    """BUDGET as a cause, and those of the runs, by name, that it has severed layers of."""
    names = [name for name, run in runs.items() if severed(item.of(run)) > 0]
    listed = " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
    return BUDGET + (f", which severs layers of {listed} (page 02)" if names else "")


def by_decay(*runs: Run) -> dict[str, Run]:
    """Runs by the name of their decay."""
    return {f"the network with {run.decay} decay": run for run in runs}


def fusion() -> Entry:
    """Table 1, row by row, and the number of parameters of the networks that fuse three stages in the same way."""
    same = as_printed(plan_channels(stages="1-4"))
    signs = [holds(bool(same.all()))]
    said = [f"{same.sum()} of the {len(same)} rows as printed [{signs[0]}]"]
    for width, total in ((1, 211), (2, 788)):
        parameters = count_parameters(CSNet(plan_channels(width=width)))
        signs.append(holds(abs(parameters / 1000 - total) < 1))
        said.append(f"three stages fused alike, ×{width}: {parameters:,} parameters, paper {total}K [{signs[-1]}]")
    return Entry("; ".join(said), tuple(signs), cause="the other rows hold slips")


def extractor() -> Entry:
    """The blocks of Table 2, and those of the release, in the network that Table 11 counts."""
    plan, (parameters, macc) = plan_channels(), paper.table(11).loc[0, ["parameters_k", "macc_g"]]
    said, signs = [], []
    for blocks in (without_stem(plan), plan):
        ours = count(CSNet(blocks))
        met = abs(ours["parameters_k"] - parameters) < 0.5 and abs(ours["macc_g"] - macc) < 0.005
        signs.append(holds(met))
        said.append(f"with {len(blocks.blocks)} blocks {ours['parameters_k']:.1f}K parameters and "
                    f"{ours['macc_g']:.3f}G MACC [{signs[-1]}]")  # fmt: skip
    why = "the table leaves out the stem, and where the scales merge"
    return Entry(f"paper, CSNet ×1: {parameters:.0f}K and {macc:.2f}G; {'; '.join(said)}", tuple(signs), cause=why)


def size(item: Evidence, names: str, run: Run, other: Run, most: float) -> Entry:
    """That a network has at most so many times the parameters of another."""
    ours, theirs = item.parameters(run), item.parameters(other)
    sign = holds(None if np.isnan(ours + theirs) else ours <= most * theirs)
    return Entry(f"{names}: {thousands(ours)} and {thousands(theirs)} parameters [{sign}]", (sign,))


def missing(item: str = "") -> Entry:
    """The entry of a claim whose runs are not there."""
    return Entry("not recorded", ("not recorded",), item=item)


def thousands(parameters: float) -> str:
    """A number of parameters in print."""
    return shown(parameters / 1e3, "{:.0f}K")


def costs(item: Evidence, runs: Mapping[str, Run]) -> Entry:
    """That every one of these networks, after pruning, asks for more MACC and parameters than the one before."""
    table, said, signs = item.table(runs), [], []
    for name, words, form in (("macc_g", "MACC", "{:.3f}G"), ("parameters_k", "parameters", "{:.0f}K")):
        cost = table[name]
        signs.append(holds(None if cost.isna().any() else bool((cost.diff().dropna() > 0).all())))
        said.append(f"{words} {', '.join(shown(value, form) for value in cost)} [{signs[-1]}]")
    return Entry("; ".join(said), tuple(signs))


def blocks(item: Evidence) -> Entry:
    """In-layer multi-scale blocks against vanilla ones, where both have learned more than the mean mask."""
    lost = item.difference(Run(network="extractor"), item.chosen(VANILLA))
    sign = no_loss(lost)
    return Entry(f"Extractor 5/5 over Vanilla 5/5 {lost} [{sign}]", (sign,))


def with_every(seeds: Sequence[bool | None]) -> str:
    """The sign of a part that holds, or not, with every seed; None: too near to tell."""
    if not seeds:
        return holds(None)
    if len(seeds) == 1:
        return "not known with one seed"
    alike = seeds[0] if len(set(seeds)) == 1 else None
    return "not told apart" if alike is None else holds(alike)


def beyond(difference: float, least: float) -> bool | None:
    """Whether a difference without an interval lies above zero, for `with_every`; None where it is smaller than our
    limit."""
    return difference > 0 if abs(difference) >= least else None


def headline(trained: Mapping[str, Record]) -> Entry:
    """The released weights, scored here, and what was trained here at such a size: as in the paper where the whole
    interval reaches the paper's score."""
    weights = published.every().get("csnet-x2-l-released")
    networks = ({"the authors' weights": weights} if weights else {}) | trained
    said, signs = [], []
    for name, record in networks.items():
        scores = record.data["scores"].get("ECSSD", {}).get("released")
        if scores and record.data["parameters"] < HEADLINE_PARAMETERS:
            low, high = scores["max_f_interval"]
            signs.append(AGREES if low >= HEADLINE_F else OPPOSITE if high < HEADLINE_F else "not told apart")
            said.append(f"{name}: {record.data['parameters']:,} parameters, max F {scores['max_f']:.3f} "
                        f"({low:.3f} to {high:.3f}), MAE {scores['mae']:.3f} [{signs[-1]}]")  # fmt: skip
    images = next((record.data["images"].get("ECSSD", 0) for record in networks.values()), 0)
    presets = sorted({record.data["preset"]["name"] for record in trained.values()})
    why = f"trained here for a small part of the published 300 epochs (preset {', '.join(presets)}), each network once"
    return Entry(f"ECSSD, n = {images:,}: " + "; ".join(said), tuple(signs), cause=why)


def compression(longest: Evidence, sized: Evidence) -> Entry:
    """At the published size, and by what the training itself calls redundant, where both are of one preset."""
    if (longest.preset, longest.seeds) != (sized.preset, sized.seeds):
        longest = replace(longest, records=dict.fromkeys(longest.records, ()))
    small, left, standard = AT_SIZE[X2], replace(X2, pruning=REDUNDANT), replace(X2, decay="standard")
    lost = {run: item.difference(run, X2) for run, item in ((small, sized), (left, longest))}
    share = {run: item.parameters(run) / item.parameters(X2) for run, item in ((small, sized), (left, longest))}
    few = holds(None if np.isnan(share[left]) else share[left] <= LEFT)
    signs = (no_loss(lost[small]), few, no_loss(lost[left]))
    without = sized.difference(AT_SIZE[standard], standard)
    merit = ", so that this is no merit of the dynamic one" if no_loss(without) == AGREES else ""
    small_removed, removed = (shown(1 - share[run], "{:.0%}") for run in (small, left))
    said = (
        f"×2 at the published size, {small_removed} removed: max F {lost[small]} [{signs[0]}] (with standard "
        f"decay {without}{merit}); without its redundant channels, {removed} removed [{signs[1]}]: max F "
        f"{lost[left]} [{signs[2]}]"
    )
    return Entry(
        said, signs, item=sized.item, cause="how much becomes redundant depends on the learning rate (page 02)"
    )


def others(item: Evidence) -> Entry:
    """Against the best light-weight network by the validation split. No large detector is at hand as the paper has it,
    from ImageNet."""
    name = best(item, LIGHT)
    ours, run = (item.chosen(TABLE_7[one]) for one in ("CSNet×2-L", name))
    signs = (same_sign(0.022, difference := item.difference(ours, run)),)
    sizes = " and ".join(thousands(item.parameters(one)) for one in (ours, run))
    said = in_words([f"CSNet×2-L over {name} ({sizes} parameters)"], [difference], signs)
    why = budget(item, {"CSNet ×2": X2}) + "; without large detectors, which begin with weights of ImageNet"
    return Entry(said, signs, item="Table 7", cause=why)


def speed() -> Entry:
    """The time of a large network over CSNet-x1-L's, each in plain torch on one core."""
    measured = timing.read("table8") or {"rows": {}}
    if not {"PoolNet", "CSNet×1-L"} <= set(measured["rows"]):
        return missing()
    large, ours = (measured["rows"][name]["median_ms"] for name in ("PoolNet", "CSNet×1-L"))
    sign, made = holds(10 / TENFOLD <= large / ours <= 10 * TENFOLD), measured["circumstances"]
    times = f"PoolNet takes {large:.0f} ms, {large / ours:.1f} times as long as CSNet×1-L's {ours:.0f} ms [{sign}]"
    return Entry(
        f"{times}, both in plain torch at {measured['size']} × {measured['size']} on {made['hardware']}", (sign,)
    )


def thresholds(item: Evidence, sized: Evidence) -> Entry:
    """That a threshold inside the gap has no effect, and is better than a fixed ratio with fewer parameters: as the
    paper's threshold, and at the paper's size, which is `sized`'s if it is of the same training."""
    smallest, largest = (replace(X2, pruning=Pruning(threshold=value)) for value in IN_GAP)
    ratios = {left: replace(X2, pruning=Pruning(parameters=left)) for left in RATIO_SIZES}
    lost = item.difference(smallest, largest)
    spread = size(item, f"thresholds {IN_GAP[1]:g} and {IN_GAP[0]:g}", largest, smallest, ALIKE)
    effect = Entry(in_words(["max F of the second over the first"], [lost], [sign := no_loss(lost)]), (sign,))
    cuts, at_size = {f"threshold {IN_GAP[0]:g}": smallest}, AT_SIZE[X2]
    item = item.with_runs_of(sized)
    if at_size in item.records:
        cuts[f"the threshold that leaves {thousands(at_size.pruning.parameters)}"] = at_size
    pairs = {f"{name} over the fixed ratio of {thousands(left)}": (run, ratio)
             for name, run in cuts.items() for left, ratio in ratios.items()}  # fmt: skip
    over = [item.difference(*pair) for pair in pairs.values()]
    signs = tuple(same_sign(printed, one) for printed, one in zip((0.035, 0.001) * len(cuts), over, strict=True))
    fewer = [size(item, "threshold and ratio", smallest, run, 1.0) for run in ratios.values()]
    why = "after a short training the scales fill what is a gap in the published network"
    better = Entry(in_words(list(pairs), over, signs), signs)
    return replace(joined(spread, effect, better, *fewer), item=item.item, cause=why)


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
    return f"; with {networks} what pruning changes is a map of the position, but for {rest:.4f} at most"


def deviation(item: Evidence) -> Entry:
    """Over the layers, the median standard deviation between channels."""
    if not all(map(item.of, DECAYS_COMPARED[:2])):
        return missing("Figure 4")
    found = {run.decay: item.deviations(run) for run in DECAYS_COMPARED if item.of(run)}
    lower = np.median(found["dynamic"], 1) < np.median(found["standard"], 1)
    medians = ", ".join(f"{decay} {np.median(values.mean(0)):.3f}" for decay, values in found.items())
    said, sign = f"median over the layers, {DEVIATION_IMAGES} validation images: {medians}", with_every(list(lower))
    said += f"; dynamic below standard with {sum(lower)} of {len(lower)} seeds [{sign}] (dead channels are even too)"
    return Entry(said, (sign,), item="Figure 4", cause=BUDGET, scored=False)


def gap(item: Evidence) -> Entry:
    """With dynamic decay fewer scales inside the gap than with standard, and more below what is redundant."""
    standard, dynamic = (item.of(run) for run in DECAYS_COMPARED[:2])
    if not standard or not dynamic:
        return missing("Figure 5")

    def inside(scales: np.ndarray) -> float:
        return float(((scales > GAP[0]) & (scales < GAP[1])).mean())

    def redundant(scales: np.ndarray) -> float:
        return float((scales < item.preset.redundant).mean())

    said, signs = [], []
    for words, share, way in ((f"scales between {GAP[0]:g} and {GAP[1]:g}", inside, -1),
                              (f"below {item.preset.redundant:g}", redundant, 1)):  # fmt: skip
        ours, theirs = ([share(record.scales()) for record in records] for records in (dynamic, standard))
        signs.append(with_every([beyond(way * (one - other), MORE) for one, other in zip(ours, theirs, strict=True)]))
        said.append(f"{words}: dynamic {np.mean(ours):.0%}, standard {np.mean(theirs):.0%} [{signs[-1]}]")
    why = budget(item, by_decay(*DECAYS_COMPARED[:2]))
    return Entry("; ".join(said), tuple(signs), item="Figure 5", cause=why, scored=False)


def resolutions(item: Evidence) -> Entry:
    """From every stage to the next the share of the low resolution rises; within a stage, of the blocks that keep two,
    those between the first and the last keep more of the high one than these: with every seed."""
    records = item.of(Run(pruning=REDUNDANT))
    if not records:
        return missing("Figure 10")
    plans = [ChannelPlan.from_json(record.data["plan"]) for record in records]
    shares, by_seed = low_resolution(plans), [low_resolution([plan]) for plan in plans]

    def told(differences: Iterable[float]) -> str:
        return with_every([beyond(difference, EVEN) for difference in differences])

    stages = list(shares.index)
    rises = [told(one.loc[after, "all"] - one.loc[before, "all"] for one in by_seed)
             for before, after in pairwise(stages)]  # fmt: skip
    within = shares.dropna()
    middles = [told(one.loc[stage, "ends"] - one.loc[stage, "middle"] for one in by_seed) for stage in within.index]
    said = [f"{stage} {row['middle']:.0%} in the middle, {row['ends']:.0%} at its ends [{sign}]"
            for (stage, row), sign in zip(within.iterrows(), middles, strict=True)]  # fmt: skip
    by_stage = ", ".join(f"{share:.0%}" for share in shares["all"])
    said = [f"low resolution, stages 1 to 4: {by_stage} [{', '.join(rises)}]", *said]
    return Entry(
        f"{'; '.join(said)} (less than {EVEN:.0%} is even)",
        (*rises, *middles),
        item="Figure 10",
        cause=BUDGET,
        scored=False,
    )


def complexity(item: Evidence) -> Entry:
    """At equal size dynamic decay is better, and from one size to half of it, it loses less with every seed."""
    standard, dynamic = Run(decay="standard"), Run()
    ways = {f"{way.parameters / 1000:g}K": way for way in MATCHED}
    better = {f"dynamic over standard at {name} parameters": item.difference(*(replace(run, pruning=way) for run in
              (dynamic, standard))) for name, way in ways.items()}  # fmt: skip
    signs = [same_sign(1.0, one) for one in better.values()]
    lost = {run: item.difference(*(replace(run, pruning=way) for way in MATCHED[::-1])) for run in (dynamic, standard)}
    by_seed = [[item.values(replace(run, pruning=way)) for way in MATCHED] for run in (dynamic, standard)]
    less = [full - half < full_standard - half_standard
            for full, half, full_standard, half_standard in zip(*by_seed[0], *by_seed[1], strict=False)]  # fmt: skip
    signs.append(with_every(less))
    said = in_words(list(better), list(better.values()), signs[:-1])
    names = list(ways)
    said += (f"; from {names[0]} to {names[1]}: dynamic {lost[dynamic]}, standard {lost[standard]}, dynamic loses less "
             f"with {sum(less)} of {len(less)} seeds [{signs[-1]}]")  # fmt: skip
    return Entry(said, tuple(signs), item=item.item, cause=budget(item, by_decay(standard, dynamic)))
