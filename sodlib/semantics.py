"""The claims on what a detector knows of categories, and on pre-training: what each is reduced to. As `claims.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from scipy.stats import binom

from . import labels
from .claims import BUDGET, budget, missing, thousands, with_every
from .description import Run
from .evidence import Evidence
from .sensitivity import Sensitivity, p_value, sensitivity
from .study import (
    COMPARED,
    FEWER,
    IMAGENET,
    LABELLED,
    MIDDLE,
    PROBES,
    RANDOM,
    REDUNDANT,
    STARTS,
    TRANSFERS,
    WITHOUT,
    X1_5,
    replace,
)
from .verdicts import AGREES, MARGIN, MARGIN_MAE, OPPOSITE, Entry, in_words, no_loss, same_sign

#: Whose layers a pre-training may sever, and what else a pre-training brings.
SEVERED_STARTS = {"the pre-trained networks": STARTS["folder"]}
MORE_STEPS = "; a pre-training adds steps to it; ten classes stand in for ImageNet"


def mechanism(item: Evidence) -> Entry:
    """The paper's two comparisons, and at their optimum the features that know nothing of photographs."""
    scratch = item.difference(RANDOM, TRANSFERS["linear"], "accuracy")
    tuned = item.difference(RANDOM, TRANSFERS["all"], "accuracy")
    probes = item.difference(*PROBES.values(), "accuracy")
    knows = {"higher": OPPOSITE, "lower": AGREES}.get(probes.sign, probes.sign)
    names = ("accuracy from scratch over the linear layer alone", "over everything tuned",
             "at its optimum, saliency over random features")  # fmt: skip
    signs = (same_sign(0.430, scratch), same_sign(0.027, tuned), knows)
    why = "the schedule stops the linear layer early, and the paper has no control with random features"
    return Entry(in_words(names, (scratch, tuned, probes), signs), signs, item="Table 3", cause=why)


def both_left_out(item: Evidence) -> list[str]:
    """The categories of Figure 8 that are recorded with their control."""
    return [name for name in labels.CATEGORIES if item.of(WITHOUT[name]) and item.of(FEWER[name])]


def left_out(item: Evidence, runs: Mapping[str, Run], test_set: str) -> Sensitivity:
    """What changes without a category (`runs`: WITHOUT) or without as many images of any (FEWER)."""
    return sensitivity(item.of(LABELLED), {name: item.of(runs[name]) for name in both_left_out(item)}, test_set)


def categories(item: Evidence) -> Entry:
    """By the paper's own criterion, its own category is not what most networks lose most of: opposite where it is so
    more often than by chance (p < 0.05). And by the statistic of page 04 beyond the control: opposite where p < 0.05
    and the interval lies below zero, as in the paper where no more than MARGIN can be lost."""
    if not both_left_out(item) or not item.of(LABELLED):
        return missing("Figure 8")
    said, signs = [], []
    for test_set in (item.preset.tests[0], item.preset.part("labelled-test")):
        without, fewer = (left_out(item, runs, test_set) for runs in (WITHOUT, FEWER))
        (worst, of), chance = without.lowest(), without.less(fewer).chance()
        value, low, high = without.less(fewer).own()
        by_chance = 1 / len(without.columns)
        signs += [
            OPPOSITE if binom.sf(worst - 1, of, by_chance) < 0.05 else AGREES if worst <= of / 2 else "not told apart",
            OPPOSITE if chance < 0.05 and high < 0 else AGREES if low > -100 * MARGIN else "not told apart",
        ]
        ((most, often),) = Counter(without.columns[row.argmin()] for row in without.change).most_common(1)
        fewest = without.images[without.columns.index(most)]
        said.append(
            f"{test_set}, {sum(without.images):,} images: the category left out loses most for {worst} of "
            f"{of} networks [{signs[-2]}] (for {often} of {len(without.rows)} it is {most}, n = {fewest}); beyond the "
            f"control {value:+.1f} % of F ({low:+.1f} to {high:+.1f}), {p_value(chance)} [{signs[-1]}]"
        )
    why = (
        "the paper's criterion looks at the largest loss of a row alone, which is mostly of a category with few test "
        "images, and it has no control; the p value takes images and seeds as given, the interval does not, and "
        '"opposite" needs both'
    )
    return Entry("; ".join(said), tuple(signs), item="Figure 8", cause=why)


def tasks(item: Evidence, *limits: float) -> Entry:
    """That the pruned saliency network has less than so many times the classifier's parameters, with every seed; a part
    for every limit."""
    sizes = {
        name: [record.data["parameters"] for record in item.of(replace(run, pruning=REDUNDANT))]
        for name, run in X1_5.items()
    }
    pairs = list(zip(*sizes.values(), strict=False))
    listed = ", ".join(" and ".join(map(thousands, pair)) for pair in pairs)
    said, signs = [f"saliency and classification, by seed: {listed}"], []
    for limit in limits:
        fewer = [saliency < limit * classification for saliency, classification in pairs]
        signs.append(with_every(fewer))
        part = "fewer" if limit == 1 else f"less than {limit:.0%} as many"
        said.append(f"{part} with {sum(fewer)} of {len(fewer)} seeds [{signs[-1]}]")
    before = item.of(X1_5["saliency"])
    images = next(iter(before[0].data["images"].values())) if before else 0
    epochs = (
        f", some {item.preset.batch * item.steps / images:.0f} epochs where section 5.2 has 3,000" if images else ""
    )
    return Entry("; ".join(said), tuple(signs), item="Table 4", cause=BUDGET + epochs, scored=False)


def looking(item: Evidence, name: str, network: Run, claimed: float = 1.0) -> Entry:
    """How far the maps of a network are on the object, beyond its share of the image; `claimed`: the sign that this
    should have. That they point at it less often than the image's centre does is told, and is no part: so do the maps
    of every network."""
    said, signs = [], []
    for method, kind in (("cam", "CAM"), ("grad-cam", "Grad-CAM")):
        looked = replace(network, activation_map=method)
        energy, pointing = (item.score(looked, name) for name in ("energy beyond area", "pointing beyond centre"))
        signs.append(same_sign(claimed, energy))
        pointed = f", pointing less the centre's {pointing}" if str(pointing) else ""
        said.append(in_words([f"{kind}, {name}: energy less the object's area"], [energy], signs[-1:]) + pointed)
    return Entry("; ".join(said), tuple(signs))


def convergence(item: Evidence) -> Entry:
    """By the error after equally many steps, before pruning, as the figure draws it: CSNet is no better from a
    pre-training than from scratch, a larger network is better from ImageNet, at each learning rate."""
    names = {"folder": "ten ImageNet classes", "categories": "categories of DUTS-TR"}
    lost = [item.difference(STARTS[images], STARTS[""], "mae") for images in names]
    signs = [no_loss(one, MARGIN_MAE) for one in lost]
    shown = [f"no better: {sign}" for sign in signs]
    said = [f"CSNet ×1.5, {name} over scratch" for name in names.values()]
    for scratch, imagenet in zip(COMPARED[MIDDLE], IMAGENET, strict=True):
        lost.append(item.difference(imagenet, scratch, "mae"))
        signs.append(same_sign(-1.0, lost[-1]))
        shown.append(signs[-1])
        said.append(f"CSF on EfficientNet-Lite0, ImageNet over scratch at a rate of "
                    f"{scratch.learning_rate or item.preset.learning_rate:g}")  # fmt: skip
    why = budget(item, SEVERED_STARTS) + MORE_STEPS
    return Entry("MAE before pruning, after equally many steps: " + in_words(said, lost, shown), tuple(signs),
                 item="Figure 11", cause=why)  # fmt: skip
