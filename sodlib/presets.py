"""Presets: how much computing a run gets. Nothing else changes with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from . import labels
from .data import BENCHMARKS, SaliencySet, available_sets, find_set
from .errors import SodlibError
from .folders import ClassFolder, find_folder

#: Adam's steps times its rate in the published training: 1e-4 for 200 of 300 epochs of 439 steps, then a tenth, a
#: hundredth. A shorter schedule has a higher rate, or gammas that no loss holds do not reach zero in it.
PUBLISHED_STEPS, PUBLISHED_RATE, PUBLISHED_BATCH = 300 * 439, 1e-4, 24


Ways = tuple[tuple[int, float, float], ...]


@dataclass(frozen=True)
class Preset:
    """How much computing a run gets. `tests` are the sets that it must be scored on; `after_steps` is the budget of
    recalibration or fine-tuning after pruning, in batches; `steps_per_epoch` caps an epoch; `follow` is a set whose
    MAE is taken after every epoch (Figure 14), where one fits in the budget; `images` caps every set.

    `beta2` of Adam says how long the optimiser remembers the size of a gradient: 100 steps in the release, a small part
    of its 131,700. A schedule of a few hundred steps needs a shorter memory, or no gamma comes near zero in it.
    `redundant`: channels whose gamma ends below are removed after training; 1e-20 in the paper.
    `pretraining`: the folder below the data root whose `train` and `val` hold photographs in one folder a class, by
    default the classification set; `pretraining_steps` of the optimiser on it."""

    name: str
    train: str
    validation: str
    tests: tuple[str, ...]
    size: int
    batch: int
    epochs: int
    learning_rate: float
    after_steps: int
    steps_per_epoch: int | None = None
    follow: str | None = None
    images: int | None = None
    beta2: float = 0.99
    redundant: float = 1e-20
    pretraining: str = ""
    pretraining_steps: int = 8

    def load(self, name: str, root: Path | None) -> SaliencySet | ClassFolder:
        """A set at this preset's size: only its first `images` where that is set."""
        is_folder = self.pretraining and name.startswith(f"{self.pretraining}/")
        saliency_set = find_folder(name, root) if is_folder else find_set(name, root)
        count = len(saliency_set) if self.images is None else min(self.images, len(saliency_set))
        return saliency_set.subset(range(count), saliency_set.name)

    def part(self, name: str) -> str:
        """The full name of a part of the labelled images (`labels.part`) that belongs to this preset's training set."""
        return labels.set_name(self.train.split("/")[0], name)

    def test_sets(self, root: Path | None) -> tuple[str, ...]:
        """The sets to score on: those that it must be, and where these are benchmarks, every other benchmark that is
        present."""
        if not self.tests or not set(self.tests) <= set(BENCHMARKS):
            return self.tests
        present = [name for name in available_sets(root) if name in BENCHMARKS and name != "DUTS-TR"]
        return tuple(dict.fromkeys([*self.tests, *present]))


def _tried(
    budget: str, sets: tuple[str, str], size: int, epochs: int, ways: Ways, steps_per_epoch: int | None = None
) -> tuple[Preset, ...]:
    return tuple(
        Preset(f"{budget}-{batch}-{rate:g}" + (f"-{beta2:g}" if beta2 != Preset.beta2 else ""), *sets, (), size, batch,
               epochs, rate, after_steps=100, steps_per_epoch=steps_per_epoch, beta2=beta2)
        for batch, rate, beta2 in ways
    )  # fmt: skip


_EMBEDDED = ("cutouts/train", "cutouts/validation", ("cutouts/test",))
_SMALL = ("DUTS-TR/train-2000", "DUTS-TR/validation")
_WHOLE = ("DUTS-TR/train", "DUTS-TR/validation")
_FAST = Preset("fast", *_WHOLE, ("ECSSD",), size=224, batch=24, epochs=20, learning_rate=5e-4, after_steps=439,
               follow="ECSSD/250", redundant=1e-6, pretraining="imagenette", pretraining_steps=15_000)  # fmt: skip
#: What `fast` was at first, with the published rate times steps. Its networks were scored on the test sets before a
#: third of the rate was tried, which the validation split prefers.
FIRST_FAST = replace(_FAST, name="fast-24-0.0015", learning_rate=1.5e-3)
#: Batch sizes, learning rates and memories that were tried for a budget of images, to choose `brief`, `lite` and `fast`
#: from by the validation split alone: but for those of `fast` they are scored on no test set. Page 02 shows what they
#: gave.
TRIED = (
    *_tried("brief", _SMALL, 64, 4, ((8, 5e-3, 0.99), (8, 5e-3, 0.95), (8, 5e-3, 0.9), (8, 1e-2, 0.95)), 125),
    *_tried("brief", _SMALL, 64, 8, ((8, 3e-3, 0.99), (8, 2e-3, 0.95), (8, 2e-3, 0.99)), 125),
    *_tried("lite", _WHOLE, 64, 6, ((8, 1.7e-3, 0.99), (8, 8e-4, 0.99), (8, 4e-4, 0.99), (8, 2e-4, 0.99))),
    FIRST_FAST,
    _FAST,
)
PRESETS = {
    preset.name: preset
    for preset in (
        Preset("smoke", *_EMBEDDED, size=64, batch=4, epochs=2, learning_rate=9e-3, after_steps=3,
               steps_per_epoch=4, follow="cutouts/test", images=16),
        Preset("brief", *_SMALL, ("ECSSD",), size=64, batch=8, epochs=8, learning_rate=2e-3, after_steps=50,
               steps_per_epoch=125, follow="ECSSD/250", beta2=0.95, redundant=1e-3, pretraining="imagenette",
               pretraining_steps=4000),
        Preset("lite", *_WHOLE, ("ECSSD",), size=64, batch=8, epochs=6, learning_rate=8e-4, after_steps=200,
               follow="ECSSD/250", redundant=1e-6, pretraining="imagenette", pretraining_steps=15_000),
        _FAST,
        Preset("paper", *_WHOLE, ("ECSSD",), size=224, batch=24, epochs=300, learning_rate=1e-4, after_steps=8780,
               follow="ECSSD", pretraining="imagenet", pretraining_steps=4_800_000),
        *TRIED,
    )
}  # fmt: skip
#: The presets whose records count as evidence, the best first.
EVIDENCE = ("paper", "fast", FIRST_FAST.name, "lite", "brief")


def preset_named(name: str) -> Preset:
    """The preset of this name. Raises SodlibError for another."""
    if name not in PRESETS:
        raise SodlibError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
