"""The claims of the paper and what this project's records say of each: the ledger of page 00.

Every verdict follows from numbers by one rule (`verdicts.verdict`). Claims that are more than a list of differences are
in `claims.py`, `pruned_claims.py` and `semantics.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from . import claims, paper, pruned_claims, semantics
from .claims import BUDGET, budget, by_decay
from .description import Run
from .evidence import Evidence
from .records import Record
from .study import (
    AT_SIZE,
    DECAYS_COMPARED,
    FILTER_SIZE,
    HALVES,
    HEADLINE,
    POSITION,
    PUBLISHED_SIZES,
    REDUNDANT,
    SPLITS,
    STARTS,
    TRANSFERS,
    VANILLA,
    WIDTHS,
    X2,
    Pruning,
    replace,
)
from .verdicts import ASIDE, Entry, Row, beside, in_words, joined, lossless, measured, no_loss, same_sign, verdict

#: The items of the study that the ledger rests on.
ITEMS = ("Table 3", "Table 4", "Table 5", "Table 6", "Table 7", "Table 9", "Table 10", "Table 11", "Section 3.2",
         "Figure 4", "Figure 5", "Figure 8", "Figure 9", "Figure 10", "Figure 11", "Figure 14", HEADLINE,
         PUBLISHED_SIZES, POSITION)  # fmt: skip

ARCHITECTURE, TRAINING, PRUNING = "01_architecture", "02_training", "03_pruning"
CLASSES, PRETRAINED, COMPARED_WITH = "04_class_sensitivity", "06_imagenet_pretraining", "08_comparison"


def entries(found: Mapping[str, Evidence], trained: Mapping[str, Record]) -> dict[str, Entry]:
    """The entry of every claim of `paper.claims` that has one, by id, from the evidence of ITEMS; `trained`: the best
    networks of this project, by name, for the headline."""
    x1, standard = Run(), DECAYS_COMPARED[0]
    fused = {stages: replace(X2, stages=stages, pruning=REDUNDANT) for stages in ("4", "3-4", "2-4", "1-4")}
    filters = {name: Pruning(name, parameters=FILTER_SIZE) for name in ("l1", "geometric-median")}
    tuned, linear = TRANSFERS["all"], TRANSFERS["linear"]
    of_table6 = {
        f"{words} {split}": Run(network=network, split=split)
        for network, words in (("extractor", "Extractor"), ("csnet", "CSNet"))
        for split in SPLITS
    }
    of_table6 |= {"Vanilla 5/5": found["Table 6"].chosen(VANILLA), "CSNet ×2": X2}

    def pruned(run: Run) -> Run:
        return replace(run, pruning=REDUNDANT)

    def at(page: str, section: str, entry: Entry) -> Entry:
        return replace(entry, page=page, section=section)

    def compared(item: str, page: str, section: str, rows: Sequence[Row], cause: str = BUDGET) -> Entry:
        """A claim of differences: each in words, and its sign."""
        names, printed, ours = zip(*measured(found[item], rows), strict=True)
        signs = tuple(map(same_sign, printed, ours))
        return Entry(in_words(names, ours, signs), signs, page, section, item, cause)

    def kept(item: str, page: str, section: str, rows: Sequence[Row], cause: str = BUDGET) -> Entry:
        """A claim that nothing is lost."""
        ours = [found[item].difference(*runs) for _, *runs in rows]
        signs = tuple(map(no_loss, ours))
        said = in_words([name for name, *_ in rows], ours, list(map(lossless, signs)))
        return Entry(said, signs, page, section, item, cause)

    sized = found[PUBLISHED_SIZES]
    sizes = {f"×{run.width:g}, {size}": (smaller[run], smaller[replace(run, decay="standard")])
             for run, size, smaller in ((x1, "94K", AT_SIZE), (x1, "47K", HALVES), (X2, "141K", AT_SIZE))}  # fmt: skip
    cuts = {f"×{run.width:g}, pruned over whole": (AT_SIZE[run], run) for run in (x1, X2)}
    whole = {f"×{run.width:g}": (run, replace(run, decay="standard")) for run in (x1, X2)}
    same = found[POSITION].preset == found["Table 11"].preset
    lost = pruned_claims.position(found[POSITION]) if same else ""
    how_small, left_out = "How small for which task (Table 4)", "A category left out (Figure 8)"
    categories = at(CLASSES, left_out, semantics.categories(found["Figure 8"]))
    return {
        "a": at(CLASSES, "From saliency to classes (Table 3)", semantics.mechanism(found["Table 3"])),
        "b": categories,
        "c": kept("Figure 11", PRETRAINED, "What it ends at (Table 7)", [
            ("scratch over ten ImageNet classes", pruned(STARTS[""]), pruned(STARTS["folder"])),
            ("scratch over categories of DUTS-TR", pruned(STARTS[""]), pruned(STARTS["categories"])),
        ], budget(found["Figure 11"], semantics.SEVERED_STARTS) + semantics.MORE_STEPS),
        "d": at(CLASSES, how_small, semantics.tasks(found["Table 4"], 1.0, claims.FAR)),
        "headline": at(COMPARED_WITH, "Scored here with their authors' weights", claims.headline(trained)),
        "compression": at(TRAINING, "The longest trainings at the paper's sizes, and with the overlap loss",
                          pruned_claims.compression(found[HEADLINE], sized)),
        "table01": at(ARCHITECTURE, "Table 1: the cross-stage fusion", claims.fusion()),
        "table02": at(ARCHITECTURE, "Table 2: the extractor", claims.extractor()),
        "table03": compared("Table 3", CLASSES, "From saliency to classes (Table 3)", [
            ("fusion over stage 4", 0.121, TRANSFERS["fusion"], TRANSFERS["stage4"], "accuracy"),
            ("stage 4 over stage 1", 0.147, TRANSFERS["stage4"], TRANSFERS["stage1"], "accuracy"),
        ]),
        "table04": at(CLASSES, how_small, semantics.tasks(found["Table 4"], 1.0)),
        "table05": joined(compared("Table 5", TRAINING, "Which stages to fuse (Table 5)", [
            ("stages 2-4 over 4", 0.016, fused["2-4"], fused["4"]),
            ("2-4 over 3-4", 0.006, fused["2-4"], fused["3-4"]),
            ("1-4 over 2-4", 0.002, fused["1-4"], fused["2-4"]),
        ], budget(found["Table 5"], {f"CSNet ×2 fusing {stages}": run.parent for stages, run in fused.items()})),
            claims.costs(found["Table 5"], fused)),
        "table06": joined(
            compared("Table 6", TRAINING, "Blocks, splits, fusion, learned channels (Table 6)", [
                *((f"fusion at {split}", 1.0, Run(split=split), Run(network="extractor", split=split))
                  for split in SPLITS),
                *((f"CSNet-L ×2 over CSNet {split}", 1.0, pruned(X2), Run(split=split)) for split in SPLITS),
            ], budget(found["Table 6"], of_table6)),
            claims.size(found["Table 6"], "CSNet-L ×2 and CSNet 5/5", pruned(X2), x1, 1.0),
            claims.blocks(found["Table 6"]),
        ),
        "table07": at(COMPARED_WITH, "Trained here", claims.others(found["Table 7"])),
        "table08": at("07_runtime", "Table 8", claims.speed()),
        "table09": compared("Table 9", PRUNING, "Other criteria (Table 9)", [
            (words, printed, replace(X2, pruning=filters[name]), replace(X2, decay="standard", pruning=filters[name]))
            for words, name, printed in (
                ("filter norm", "l1", 0.007), ("geometric median", "geometric-median", 0.009))
        ]),
        "table10": at(PRUNING, "A threshold, and fixed ratios (Table 10)",
                      pruned_claims.thresholds(found["Table 10"], sized)),
        "table11": beside(sized, "at the published sizes", cuts, "max_f", joined(
            kept("Table 11", PRUNING, "Widths before and after pruning (Table 11)", [
                (f"×{run.width:g}, pruned over whole", pruned(run), run) for run in WIDTHS], BUDGET + lost),
            compared("Table 11", PRUNING, "", [("pruned ×2 over pruned ×1", 0.016, pruned(X2), pruned(x1))]),
            claims.size(found["Table 11"], "pruned ×2 and ×1", pruned(X2), pruned(x1), claims.LARGER),
        )),
        "figure04": at(TRAINING, "How evenly the channels respond (Figure 4)", claims.deviation(found["Figure 4"])),
        "figure05": at(TRAINING, "The distribution of gamma (Figure 5)", claims.gap(found["Figure 5"])),
        "figure08": categories,
        "figure09": joined(compared("Figure 9", "05_cam", "How well the maps find the object", [
            (f"{name}: energy in the object, everything tuned over the linear layer", 1.0,
             *(replace(run, activation_map=method) for run in (tuned, linear)), "energy")
            for name, method in (("CAM", "cam"), ("Grad-CAM", "grad-cam"))
        ], "the sign of a class weight decides on which side of the object a map lies; objects lie near the centre"),
            semantics.looking(found["Figure 9"], "everything tuned", tuned)),
        "figure10": at(PRUNING, "What is kept (Figure 10)", pruned_claims.resolutions(found["Figure 10"])),
        "figure11": at(PRETRAINED, "How fast the error falls (Figure 11)", semantics.convergence(found["Figure 11"])),
        "figure13": beside(sized, "at equal sizes", sizes, "max_f", at(
            TRAINING, "What dynamic decay is: three forms at matched size", claims.complexity(found["Section 3.2"]))),
        "figure14": beside(sized, "before pruning", whole, "mae", compared(
            "Figure 14", TRAINING, "Learning curves, and the test error over the epochs (Figure 14)", [
            ("MAE, dynamic over standard", -1.0, x1, standard, "mae"),
        ], budget(found["Figure 14"], by_decay(standard, x1)))),
    }  # fmt: skip


#: Why a claim has no entry.
UNTESTABLE = {
    **dict.fromkeys(("figure02", "figure03"), "a drawing: page 01 draws it from the model"),
    "figure01": "a picture of Table 7's numbers: page 08",
    **dict.fromkeys(("figure06", "figure07"), "the paper's labels are not published; page 04 shows ours"),
    "figure12": "a picture: page 08 shows ours, chosen by a rule",
}


def ledger(
    found: Mapping[str, Evidence], trained: Mapping[str, Record], repeated: Mapping[str, Evidence] | None = None
) -> pd.DataFrame:
    """A row a claim, in the paper's order: the claim, where the paper makes it and its number, ours with intervals, the
    verdict, preset, seeds, test images, why it may differ, and the page and section to read on. `repeated`: items that
    have more seeds at another preset (`Page.repeated`): what the same rule says there stands beside the verdict and is
    no part of it."""
    repeated = repeated or {}
    known, again, rows = entries(found, trained), entries({**found, **repeated}, trained) if repeated else {}, []
    for claim in paper.claims().itertuples():
        entry = known.get(claim.id)
        row = {"id": claim.id, "claim": claim.claim, "where": claim.where, "paper": claim.number}
        if entry is None:
            rows.append(row | {"here": UNTESTABLE[claim.id], "verdict": verdict(())})
            continue
        item = found.get(entry.item)
        made = {"preset": item.preset.name, "seeds": len(item.seeds)} if item else {}
        if item and entry.scored:
            made["test images"] = item.images
        if more := repeated.get(entry.item):
            there = again[claim.id]
            made["verdict with more seeds"] = f"{more.preset.name}, {len(more.seeds)} seeds: {verdict(there.signs)}"
            made["here with more seeds"] = there.ours.partition(ASIDE)[0] + (
                f"; why: {there.cause}" if there.cause else ""
            )
        page, cause = (
            {"page": entry.page, "section": entry.section},
            "" if verdict(entry.signs) == "reproduced" else entry.cause,
        )
        rows.append(row | {"here": entry.ours, "verdict": verdict(entry.signs)} | made | {"why": cause} | page)
    return pd.DataFrame(rows)
