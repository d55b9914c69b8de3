"""Paper against release: what can be checked by running, one function a discrepancy. (Page 09.)"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from . import networks, paper
from .channels import ChannelPlan, plan_channels
from .cost import BATCH_NORM, MACC_KINDS, PRELU, count_macs, count_parameters, macc_by_part
from .counts import count, shortening
from .csnet import CSNet, DilatedConvs
from .data import SaliencySet, read_pair
from .decay import DynamicWeightDecay
from .description import Run
from .errors import SodlibError
from .evidence import Estimate
from .mean_mask import MEAN_MASK
from .metrics import interval
from .octconv import WEIGHT_FACTOR, DepthwiseUnit, OctaveUnit, ScaledConv2d
from .pixels import Pixels, Stream
from .prediction import predict_batch, quantise
from .pruning import keep_above, prune, scores
from .records import Record
from .study import STUDY

#: Images a step in the released schedule.
BATCH = 24
#: Height and width of a usual training image of DUTS-TR.
USUAL_SIDES = (300, 400)


def kinds_of_work(plans: Mapping[str, ChannelPlan]) -> pd.DataFrame:
    """A row a network: how much of the paper's MACC (10^9, 224 x 224) is each of `cost.MACC_KINDS`, and the whole."""
    rows = {name: sum(macc_by_part(plan).values(), start=Counter()) for name, plan in plans.items()}
    table = pd.DataFrame({name: [kinds[kind] / 1e9 for kind in MACC_KINDS] for name, kinds in rows.items()}).T
    table.columns = list(MACC_KINDS)
    return table.assign(macc_g=table.sum(axis="columns"))


def others_counted() -> pd.DataFrame:
    """Networks of Table 7 by other authors that have here, to 2 %, the printed number of parameters: the convolutions'
    MACs at 224 x 224, and with what the paper's counter adds for batch norms and PReLUs, in 10^9, beside the printed
    MACC."""
    printed = paper.table(7).drop_duplicates("network").set_index("network")
    rows = {}
    for name, network in {"ENet": "enet", "CGNet": "cgnet", "DABNet": "dabnet"}.items():
        model = networks.build(network)
        convolutions = count_macs(model)["conv"]
        elements = _elements(model, (nn.BatchNorm2d, nn.PReLU))
        added = BATCH_NORM * elements[nn.BatchNorm2d] + PRELU * elements[nn.PReLU]
        rows[name] = {
            "parameters_k, printed": printed.loc[name, "parameters_k"],
            "parameters_k": count_parameters(model) / 1e3,
            "convolution_g": convolutions / 1e9,
            "with batch norm and PReLU (G)": (convolutions + added) / 1e9,
            "macc_g, printed": printed.loc[name, "macc_g"],
        }
    return pd.DataFrame(rows).T.rename_axis("network")


def _elements(model: nn.Module, kinds: tuple[type, ...]) -> Counter[type]:
    """The output elements of every kind of layer for one image of 224 x 224."""
    elements: Counter[type] = Counter()

    def note(module: nn.Module, _: Any, x: Tensor) -> None:
        elements[type(module)] += x.numel()

    for module in model.modules():
        if isinstance(module, kinds):
            module.register_forward_hook(note)
    with torch.no_grad():
        model.to("meta").eval()(torch.empty(1, 3, 224, 224, device="meta"))
    return elements


def structures() -> pd.DataFrame:
    """What the paper's description gives if taken literally, beside what its printed counts ask for: parameters in
    thousands and MACC in 10^9 of either, those of Table 6, and whether print can come from them."""
    printed = paper.table(6).set_index(["network", "split", "width"])
    csnet, extractor, vanilla = (plan_channels(name) for name in ("csnet", "extractor", "vanilla"))
    short = replace(csnet, blocks=csnet.blocks[:1] + csnet.blocks[2:], stages=(2, 4, 6, 4))
    last, three = "at the end of stage 4 alone", "at the ends of stages 2, 3, 4"
    cases = [
        ("CSNet", "17 blocks (Table 2)", short),
        ("CSNet", "18 blocks", csnet),
        ("CSNet", "scales merge at the end of every stage (section 4.4)", merging_at(csnet, (1, 2, 3, 4))),
        ("CSNet", f"scales merge {three}", csnet),
        ("Extractor", f"scales merge {three}, as in CSNet", merging_at(extractor, (2, 3, 4))),
        ("Extractor", f"scales merge {last}", extractor),
        ("Vanilla", f"scales merge {last}, as in the Extractor", merging_at(vanilla, (4,))),
        ("Vanilla", f"scales merge {three}", vanilla),
    ]
    rows = []
    for network, rule, plan in cases:
        ours = count(CSNet(plan))
        there = printed.loc[(network, "5/5", 1), list(ours)]
        fits = all(_printed_from(exact, there[name], name) for name, exact in ours.items())
        printed_there = {f"{name}, printed": there[name] for name in ours}
        rows.append({"network": network, "rule": rule, **ours, **printed_there, "fits": "yes" if fits else "no"})
    return pd.DataFrame(rows)


def _printed_from(exact: float, printed: float, name: str) -> bool:
    try:
        return bool(shortening(exact, printed, name))
    except SodlibError:
        return False


def merging_at(plan: ChannelPlan, stages: Sequence[int]) -> ChannelPlan:
    """The plan with the scales merged in the last block of these stages and of no others."""
    blocks = list(plan.blocks)
    for stage, end in enumerate(plan.stage_ends, start=1):
        blocks[end] = (sum(blocks[end]),) if stage in stages else blocks[end - 1]
    return replace(plan, blocks=tuple(blocks))


def tuned_after_pruning(released: bool, steps: int = 3) -> dict[str, Any]:
    """The step after pruning in small, on random images: a CSNet-x2 without the two groups of dilated convolutions that
    the released one lacks, and an optimiser on the network before pruning (`released`) or on the pruned one.

    Returns the numbers of tensors that the optimiser lists, of those that it has a state for, of the pruned network's
    tensors and of those that moved, and the batches that the batch norms have counted.
    """
    torch.manual_seed(0)
    model = CSNet(plan_channels(width=2))
    with torch.no_grad():
        for scale in ("1", "2"):
            convs = model.oct_fuse.ms.convs[scale]
            convs.bn.weight[: convs.msconv["0"].out_channels] = 0
    smaller = prune(model, keep_above(scores(model), 1e-20)).train()
    optimizer = torch.optim.Adam((model if released else smaller).parameters(), lr=1e-4)
    before = copy.deepcopy(list(smaller.parameters()))
    for _ in range(steps):
        loss = smaller.loss(smaller(torch.rand(2, 3, 32, 32)), torch.rand(2, 1, 32, 32).round())
        loss.backward()
        optimizer.step()
    state = optimizer.state_dict()
    pairs = zip(before, smaller.parameters(), strict=True)
    norms = [module for module in smaller.modules() if isinstance(module, nn.BatchNorm2d)]
    counted = {int(norm.num_batches_tracked) for norm in norms}
    return {
        "tensors that the optimiser lists": sum(len(group["params"]) for group in state["param_groups"]),
        "tensors that it has a state for": len(state["state"]),
        "tensors of the pruned network": len(before),
        "of these moved": sum(not torch.equal(old, new) for old, new in pairs),
        "batches that its batch norms counted": counted.pop(),
    }


def scaled_layers(model: CSNet) -> Iterator[tuple[list[ScaledConv2d], nn.BatchNorm2d]]:
    """The convolutions with the factor 100, each with the batch norm that follows."""
    for module in model.modules():
        if isinstance(module, DepthwiseUnit):
            yield from (([conv], module.bns[scale]) for scale, conv in module.convs.items())
        elif isinstance(module, DilatedConvs):
            yield list(module.msconv.values()), module.bn
        elif isinstance(module, OctaveUnit) and isinstance(module.conv, ScaledConv2d):
            yield [module.conv], module.bns["0"]


@torch.no_grad()
def without_factor(model: CSNet, epsilon: float) -> CSNet:
    """A copy in which the factor 100 is taken out of every convolution, and the batch norms that follow have another
    epsilon. (The factor is a constant, so the copy stores a hundredth of each weight.)"""
    other = copy.deepcopy(model)
    for convs, norm in scaled_layers(other):
        for conv in convs:
            conv.weight /= WEIGHT_FACTOR
        norm.running_mean /= WEIGHT_FACTOR
        norm.running_var /= WEIGHT_FACTOR**2
        norm.eps = epsilon
    return other


def factor_as_epsilon(model: CSNet, images: Tensor, masks: Tensor, epsilon: float) -> dict[str, float]:
    """How far a network without the factor and with this epsilon is from the network itself, for one training step in
    double precision: the largest difference of the logits, and of the gradients of what a training would store,
    relative to the largest gradient of its tensor (median over the tensors)."""
    model, images, masks = copy.deepcopy(model).double(), images.double(), masks.double()
    pair = [model, without_factor(model, epsilon)]
    logits = [one.train()(images) for one in pair]
    gradients = []
    for one, output in zip(pair, logits, strict=True):
        one.loss(output, masks).backward()
        gradients.append([conv.weight.grad for convs, _ in scaled_layers(one) for conv in convs])
    # A network without the factor would store the weight itself, a hundred times what the copy stores.
    relative = [
        float((first - second / WEIGHT_FACTOR).abs().max() / first.abs().max())
        for first, second in zip(*gradients, strict=True)
        if first.abs().max() > 0
    ]
    apart = (logits[0] - logits[1]).detach().abs().max()
    return {"logits": float(apart), "gradients": float(np.median(relative))}


def variances(model: CSNet) -> np.ndarray:
    """The running variances that the batch norms behind the factor 100 divide by, of all channels."""
    return np.concatenate([norm.running_var.numpy() for _, norm in scaled_layers(model)])


def drawn(augmentation: str, images: int = 10_000) -> dict[str, float]:
    """What an augmentation does to images of usual size, counted over draws: shares that are mirrored, and the share of
    the area that a crop removes (mean)."""
    sides = np.full((images, 2), USUAL_SIDES)
    stream = Stream(Pixels(torch.zeros(1), sides, np.zeros(images, int)), 224, images, 0, augmentation)
    _, crops, flips = stream.choices(0)
    kept = 1 - crops.reshape(-1, 2, 2).sum(2) / sides
    return {
        "left-right": float(flips[:, 1].mean()),
        "up-down": float(flips[:, 0].mean()),
        "area cropped": float(1 - kept.prod(1).mean()),
    }


@torch.no_grad()
def negative_metrics(model: CSNet, images: Tensor) -> float:
    """The share of the gammas for which M(x) as written is negative on a batch, so that the decay of Eq. 3 would make
    them grow."""
    model = copy.deepcopy(model).train()
    with DynamicWeightDecay(model, "dynamic-written") as decay:
        model(images)
        metrics = torch.cat(decay.metrics())
    return float((metrics < 0).float().mean())


def cut_or_rounded(model: nn.Module, images: SaliencySet) -> dict[str, float]:
    """MAE over a set of a network's maps, cut to 8 bits as released, rounded to them, and as they are."""
    errors = {"cut": [], "rounded": [], "exact": []}
    for start in range(0, len(images), 32):
        pairs = [read_pair(images, index) for index in range(start, min(start + 32, len(images)))]
        maps = predict_batch(model, [photograph for photograph, _ in pairs])
        for saliency_map, (_, truth) in zip(maps, pairs, strict=True):
            ways = {"cut": quantise(saliency_map) / 255, "rounded": np.rint(saliency_map * 255) / 255}
            for name, way in (ways | {"exact": saliency_map}).items():
                errors[name].append(np.abs(way - truth / 255.0).mean())
    return {name: float(np.mean(values)) for name, values in errors.items()}


def followed() -> tuple[Run, ...]:
    """The trainings of the study whose test score is taken after every epoch: saliency networks of a channel plan, by a
    recipe of the paper."""
    return tuple(
        entry.run
        for entry in STUDY
        if not (entry.run.has_parent or entry.run.classification or entry.run.images or entry.run.beyond)
        and entry.run.network not in (MEAN_MASK, *networks.NAMES)
    )


def epochs_chosen(records: Sequence[Record], follow: str) -> pd.DataFrame:
    """A row a training: the epoch (from 1) that is best on the followed test set and on the validation split, and the
    scores at a set's own choice, at the other set's, and at the last epoch.

    By epoch the test set has its MAE alone; the validation split also has max F-measure, so that for it the roles can
    be exchanged. Raises SodlibError without any record.
    """
    if not records:
        raise SodlibError("no training with a followed test set is recorded; make some with `sodlib study run`")
    rows = []
    for record in records:
        test, validation, f = (
            np.array([entry[name] for entry in record.data["history"]])
            for name in (f"{follow}_mae", "validation_mae", "validation_max_f")
        )
        by_test, by_validation = int(test.argmin()), int(validation.argmin())
        row = {"epoch by test": by_test + 1, "epoch by validation": by_validation + 1, "epochs": len(test)}
        for name, score, own, other in (
            ("test MAE", test, by_test, by_validation),
            ("validation MAE", validation, by_validation, by_test),
            ("validation max F", f, int(f.argmax()), by_test),
        ):
            row |= {f"{name}, own": score[own], f"{name}, other": score[other], f"{name}, last": score[-1]}
        rows.append(row)
    return pd.DataFrame(rows, index=[record.key for record in records])


def gain(chosen: pd.DataFrame, score: str, over: str, resamples: int = 10_000) -> Estimate:
    """How much a score changes by the set's own choice of the epoch over the "other" set's or the "last" one: the mean
    over the trainings, with an interval that draws trainings. By construction no training loses by its own choice."""
    values = (chosen[f"{score}, own"] - chosen[f"{score}, {over}"]).to_numpy()
    draws = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    return Estimate(float(values.mean()), *interval(values[draws].mean(1)))
