"""What made the numbers of a page, in sentences."""

from __future__ import annotations

from collections.abc import Iterable

from .evidence import Evidence
from .presets import PUBLISHED_BATCH, PUBLISHED_STEPS


def provenance(found: Iterable[Evidence]) -> str:
    """A paragraph for every preset and training set, with the items that are shown from it, their seeds, and all
    machines that made their records."""
    by_budget: dict[str, list[Evidence]] = {}
    for evidence in found:
        by_budget.setdefault(_budget(evidence), []).append(evidence)
    return "\n\n".join(
        f"{budget} Made on {_made_on(several)} Shown from it (seeds): "
        + ", ".join(f"{evidence.item} ({', '.join(map(str, evidence.seeds))})" for evidence in several)
        + "."
        for budget, several in by_budget.items()
    )


def _made_on(several: Iterable[Evidence]) -> str:
    machines = sorted(set().union(*map(_machines, several)))
    mixed = any("NVIDIA" in machine for machine in machines)
    return f"{'; '.join(machines)}{' (GPUs with bfloat16 forward passes, processors in float32)' if mixed else ''}."


def _machines(evidence: Evidence) -> set[str]:
    return {record.data["hardware"] for records in evidence.records.values() for record in records}


def _images(evidence: Evidence) -> list[dict[str, int]]:
    """Of every record, how many images of which sets it is from."""
    return [record.data["images"] for records in evidence.records.values() for record in records]


def _budget(evidence: Evidence) -> str:
    """How much computing a training got, and how much less that is than the paper's."""
    settings, train = evidence.preset, evidence.training_set
    pixels = evidence.steps * settings.batch * settings.size**2 / (PUBLISHED_STEPS * PUBLISHED_BATCH * 224**2)
    protocol = "" if evidence.of_classifiers else ", by the released protocol"
    maps = evidence.preset.tests[0]
    if evidence.of_classifiers and (scored := [found for found in _images(evidence) if maps in found]):
        protocol = f"; those of saliency networks from {maps} (n = {scored[0][maps]:,}), by the released protocol"
    return (
        f"**Preset {settings.name}.** {settings.epochs} epochs of {evidence.steps_per_epoch} steps of "
        f"{settings.batch} images from {evidence.one_record.data['images'][train]:,} of {train}{_others(evidence)}, at "
        f"{settings.size} × {settings.size}: {pixels:.2%} of the pixels that a training of the paper sees. Learning "
        f"rate {settings.learning_rate:g}, second beta of Adam {settings.beta2:g}; {settings.after_steps} batches "
        f"after pruning; redundant are scales below {settings.redundant:g}. Scores are from {evidence.test_set} (n = "
        f"{evidence.images:,}){protocol}."
    )


def _others(evidence: Evidence) -> str:
    """The other sets that networks were trained on, which these start from or are compared with."""
    every = dict(next(iter(images.items())) for images in _images(evidence))
    every.pop(evidence.training_set, None)
    if len(every) > 3:
        return f" (others {min(every.values()):,} to {max(every.values()):,} of {len(every)} other parts)"
    return f" (others {', '.join(f'{count:,} of {name}' for name, count in every.items())})" if every else ""
