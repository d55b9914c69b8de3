"""What a run is: its frozen description, and the name of its record that follows from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from typing import Any

from . import networks
from .beyond import way_named
from .decay import DYNAMIC_WEIGHT, STANDARD_WEIGHT
from .errors import SodlibError
from .mean_mask import MEAN_MASK
from .presets import Preset, preset_named

#: The weight of standard decay that leaves every stage its channels in a short training: of the five weights of Figure
#: 13, the one with the best validation score at standard decay.
SHORT_WEIGHT = 1e-3
#: The images that a pre-training classifies: those of the "folder" that the preset names, or the labelled images by
#: their "categories".
PRETRAININGS = ("folder", "categories")


@dataclass(frozen=True)
class Pruning:
    """How a trained network is pruned, and what follows: "recalibrated" (batch norm statistics only, as
    released) or "finetuned" (as written). "evened" removes nothing: the channels become constants
    (`position.even_out`), then as recalibrated. Give the `threshold`, or `redundant` for that of the preset, or the
    number of `parameters` to come to, by the same share of every layer or by one threshold over the network
    (`ranking`)."""

    criterion: str = "gamma"
    threshold: float | None = None
    afterwards: str = "recalibrated"
    parameters: int | None = None
    ranking: str = "layer"
    redundant: bool = False

    @property
    def amount(self) -> str:
        """What is kept, in words."""
        if self.redundant:
            return "without redundant"
        if self.threshold is not None:
            return f"above {self.threshold:g}"
        return f"{self.parameters / 1000:g}K by {self.ranking}"


@dataclass(frozen=True)
class Classification:
    """The network as a classifier: `start` from the "saliency" network or from "random" weights; `tuned`, one of
    `classifier.TUNED`: what is trained beside the linear layer, or "probe": the linear layer alone, fitted to its
    optimum (`classifier.fit_probe`). Features that stay random get their batch norm statistics from the training
    images.

    `images`: the ten "classes" of the classification set; or, for a pre-training, one of PRETRAININGS."""

    start: str = "saliency"
    tuned: str = "all"
    images: str = "classes"


@dataclass(frozen=True)
class Run:
    """The frozen description of a run; with a preset it decides every number of the record.

    `recipe`: "released" trains with crops and flips for the whole schedule, and what follows pruning comes on top;
    "written" flips only, and pruning with what follows takes the schedule's last steps. (Paper, section 6.1.)

    `images`: the part of the labelled images (`labels.part`) that the saliency network is trained on, by default the
    preset's training set. A run with `classification` trains the classifier, on images of its own.

    `network`: "csnet", "extractor" or "vanilla", whose channels follow from `width`, `split` and `stages`; the mean
    mask; or one of `networks.NAMES`, with standard decay and a backbone `pretrained` on ImageNet or not.
    `learning_rate`: instead of the preset's, for a network that needs another.
    `pretraining`, one of PRETRAININGS: the stages start from those of a classifier of these images. (Section 5.4.)

    `beyond`, one of `beyond.WAYS`: what the training does beyond the paper. Where it is distilled, the teacher is
    the larger network of Figure 11 with its backbone from ImageNet.

    `activation_map`, one of `activation_maps.METHODS`: nothing is trained; it says how well these maps of the
    classifier find the objects.
    """

    network: str = "csnet"
    width: float = 1.0
    split: str = "5/5"
    stages: str = "2-4"
    decay: str = "dynamic"
    decay_weight: float = STANDARD_WEIGHT
    dynamic_weight: float = DYNAMIC_WEIGHT
    seed: int = 0
    pruning: Pruning | None = None
    recipe: str = "released"
    images: str = ""
    classification: Classification | None = None
    activation_map: str = ""
    pretrained: bool = False
    learning_rate: float | None = None
    pretraining: str = ""
    beyond: str = ""

    def description(self, preset: str) -> dict[str, Any]:
        return {"run": asdict(self), "preset": asdict(preset_named(preset))}

    def key(self, preset: str) -> str:
        """A folder name that a person can read, ending in a hash of the whole description."""
        settings = _chosen(preset_named(preset))
        if not any(run.is_pretraining for run in self.chain):
            # What the run has nothing to do with.
            settings = {name: value for name, value in settings.items() if not name.startswith("pretraining")}
        description = {"run": _chosen(self), "preset": settings}
        digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:6]
        network = f"{self.network}-x{self.width:g}-{self.split.replace('/', '-')}"
        if self.network in networks.NAMES:
            network = f"{self.network}-imagenet" if self.pretrained else self.network
        if self.stages != Run.stages:
            network += f"-stages-{self.stages}"
        if self.pretraining:
            network += f"-from-{self.pretraining}"
        weights = [self.decay_weight != Run.decay_weight and f"{self.decay_weight:g}",
                   self.dynamic_weight != Run.dynamic_weight and f"dynamic-{self.dynamic_weight:g}"]  # fmt: skip
        decay = "-".join([self.decay, *filter(None, weights)])
        written = ["as-written"] if self.recipe == "written" else []
        images = [self.images] if self.images else []
        rate = [f"rate-{self.learning_rate:g}"] if self.learning_rate else []
        beyond = [f"beyond-{self.beyond}"] if self.beyond else []
        parts = [network, decay, *rate, *written, *images, *beyond, preset, f"s{self.seed}"]
        if self.classification:
            how = self.classification
            parts.append(f"{how.start}-to-{how.images}-{how.tuned}")
        if self.activation_map:
            parts.append(self.activation_map)
        if self.pruning:
            parts.append(f"{self.pruning.criterion}-{self.pruning.amount.replace(' ', '-')}-{self.pruning.afterwards}")
        return "_".join([*parts, digest])

    @property
    def parent(self) -> Run:
        """The run whose network this one starts from: before pruning, before it became a classifier, the classifier
        that is looked at, or the pre-training; or learns from: the teacher. Any other training is its own parent."""
        if self.activation_map:
            return replace(self, activation_map="")
        if self.pruning:
            return replace(self, pruning=None)
        if self.classification and self.classification.start == "saliency":
            return replace(self, classification=None)
        if self.pretraining:
            # Of a short training, the standard decay of a saliency network would leave no deep stages.
            how = Classification("random", "all", self.pretraining)
            return replace(self, pretraining="", decay="standard", decay_weight=SHORT_WEIGHT, classification=how)
        if way_named(self.beyond).distilled:
            return replace(TEACHER, seed=self.seed)
        return self

    def settings(self, preset: str) -> Preset:
        """The preset as it is for this run: a pre-training takes steps of its own, in as many epochs."""
        settings = preset_named(preset)
        if not self.is_pretraining:
            return settings
        return replace(settings, steps_per_epoch=settings.pretraining_steps // settings.epochs)

    @property
    def is_pretraining(self) -> bool:
        """Whether it trains a classifier for a saliency network to start from."""
        return self.classification is not None and self.classification.images != "classes"

    @property
    def has_parent(self) -> bool:
        return self.parent != self

    @property
    def chain(self) -> tuple[Run, ...]:
        """What the run starts from, the first training first, and the run itself."""
        return (*(self.parent.chain if self.has_parent else ()), self)

    @property
    def starts_others(self) -> bool:
        """Whether other runs may start from its network: all but the pruned ones and the looks at a classifier."""
        return not (self.pruning or self.activation_map)

    @staticmethod
    def described(description: Mapping[str, Any]) -> Run:
        """The run of a record's description. Raises SodlibError where this version does not know it."""
        try:
            pruning = description["pruning"] and Pruning(**description["pruning"])
            classification = description.get("classification") and Classification(**description["classification"])
            return Run(**{**description, "pruning": pruning, "classification": classification})
        except (KeyError, TypeError) as error:
            raise SodlibError(f"a record describes a run that this version does not know ({error})") from error


#: The weight of standard decay of the networks that this paper compares with: that of the released CSF.
OTHER_WEIGHT = 5e-4
#: What a network scores that has only learned where objects usually lie.
CENTRE = Run(network=MEAN_MASK)
#: Of its two learning rates at `brief`, the one with the better validation score.
TEACHER = Run(network="csf-efficientnet-lite0", pretrained=True, decay="standard", decay_weight=OTHER_WEIGHT,
              learning_rate=5e-4)  # fmt: skip


def _chosen(description: Any) -> dict[str, Any]:
    """The fields that differ from their default: a field that is added later leaves the older keys as they are."""
    chosen = {}
    for field in fields(description):
        value = getattr(description, field.name)
        if field.default is MISSING or value != field.default:
            if field.name == "width" and float(value).is_integer():
                value = int(value)
            elif "float" in str(field.type) and value is not None:
                value = float(value)
            chosen[field.name] = _chosen(value) if is_dataclass(value) else value
    return chosen
