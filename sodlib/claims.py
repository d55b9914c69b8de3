"""The claims that are more than a list of differences: what each is reduced to, and its limits, which are our reading.

Every function returns the `verdicts.Entry` of one claim, or of a part of one, from its records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from . import paper, published, timing
from .channels import plan_channels
from .comparison import LIGHT, best
from .cost import count_parameters
from .counts import as_printed, count, without_stem
from .csnet import CSNet
from .decay import GAP
from .description import Run
from .evidence import Evidence, shown
from .features import DEVIATION_IMAGES
from .records import Record
from .severing import largest_scales, severed, severed_layers
from .study import (
    DECAYS_COMPARED,
    MATCHED,
    TABLE_7,
    VANILLA,
    X2,
    replace,
)
from .verdicts import AGREES, OPPOSITE, Entry, holds, in_words, lossless, no_loss, same_sign

#: Our limits where a claim is no difference. The share of parameters that may stay ("about 80 % fewer"); how many more
#: or fewer of the scales must lie there ("a clear gap"); how many times larger a network may be where it is "hardly
#: larger", and where a threshold "has no effect"; how large a network for saliency may be beside one for classes ("far
#: fewer"); from which share of the channels on one is "more".
LEFT, MORE, LARGER, ALIKE, FAR, EVEN = 0.25, 0.05, 2.0, 1.1, 2 / 3, 0.02
#: How many times as long as CSNet-x1-L these may take where it is "ten times faster" (within a factor of 1.5), and "at
#: a similar speed" (0.94 in Table 8, within 0.1).
SPEEDS = {"PoolNet": (10 / 1.5, 10 * 1.5), "ENet": (0.84, 1.04)}
#: Max F-measure and parameters of the headline (CSNet-x1-L's, x2-L's).
HEADLINE_F, HEADLINE_PARAMETERS = 0.900, 150_000
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


def at_most(item: Evidence, run: Run, other: Run, most: float) -> str:
    """The sign of a network having at most so many times the parameters of another, with every seed."""
    by_seed = [[record.data["parameters"] for record in item.of(one)] for one in (run, other)]
    return counted([ours <= most * theirs for ours, theirs in zip(*by_seed, strict=False)])


def size(item: Evidence, names: str, run: Run, other: Run, most: float) -> Entry:
    """`at_most`, with both sizes in words."""
    ours, theirs = (thousands(item.parameters(one)) for one in (run, other))
    sign = at_most(item, run, other, most)
    return Entry(f"{names}: {ours} and {theirs} parameters [{sign}]", (sign,))


def missing(item: str = "") -> Entry:
    """The entry of a claim whose runs are not there."""
    return Entry("not recorded", ("not recorded",), item=item)


def thousands(parameters: float) -> str:
    """A number of parameters in print."""
    return shown(parameters / 1e3, "{:.0f}K")


def costs(item: Evidence, runs: Mapping[str, Run]) -> Entry:
    """That every one of these networks, after pruning, asks for more MACC and parameters than the one before, with
    every seed."""
    table, said, signs = item.table(runs), [], []
    by_seed = list(zip(*map(item.of, runs.values()), strict=False))
    for name, words, form, asked in (("macc_g", "MACC", "{:.3f}G", lambda data: data["macs"]["paper"]),
                                     ("parameters_k", "parameters", "{:.0f}K", lambda data: data["parameters"]),
                                     ):  # fmt: skip
        signs.append(counted([bool(np.all(np.diff([asked(one.data) for one in records]) > 0)) for records in by_seed]))
        said.append(f"{words} {', '.join(shown(value, form) for value in table[name])} [{signs[-1]}]")
    return Entry("; ".join(said), tuple(signs))


def blocks(item: Evidence) -> Entry:
    """In-layer multi-scale blocks against vanilla ones, where both have learned more than the mean mask."""
    extractor, vanilla = Run(network="extractor"), item.chosen(VANILLA)
    sign = no_loss(lost := item.difference(extractor, vanilla))
    rates = [run.learning_rate or item.preset.learning_rate for run in (extractor, vanilla)]
    apart = "" if rates[0] == rates[1] else f" (at learning rates of {rates[0]:g} and {rates[1]:g})"
    return Entry(f"Extractor 5/5 over Vanilla 5/5{apart} {lost} [{lossless(sign)}]", (sign,))


def with_every(seeds: Sequence[bool | None]) -> str:
    """The sign of a part that holds, or not, with every seed; None: too near to tell."""
    if not seeds:
        return holds(None)
    if len(seeds) == 1:
        return "not known with one seed"
    alike = seeds[0] if len(set(seeds)) == 1 else None
    return "not told apart" if alike is None else holds(alike)


def counted(seeds: Sequence[bool]) -> str:
    """The sign of a count, the same with every seed that there is."""
    return holds(seeds[0]) if len(seeds) == 1 else with_every(seeds)


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
    bar = f"; the bar is {HEADLINE_F:.3f}, the printed score of CSNet×1-L; no large detector is scored here"
    return Entry(f"ECSSD, n = {images:,}: " + "; ".join(said) + bar, tuple(signs), cause=why)


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
    """The time of a large network and of a light-weight one for another task over CSNet-x1-L's, each in plain torch on
    one core."""
    measured = timing.read("table8") or {"rows": {}}
    if not {*SPEEDS, "CSNet×1-L"} <= set(measured["rows"]):
        return missing()
    large, light, ours = (measured["rows"][name]["median_ms"] for name in (*SPEEDS, "CSNet×1-L"))
    ratios = zip((large / ours, light / ours), SPEEDS.values(), strict=True)
    signs = tuple(holds(low <= ratio <= high) for ratio, (low, high) in ratios)
    core = measured["circumstances"]["hardware"].partition(",")[0]
    return Entry(
        f"PoolNet takes {large:.0f} ms, {large / ours:.1f} times as long as CSNet×1-L's {ours:.0f} ms [{signs[0]}]; "
        f"ENet {light:.0f} ms, {light / ours:.2f} times as long [{signs[1]}]; in plain torch at {measured['size']} × "
        f"{measured['size']}, one thread of an {core}",
        signs,
        cause="ENet shrinks its features of full resolution at once, CSNet's stage 1 works at the size of the image",
    )


def deviation(item: Evidence) -> Entry:
    """Over the layers, the median standard deviation between channels."""
    if not all(map(item.of, DECAYS_COMPARED[:2])):
        return missing("Figure 4")
    found = {run.decay: item.deviations(run) for run in DECAYS_COMPARED if item.of(run)}
    lower = np.median(found["dynamic"], 1) < np.median(found["standard"], 1)
    medians = ", ".join(f"{decay} {np.median(values.mean(0)):.3f}" for decay, values in found.items())
    said, sign = f"median over the layers, {DEVIATION_IMAGES} validation images: {medians}", with_every(list(lower))
    said += f"; dynamic below standard with {sum(lower)} of {len(lower)} seeds [{sign}]"
    layers = list(largest_scales(item.of(DECAYS_COMPARED[0])[0]))
    cut = {layer for run in DECAYS_COMPARED[:2] for record in item.of(run) for layer in severed_layers(record)}
    if cut:
        whole = [layer not in cut for layer in layers]
        alive = " and ".join(
            f"{run.decay} {np.median(found[run.decay].mean(0)[whole]):.3f}" for run in DECAYS_COMPARED[:2]
        )
        said += f" (dead channels are even too; over the {sum(whole)} layers that no seed has severed: {alive})"
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
