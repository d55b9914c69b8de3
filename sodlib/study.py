"""The study: every run of every table and figure, declared once, with what it feeds."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import networks, records
from .activation_maps import METHODS
from .beyond import WAYS
from .classifier import TUNED
from .decay import DECAYS
from .description import CENTRE, OTHER_WEIGHT, PRETRAININGS, SHORT_WEIGHT, TEACHER, Classification, Pruning, Run
from .errors import SodlibError
from .labels import CATEGORIES
from .presets import EVIDENCE


@dataclass(frozen=True)
class Declared:
    """A run of the study and the tables and figures that wait for it."""

    run: Run
    feeds: tuple[str, ...]


SEEDS = (0, 1, 2)
#: 150 test images tell little: their runs have more.
CLASS_SEEDS = (0, 1, 2, 3, 4)
#: What the released step after training removes: gammas that the decay has driven to nothing.
REDUNDANT = Pruning(redundant=True)

DECAYS_COMPARED = tuple(Run(decay=decay) for decay in ("standard", "dynamic", "dynamic-written"))
#: Sizes at which the decays are compared, by one threshold over the network: those of CSNet-x1-L, and half of it.
MATCHED = tuple(Pruning(parameters=parameters, ranking="network") for parameters in (94_000, 47_000))

X2 = Run(width=2)
SPLITS = ("1/0", "3/1", "5/5", "1/3", "0/1")
#: Vanilla, 54 layers of ordinary convolutions in a row, at the preset's learning rate and at a lower one, near the
#: published: the validation split chooses.
VANILLA = (Run(network="vanilla"), Run(network="vanilla", learning_rate=2e-4))
#: Not in the paper: the network with and without fusion under every decay. Fusion hands on the stages before a layer
#: all of whose scales have vanished.
SEVERED = "Severed layers"
BUILT = {(name, decay): Run(network=name.lower(), decay=decay) for name in ("CSNet", "Extractor") for decay in DECAYS}
BUILT |= dict(zip((("Vanilla", "dynamic"), ("Vanilla, lower rate", "dynamic")), VANILLA, strict=True))
#: Not in the paper: the released decay and the same without its slip, before pruning and at the sizes above.
SLIP = "Slip of the release"
SLIP_COMPARED = tuple(Run(decay=decay) for decay in ("dynamic", "dynamic-throughout"))
#: Table 11's networks before pruning.
WIDTHS = tuple(Run(width=width) for width in (1, 1.2, 1.5, 1.8, 2))
#: Not in the paper: what a pruned network has lost of the whole one, step by step. New batch norm statistics, then the
#: redundant channels as constants, then without them.
POSITION = "Position maps"
LOST = {
    run: (run, *(replace(run, pruning=way) for way in (Pruning(threshold=0.0), replace(REDUNDANT, afterwards="evened"),
          REDUNDANT)))
    for run in WIDTHS
}  # fmt: skip
THRESHOLDS = (1e-2, 8e-3, 6e-3, 5e-3, 3e-3, 1e-3, 1e-5, 1e-10, 1e-15, 1e-20)
#: The sizes of Table 10's fixed ratios (38 % and 51 % of CSNet-x2's parameters) and of Table 9's rows.
RATIO_SIZES, FILTER_SIZE = (300_000, 400_000), 227_000
#: The weights lambda of Eq. 1 that Figure 13 goes through; 5e-3 is the paper's.
DECAY_WEIGHTS = (1e-3, 2.5e-3, 5e-3, 1e-2, 2e-2)


#: The network whose features are classified: its fusion takes all stages (section 5.1.2). Stages that the decay has
#: emptied cannot be tuned.
ALL_STAGES = Run(stages="1-4", images="labelled", decay="standard", decay_weight=SHORT_WEIGHT)
RANDOM = replace(ALL_STAGES, images="classes", classification=Classification("random", "all"))
#: Table 3's rows: fine-tuned from the saliency network, part by part, and trained from scratch. Below, a control: the
#: linear layer alone on features that stay random.
TRANSFERS = {tuned: replace(ALL_STAGES, classification=Classification("saliency", tuned)) for tuned in TUNED}
RANDOM_FEATURES = replace(RANDOM, classification=Classification("random", "linear"))
#: And both linear layers at their optimum, so that no schedule decides.
PROBES = {
    "saliency": replace(ALL_STAGES, classification=Classification("saliency", "probe")),
    "random": replace(RANDOM, classification=Classification("random", "probe")),
}
#: Figure 9's two classifiers, and as references one without anything of saliency and one without anything learned.
LOOKED_AT = (TRANSFERS["linear"], TRANSFERS["all"], RANDOM, RANDOM_FEATURES)
#: Figure 8's rows: a category left out, and as many images of any category left out.
LABELLED = Run(images="labelled")
WITHOUT, FEWER = ({name: Run(images=f"{kind}-{name}") for name in CATEGORIES} for kind in ("without", "fewer"))
#: Table 4: one network and 644 images for both tasks.
X1_5 = {
    "saliency": Run(width=1.5, images="classes"),
    "classification": Run(width=1.5, images="classes", classification=Classification("random", "all")),
}
#: Section 5.4: one network from scratch and from each pre-training.
STARTS = {images: Run(width=1.5, pretraining=images) for images in ("", *PRETRAININGS)}
#: The other networks of Table 7 have the weight decay of the released CSF, and learning rates of which the validation
#: split chooses one for each: the preset's, and one for networks that need a lower one.
OTHER = Run(decay="standard", decay_weight=OTHER_WEIGHT)
RATES = (None, 5e-4)
COMPARED = {name: tuple(replace(OTHER, network=name, learning_rate=rate) for rate in RATES) for name in networks.NAMES}
#: Figure 11: a larger network from random weights, and with its backbone from ImageNet.
MIDDLE = "csf-efficientnet-lite0"
IMAGENET = tuple(replace(run, pretrained=True) for run in COMPARED[MIDDLE])
#: Not in the paper: CSNet x1 trained in other ways, by name.
BEYOND_THE_PAPER = "Beyond the paper"
BEYOND = {name: Run(beyond=name) for name in WAYS}
#: The networks that the paper is known for, CSNet-L x1 and x2: shown from the longest trainings that there are.
HEADLINE = "Headline"
#: The longest trainings, also with standard decay and, not in the paper, with the overlap loss; and each pruned to the
#: size of the published CSNet-L, whatever counts as redundant in it. The pruned run, by the whole one.
PUBLISHED_SIZES = "Published sizes"
AT_SIZE = {
    run: replace(run, pruning=size)
    for width, size in ((1, MATCHED[0]), (2, replace(MATCHED[0], parameters=141_000)))
    for run in (Run(width=width), Run(width=width, decay="standard"), Run(width=width, beyond="overlap"))
}
#: Half of the published CSNet-L x1, with both decays.
HALVES = {run: replace(run, pruning=MATCHED[1]) for run in (Run(), Run(decay="standard"))}
#: Table 7's rows that can be trained: by the paper's name, the ways of which the validation split chooses one.
TABLE_7 = {
    "CSNet×1-L": (replace(Run(), pruning=REDUNDANT),),
    "CSNet×1.5-L": (replace(STARTS[""], pruning=REDUNDANT),),
    "CSNet×1.5-L ImageNet": (replace(STARTS["folder"], pruning=REDUNDANT),),
    "CSNet×2-L": (replace(X2, pruning=REDUNDANT),),
    "CSF+R": COMPARED["csf-resnet50"],
    "CSF+R2": COMPARED["csf-res2net50"],
    "Eff.Net": COMPARED["efficientnet"],
    "Sf.Netv2": COMPARED["shufflenetv2"],
    "ENet": COMPARED["enet"],
    "CGNet": COMPARED["cgnet"],
    "DABNet": COMPARED["dabnet"],
    "ESPNetv2": COMPARED["espnetv2"],
    "BiseNet": COMPARED["bisenet"],
}


def _declare() -> Iterable[Declared]:
    def each(runs: Iterable[Run], *feeds: str, seeds: Sequence[int] = SEEDS) -> Iterable[Declared]:
        return (Declared(replace(run, seed=seed), feeds) for run in runs for seed in seeds)

    def pruned(run: Run, *ways: Pruning) -> list[Run]:
        return [replace(run, pruning=way) for way in ways]

    # What dynamic decay is: its three forms, before pruning and at matched sizes.
    yield from each(DECAYS_COMPARED, "Figure 4", "Figure 5", "Figure 14", "Section 3.2")
    yield from each((pruned_run for run in DECAYS_COMPARED for pruned_run in pruned(run, *MATCHED)), "Section 3.2")
    yield from each((replace(run, pruning=REDUNDANT) for run in DECAYS_COMPARED[:2]), "Figure 10")

    # Table 5: the stages that the fusion takes, with learned channels.
    fusions = [replace(X2, stages=stages) for stages in ("4", "3-4", "2-4", "1-4")]
    yield from each((replace(run, pruning=REDUNDANT) for run in fusions), "Table 5")

    # What a network scores that has learned where objects usually lie, and nothing else.
    yield from each([CENTRE], "Table 5", "Table 6", "Table 9", "Table 10", "Table 11", "Figure 11", "Figure 13",
                    "Figure 14", "Section 3.2", "Section 6.1", "Algorithm 1", BEYOND_THE_PAPER,
                    PUBLISHED_SIZES)  # fmt: skip

    # Table 6: split ratios with fixed channels, and two pruned networks.
    yield from each((Run(network=network, split=split) for network in ("csnet", "extractor") for split in SPLITS),
                    "Table 6")  # fmt: skip
    yield from each([*VANILLA, *pruned(Run(), REDUNDANT), *pruned(X2, REDUNDANT)], "Table 6")

    # Which layers the decay severs, with and without fusion.
    yield from each([CENTRE, *BUILT.values()], SEVERED)
    yield from each((with_pruning for run in SLIP_COMPARED for with_pruning in (run, *pruned(run, *MATCHED))), SLIP)

    # Table 7 and Figures 1 and 12: the networks of this paper and those that it is compared with.
    rows = [run for several in TABLE_7.values() for run in several]
    categories = replace(STARTS["categories"], pruning=REDUNDANT)
    yield from each([CENTRE, *rows, categories, *COMPARED[MIDDLE], *IMAGENET], "Table 7", "Figure 1", "Figure 12",
                    seeds=SEEDS[:1])  # fmt: skip

    # Table 9: pruning by the filters' norm and by their geometric median, at one size.
    filters = [Pruning(criterion, parameters=FILTER_SIZE) for criterion in ("l1", "geometric-median")]
    yield from each((run for decay in ("standard", "dynamic") for run in pruned(replace(X2, decay=decay), *filters)),
                    "Table 9")  # fmt: skip

    # Table 10: thresholds, and fixed ratios of the parameters.
    ways = [*(Pruning(threshold=threshold) for threshold in THRESHOLDS), *(Pruning(parameters=n) for n in RATIO_SIZES)]
    yield from each(pruned(X2, *ways), "Table 10")

    # Table 11: widths before and after pruning.
    yield from each([*WIDTHS, *(replace(run, pruning=REDUNDANT) for run in WIDTHS)], "Table 11")
    yield from each((run for steps in LOST.values() for run in steps), POSITION)

    # Figure 13: the decay's weight, standard and dynamic.
    weights = [Run(decay=decay, decay_weight=w) for decay in ("standard", "dynamic") for w in DECAY_WEIGHTS]
    yield from each((replace(run, pruning=REDUNDANT) for run in weights), "Figure 13")

    # Algorithm 1: fine-tuning as written against the recalibration that was released; and the recipe as written.
    both = [replace(way, afterwards=afterwards) for way in MATCHED for afterwards in ("recalibrated", "finetuned")]
    yield from each(pruned(Run(), *both), "Algorithm 1")
    # The recipe as written against the released one.
    written = Run(decay="dynamic-written", recipe="written", pruning=both[1])
    yield from each([written, *pruned(Run(), *both[:2])], "Section 6.1")

    # Table 3: from the saliency network to a classifier; Figure 9: where four of these look.
    yield from each([*TRANSFERS.values(), RANDOM, RANDOM_FEATURES, *PROBES.values()], "Table 3", seeds=CLASS_SEEDS)
    maps = [replace(run, activation_map=method) for run in LOOKED_AT for method in METHODS]
    yield from each(maps, "Figure 9", seeds=CLASS_SEEDS)
    # Figure 8: one category left out, and as many images at random.
    yield from each([LABELLED, *WITHOUT.values(), *FEWER.values()], "Figure 8")
    # Table 4: how far the network can be pruned for either task.
    yield from each((replace(run, pruning=REDUNDANT) for run in X1_5.values()), "Table 4")
    # Section 5.4: what a pre-training brings to a light-weight network, and to a larger one.
    starts = [*STARTS.values(), *(replace(run, pruning=REDUNDANT) for run in STARTS.values())]
    yield from each([*starts, *COMPARED[MIDDLE], *IMAGENET], "Figure 11")
    # Not in the paper: what other ways of training give to the same network.
    yield from each([*BEYOND.values(), TEACHER], BEYOND_THE_PAPER)
    yield from each([Run(), *pruned(Run(), REDUNDANT), X2, *pruned(X2, REDUNDANT)], HEADLINE)
    yield from each([*AT_SIZE, *AT_SIZE.values(), *HALVES.values()], PUBLISHED_SIZES)


def _merged(declared: Iterable[Declared]) -> tuple[Declared, ...]:
    """One entry a run, with all that it feeds. What a run starts from feeds what the run does."""
    feeds: dict[Run, dict[str, None]] = {}
    for entry in declared:
        for run in entry.run.chain:
            feeds.setdefault(run, {}).update(dict.fromkeys(entry.feeds))
    return tuple(Declared(run, tuple(items)) for run, items in feeds.items())


STUDY = _merged(_declare())
#: The networks that were trained for saliency on all images of a preset, seed 0, before any pruning: what seeds do.
TRAININGS = tuple(
    run
    for entry in STUDY
    if not ((run := entry.run).seed or run.pruning or run.classification or run.activation_map or run.is_pretraining)
    and run.images == Run.images
    and run != CENTRE
)
#: What the pages show.
SHOWN = ("Table 3", "Table 4", "Table 5", "Table 6", "Table 7", "Table 9", "Table 10", "Table 11", "Figure 4",
         "Figure 5", "Figure 8", "Figure 9", "Figure 10", "Figure 11", "Figure 13", "Figure 14", "Algorithm 1",
         "Section 3.2", "Section 6.1", SEVERED, SLIP, POSITION, BEYOND_THE_PAPER, HEADLINE,
         PUBLISHED_SIZES)  # fmt: skip


def choose(only: Sequence[str], preset: str, declared: Sequence[Declared] = STUDY) -> tuple[Declared, ...]:
    """The declared runs that one of these words names: an item ("table 6", "figure 14"), or part of a key. All of
    them without words. Raises SodlibError for a word that names none."""
    chosen: dict[Declared, None] = dict.fromkeys(() if only else declared)
    for word in only:
        item = item_of(word, declared)
        named = [
            entry
            for entry in declared
            if (item in map(str.lower, entry.feeds) if item else word.strip() and word in entry.run.key(preset))
        ]
        if not named:
            items = ", ".join(sorted({item for entry in declared for item in entry.feeds}, key=_natural))
            raise SodlibError(f"no declared run is named by {word!r}; give part of a key or one of: {items}")
        chosen.update(dict.fromkeys(named))
    return tuple(entry for entry in declared if entry in chosen)


def item_of(word: str, declared: Sequence[Declared] = STUDY) -> str:
    """The item, in small letters, that a word such as "Table6" means; "" where it can only be part of a key."""
    item = re.sub(r"(?<=[a-z]) ?(?=\d)", " ", " ".join(word.lower().split()))
    is_item = re.fullmatch(r"(table|figure|algorithm|section) \d+(\.\d+)?", item)
    return item if is_item or item in {feed.lower() for entry in declared for feed in entry.feeds} else ""


def _natural(item: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", item)]


def runs_of(item: str, seed: int = 0) -> tuple[Run, ...]:
    """The runs that feed an item such as "Table 6", with the networks before pruning. Raises SodlibError where none
    does."""
    found = tuple(entry.run for entry in STUDY if item in entry.feeds and entry.run.seed == seed)
    if not found:
        raise SodlibError(f"no declared run feeds {item!r}; the items are {', '.join(by_item(STUDY))}")
    return found


def seeds_of(item: str) -> tuple[int, ...]:
    """The seeds with which the runs of an item are declared."""
    return tuple(sorted({entry.run.seed for entry in STUDY if item in entry.feeds}))


def best_preset(runs: Sequence[Run], place: Path = records.RESULTS) -> str | None:
    """The best evidence preset at which all these runs have records, so that no table mixes two; where none has them
    all, the one with the most. None without any record."""
    counts = {preset: sum(is_recorded(run, preset, place) for run in runs) for preset in EVIDENCE}
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] else None


def is_recorded(run: Run, preset: str, place: Path = records.RESULTS, weights: bool = False) -> bool:
    """Whether the run has a record at a preset, and with its network where `weights` asks for it."""
    record = records.find(run.key(preset), place)
    return record is not None and (not weights or record.has_weights)


def by_item(declared: Collection[Declared]) -> dict[str, list[Declared]]:
    """The declared runs of every table and figure, in the order of their numbers."""
    items = sorted({item for entry in declared for item in entry.feeds}, key=_natural)
    return {item: [entry for entry in declared if item in entry.feeds] for item in items}
