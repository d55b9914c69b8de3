"""The claims of the paper and what this project's records say of each: the ledger of page 00.

Every verdict follows from numbers by one rule (`verdicts.verdict`). What a claim is reduced to, and its limits, are
our reading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from . import labels, paper, published
from .channels import plan_channels
from .cost import count_parameters
from .csnet import CSNet
from .decay import GAP
from .description import Run
from .evidence import Evidence
from .records import Record
from .sensitivity import p_value, sensitivity
from .severing import severed
from .study import (
    AT_SIZE,
    DECAY_WEIGHTS,
    DECAYS_COMPARED,
    FEWER,
    FILTER_SIZE,
    HEADLINE,
    LABELLED,
    PROBES,
    PUBLISHED_SIZES,
    RANDOM,
    RATIO_SIZES,
    REDUNDANT,
    SPLITS,
    STARTS,
    TABLE_7,
    TRANSFERS,
    VANILLA,
    WITHOUT,
    X1_5,
    X2,
    Pruning,
    replace,
)
from .verdicts import AGREES, MARGIN, OPPOSITE, Entry, beside, holds, in_words, joined, no_loss, same_sign, verdict

#: Our limits where a claim is no difference: the share of parameters that may stay ("about 80 % fewer"), by how much
#: more of the scales must be redundant ("a clear gap"), how many times larger a network may be ("hardly larger"),
#: max F and parameters of the headline (CSNet-x1-L's, x2-L's).
LEFT, MORE, LARGER, HEADLINE_F, HEADLINE_PARAMETERS = 0.25, 0.05, 2.0, 0.900, 150_000
#: The items of the study that the ledger rests on.
ITEMS = ("Table 3", "Table 4", "Table 5", "Table 6", "Table 7", "Table 9", "Table 10", "Table 11", "Figure 4",
         "Figure 5", "Figure 8", "Figure 9", "Figure 11", "Figure 13", "Figure 14", HEADLINE,
         PUBLISHED_SIZES)  # fmt: skip

BUDGET = "a short training, far below the paper's"
ARCHITECTURE, TRAINING, PRUNING = "01_architecture", "02_training", "03_pruning"
CLASSES, PRETRAINED, COMPARED_WITH = "04_class_sensitivity", "06_imagenet_pretraining", "08_comparison"
LIGHT = ("Eff.Net", "Sf.Netv2", "ENet", "CGNet", "DABNet", "ESPNetv2", "BiseNet")
#: Name, the paper's difference (1 or -1 where only its sign is printed), two runs, and the measure if it is not max F.
Row = tuple[Any, ...]


def entries(found: Mapping[str, Evidence], trained: Mapping[str, Record]) -> dict[str, Entry]:
    """The entry of every claim of `paper.claims` that has one, by id, from the evidence of ITEMS; `trained`: the best
    networks of this project, by name, for the headline."""
    x1, standard = Run(), DECAYS_COMPARED[0]
    fused = {stages: replace(X2, stages=stages, pruning=REDUNDANT) for stages in ("4", "3-4", "2-4", "1-4")}
    threshold = replace(X2, pruning=Pruning(threshold=1e-3))
    ratio = replace(X2, pruning=Pruning(parameters=RATIO_SIZES[1]))
    filters = {name: Pruning(name, parameters=FILTER_SIZE) for name in ("l1", "geometric-median")}
    tuned, linear = TRANSFERS["all"], TRANSFERS["linear"]
    of_table6 = {"Extractor": Run(network="extractor"), "Vanilla": found["Table 6"].chosen(VANILLA)}
    of_table6 |= {"CSNet ×1": x1, "CSNet ×2": X2}

    def pruned(run: Run) -> Run:
        return replace(run, pruning=REDUNDANT)

    def compared(item: str, page: str, section: str, rows: Sequence[Row], cause: str = BUDGET) -> Entry:
        """A claim of differences: each in words, and its sign."""
        ours = [found[item].difference(*runs) for _, _, *runs in rows]
        signs = tuple(same_sign(printed, one) for (_, printed, *_), one in zip(rows, ours, strict=True))
        return Entry(in_words([name for name, *_ in rows], ours, signs), signs, page, section, item, cause)

    def kept(item: str, page: str, section: str, rows: Sequence[Row], cause: str = BUDGET) -> Entry:
        """A claim that nothing is lost."""
        ours = [found[item].difference(*runs) for _, *runs in rows]
        signs = tuple(map(no_loss, ours))
        return Entry(in_words([name for name, *_ in rows], ours, signs), signs, page, section, item, cause)

    structure = Entry(
        f"CSNet ×1: {_parameters(x1):,} parameters, paper 211K; ×2: {_parameters(X2):,}, paper 788K",
        tuple(holds(abs(_parameters(run) / 1000 - printed) < 1) for run, printed in ((x1, 211), (X2, 788))),
        ARCHITECTURE, "Table 6: the splits", cause="the printed layers hold slips, which are listed there",
    )  # fmt: skip
    sized = found[PUBLISHED_SIZES]
    at_size = {f"×{run.width:g}": (AT_SIZE[run], AT_SIZE[replace(run, decay="standard")]) for run in (x1, X2)}
    tasks, categories = _tasks(found["Table 4"]), _categories(found["Figure 8"])
    return {
        "a": _mechanism(found["Table 3"]),
        "b": categories,
        "c": kept("Figure 11", PRETRAINED, "What it ends at (Table 7)", [
            ("scratch over ten ImageNet classes", pruned(STARTS[""]), pruned(STARTS["folder"])),
            ("scratch over categories of DUTS-TR", pruned(STARTS[""]), pruned(STARTS["categories"])),
        ], _budget(found["Figure 11"], {"the pre-trained networks": STARTS["folder"]})
           + "; a pre-training adds steps to it; ten classes stand in for ImageNet"),
        "d": tasks,
        "headline": _headline(trained),
        "compression": _compression(found[HEADLINE], sized),
        "table01": replace(structure, section="Table 1: the cross-stage fusion"),
        "table02": replace(structure, section="Table 2: the extractor"),
        "table03": compared("Table 3", CLASSES, "From saliency to classes (Table 3)", [
            ("fusion over stage 4", 0.121, TRANSFERS["fusion"], TRANSFERS["stage4"], "accuracy"),
            ("stage 4 over stage 1", 0.147, TRANSFERS["stage4"], TRANSFERS["stage1"], "accuracy"),
        ]),
        "table04": tasks,
        "table05": compared("Table 5", TRAINING, "Which stages to fuse (Table 5)", [
            ("stages 2-4 over 4", 0.016, fused["2-4"], fused["4"]),
            ("2-4 over 3-4", 0.006, fused["2-4"], fused["3-4"]),
            ("1-4 over 2-4", 0.002, fused["1-4"], fused["2-4"]),
        ]),
        "table06": joined(
            compared("Table 6", TRAINING, "Blocks, splits, fusion, learned channels (Table 6)", [
                *((f"fusion at {split}", 1.0, Run(split=split), Run(network="extractor", split=split))
                  for split in SPLITS),
                *((f"CSNet-L ×2 over CSNet {split}", 1.0, pruned(X2), Run(split=split)) for split in SPLITS),
            ], _budget(found["Table 6"], of_table6)),
            _size(found["Table 6"], "CSNet-L ×2 and CSNet 5/5", pruned(X2), x1, 1.0),
            _blocks(found["Table 6"]),
        ),
        "table07": _others(found["Table 7"]),
        "table09": compared("Table 9", PRUNING, "Other criteria (Table 9)", [
            (name, printed, replace(X2, pruning=filters[name]), replace(X2, decay="standard", pruning=filters[name]))
            for name, printed in (("l1", 0.007), ("geometric-median", 0.009))
        ]),
        "table10": compared("Table 10", PRUNING, "A threshold, and fixed ratios (Table 10)", [
            ("threshold 1e-3 over the larger of the fixed ratios", 0.005, threshold, ratio),
        ]),
        "table11": joined(
            kept("Table 11", PRUNING, "Widths before and after pruning (Table 11)", [
                (f"×{run.width:g}, pruned over whole", pruned(run), run) for run in (x1, X2)]),
            compared("Table 11", PRUNING, "", [("pruned ×2 over pruned ×1", 0.016, pruned(X2), pruned(x1))]),
            _size(found["Table 11"], "pruned ×2 and ×1", pruned(X2), pruned(x1), LARGER),
        ),
        "figure04": _deviation(found["Figure 4"]),
        "figure05": _gap(found["Figure 5"]),
        "figure08": categories,
        "figure09": compared("Figure 9", "05_cam", "How well the maps find the object", [
            (f"{name}: energy in the object, everything tuned over the linear layer", 1.0,
             *(replace(run, activation_map=method) for run in (tuned, linear)), "energy")
            for name, method in (("CAM", "cam"), ("Grad-CAM", "grad-cam"))
        ], "the sign of a class weight decides on which side of the object a map lies"),
        "figure13": beside(sized, at_size, "max_f", compared(
            "Figure 13", PRUNING, "The weight of the decay (Figure 13)", [
            (f"λ = {weight:g}, dynamic over standard", 1.0,
             *(pruned(Run(decay=decay, decay_weight=weight)) for decay in ("dynamic", "standard")))
            for weight in DECAY_WEIGHTS
        ])),
        "figure14": beside(sized, at_size, "mae", compared(
            "Figure 14", TRAINING, "Learning curves, and the test error over the epochs (Figure 14)", [
            ("MAE, dynamic over standard", -1.0, x1, standard, "mae"),
        ], _budget(found["Figure 14"], _by_decay(standard, x1)))),
    }  # fmt: skip


#: Why a claim has no entry.
UNTESTABLE = {
    "table08": "times are of the machine at hand: page 07",
    **dict.fromkeys(("figure02", "figure03"), "a drawing: page 01 draws it from the model"),
    "figure01": "a picture of Table 7's numbers: page 08",
    **dict.fromkeys(("figure06", "figure07"), "the paper's labels are not published; page 04 shows ours"),
    "figure10": "without a number in the paper: page 03 shows ours",
    "figure11": "without a number in the paper: page 06 shows ours, as far as it is recorded",
    "figure12": "a picture: page 08 shows ours, chosen by a rule",
}


def ledger(found: Mapping[str, Evidence], trained: Mapping[str, Record]) -> pd.DataFrame:
    """A row a claim, in the paper's order: the claim, where the paper makes it and its number, ours with intervals, the
    verdict, preset, seeds, test images, why it may differ, and the page and section to read on."""
    known, rows = entries(found, trained), []
    for claim in paper.claims().itertuples():
        entry = known.get(claim.id)
        row = {"id": claim.id, "claim": claim.claim, "where": claim.where, "paper": claim.number}
        if entry is None:
            rows.append(row | {"here": UNTESTABLE[claim.id], "verdict": verdict(())})
            continue
        item = found.get(entry.item)
        made = {"preset": item.preset.name, "seeds": len(item.seeds), "test images": item.images} if item else {}
        page, cause = (
            {"page": entry.page, "section": entry.section},
            "" if verdict(entry.signs) == "reproduced" else entry.cause,
        )
        rows.append(row | {"here": entry.ours, "verdict": verdict(entry.signs)} | made | {"why": cause} | page)
    return pd.DataFrame(rows)


def _size(item: Evidence, names: str, run: Run, other: Run, most: float) -> Entry:
    """That a network has at most so many times the parameters of another."""
    ours, theirs = item.parameters(run), item.parameters(other)
    sign = holds(ours <= most * theirs)
    return Entry(f"{names}: {ours / 1e3:.0f}K and {theirs / 1e3:.0f}K parameters [{sign}]", (sign,), "", "")


def _blocks(item: Evidence) -> Entry:
    """In-layer multi-scale blocks against vanilla ones, where both have learned more than the mean mask."""
    lost = item.difference(Run(network="extractor"), item.chosen(VANILLA))
    sign = no_loss(lost)
    return Entry(f"Extractor 5/5 over Vanilla 5/5 {lost} [{sign}]", (sign,), "", "")


def _budget(item: Evidence, runs: Mapping[str, Run]) -> str:
    """BUDGET as a cause, and those of the runs, by name, that it has severed layers of."""
    names = [name for name, run in runs.items() if severed(item.of(run)) > 0]
    return BUDGET + (f", which severs layers of {' and '.join(names)} (page 02)" if names else "")


def _by_decay(*runs: Run) -> dict[str, Run]:
    return {f"the network with {run.decay} decay": run for run in runs}


def _parameters(run: Run) -> int:
    return count_parameters(CSNet(plan_channels(run.network, run.width, run.split, run.stages)))


def _mechanism(item: Evidence) -> Entry:
    scratch = item.difference(RANDOM, TRANSFERS["linear"], "accuracy")
    probes = item.difference(*PROBES.values(), "accuracy")
    knows = {"higher": OPPOSITE, "lower": AGREES}.get(probes.sign, probes.sign)
    names = ("accuracy from scratch over the linear layer alone", "at its optimum, saliency over random features")
    signs = (same_sign(0.430, scratch), knows)
    why = "the schedule stops the linear layer early, and the paper has no control with random features"
    return Entry(
        in_words(names, (scratch, probes), signs), signs, CLASSES, "From saliency to classes (Table 3)", "Table 3", why
    )


def _categories(item: Evidence) -> Entry:
    """By the paper's own criterion (its own category is not what most networks lose most of), and by the statistic of
    page 04 beyond the control: opposite where p < 0.05, as in the paper where no more than MARGIN can be lost."""
    names = [name for name in labels.CATEGORIES if item.of(WITHOUT[name]) and item.of(FEWER[name])]
    said, signs = [], []
    fewest = 1 if item.preset.images else 10
    for test_set in (item.preset.tests[0], item.preset.part("labelled-test")):
        without, fewer = (
            sensitivity(item.of(LABELLED), {name: item.of(runs[name]) for name in names}, test_set, fewest=fewest)
            for runs in (WITHOUT, FEWER)
        )
        (worst, of), chance = without.lowest(), without.less(fewer).chance()
        value, low, high = without.less(fewer).own()
        said.append(
            f"{test_set}: the category left out loses most for {worst} of {of} networks; beyond the control "
            f"{value:+.1f} % of F ({low:+.1f} to {high:+.1f}), {p_value(chance)}"
        )
        signs += [
            holds(worst <= of / 2),
            OPPOSITE if chance < 0.05 else AGREES if low > -100 * MARGIN else "not told apart",
        ]
    why = "the paper's criterion looks at the largest loss of a row alone, and it has no control"
    return Entry("; ".join(said), tuple(signs), CLASSES, "A category left out (Figure 8)", "Figure 8", why)


def _tasks(item: Evidence) -> Entry:
    shares = {}
    for name, run in X1_5.items():
        before, after = (item.of(one) for one in (run, replace(run, pruning=REDUNDANT)))
        shares[name] = [left.data["parameters"] / full.data["parameters"]
                        for left, full in zip(after, before, strict=True)]  # fmt: skip
    pairs = list(zip(*shares.values(), strict=True))
    fewer = [saliency < classification for saliency, classification in pairs]
    signs = (holds(all(fewer)),) if pairs and (all(fewer) or not any(fewer)) else ("not told apart",)
    said = "; ".join(f"{name}: {np.mean(values):.0%} stay" for name, values in shares.items() if values)
    return Entry(
        f"{said}; fewer for saliency with {sum(fewer)} of {len(fewer)} seeds", signs, CLASSES,
        "How small for which task (Table 4)", "Table 4", BUDGET,
    )  # fmt: skip


def _headline(trained: Mapping[str, Record]) -> Entry:
    """The released weights, scored here, and the best that was trained here."""
    weights = published.every().get("csnet-x2-l-released")
    networks = ({"the authors' weights": weights} if weights else {}) | trained
    said, signs = [], []
    for name, record in networks.items():
        scores = record.data["scores"].get("ECSSD", {}).get("released")
        if scores:
            low, high = scores["max_f_interval"]
            said.append(f"{name}: {record.data['parameters']:,} parameters, max F {scores['max_f']:.3f} "
                        f"({low:.3f} to {high:.3f}), MAE {scores['mae']:.3f}")  # fmt: skip
            signs.append(holds(high >= HEADLINE_F and record.data["parameters"] < HEADLINE_PARAMETERS))
    why = "trained here for a small part of the published 300 epochs"
    return Entry("; ".join(said), tuple(signs), COMPARED_WITH, "Scored here with their authors' weights", cause=why)


def _compression(longest: Evidence, sized: Evidence) -> Entry:
    """At the published size, and by what the training itself calls redundant."""
    small, left, standard = AT_SIZE[X2], replace(X2, pruning=REDUNDANT), replace(X2, decay="standard")
    lost = {run: item.difference(run, X2) for run, item in ((small, sized), (left, longest))}
    share = {run: item.parameters(run) / item.parameters(X2) for run, item in ((small, sized), (left, longest))}
    signs = (no_loss(lost[small]), holds(share[left] <= LEFT), no_loss(lost[left]))
    said = (
        f"×2 at the published size, {1 - share[small]:.0%} removed: max F {lost[small]} [{signs[0]}] "
        f"(with standard decay {sized.difference(AT_SIZE[standard], standard)}); "
        f"without its redundant channels, {1 - share[left]:.0%} removed [{signs[1]}]: max F {lost[left]} [{signs[2]}]"
    )
    section = "The longest trainings at the paper's sizes, and with the overlap loss"
    return Entry(said, signs, TRAINING, section, PUBLISHED_SIZES, "a short schedule drives fewer scales to nothing")


def _others(item: Evidence) -> Entry:
    """Against the best light-weight network by the validation split, and against the mean mask."""
    known = [(item.validation(run), name, run) for name in LIGHT if item.of(run := item.chosen(TABLE_7[name]))]
    ours = item.chosen(TABLE_7["CSNet×2-L"])
    if not known:
        return Entry("not recorded", ("not recorded",), COMPARED_WITH, "Trained here", "Table 7")
    _, name, run = max(known, key=lambda entry: entry[:2])
    signs = (same_sign(0.022, difference := item.difference(ours, run)),)
    said = in_words([f"CSNet×2-L over {name}"], [difference], signs)
    return Entry(said, signs, COMPARED_WITH, "Trained here", "Table 7", BUDGET)


def _deviation(item: Evidence) -> Entry:
    medians = [
        [float(np.median(record.arrays["channel_deviation"])) for record in item.of(run)] for run in DECAYS_COMPARED[:2]
    ]
    lower = [dynamic < standard for standard, dynamic in zip(*medians, strict=True)]
    said = f"median over the layers: dynamic {np.mean(medians[1]):.3f}, standard {np.mean(medians[0]):.3f}"
    sign = holds(all(lower)) if all(lower) or not any(lower) else "not told apart"
    section = "How evenly the channels respond (Figure 4)"
    return Entry(
        f"{said}; lower with {sum(lower)} of {len(lower)} seeds", (sign,), TRAINING, section, "Figure 4", BUDGET
    )


def _gap(item: Evidence) -> Entry:
    def shares(decay: Run) -> tuple[float, float]:
        scales = item.scales(decay)
        inside = (scales > GAP[0]) & (scales < GAP[1])
        return float((scales < item.preset.redundant).mean()), float(inside.mean())

    (standard, standard_between), (dynamic, dynamic_between) = map(shares, DECAYS_COMPARED[:2])
    said = f"scales below {item.preset.redundant:g}: dynamic {dynamic:.0%}, standard {standard:.0%}"
    said += f"; between {GAP[0]:g} and {GAP[1]:g}: dynamic {dynamic_between:.0%}, standard {standard_between:.0%}"
    section = "The distribution of gamma (Figure 5)"
    why = _budget(item, _by_decay(*DECAYS_COMPARED[:2]))
    return Entry(said, (holds(dynamic > standard + MORE),), TRAINING, section, "Figure 5", why)
