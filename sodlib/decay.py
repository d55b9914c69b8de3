"""Standard and dynamic weight decay. (Paper, section 3.2.)

Four decays by name:

"standard": the L2 term of Eq. 1 on every parameter, the batch norm scales gamma included.
"dynamic": dynamic weight decay as the released code has it. The gradient of gamma gains
    lambda_d * mean over the batch of |GAP(x)| * gamma, where x is the feature after batch norm and activation;
    it passes through Adam like any gradient. gamma of the first two units of an ILBlock has no other decay;
    gamma of the third keeps the standard one beside the dynamic (evidently a slip of the release, kept).
"dynamic-throughout": the same without that slip, so that no gamma inside an ILBlock has another decay.
"dynamic-written": as Eq. 3 and 4 read. After the optimiser's step, gamma shrinks by
    learning rate * lambda_d * mean over the batch of GAP(x) * gamma: a signed mean, and decoupled from Adam. No
    gamma inside an ILBlock has another decay.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .csnet import CSNet
from .errors import SodlibError
from .octconv import MultiScale, NormActivation

DECAYS = ("standard", "dynamic", "dynamic-throughout", "dynamic-written")
#: The paper's lambda and lambda_d.
STANDARD_WEIGHT, DYNAMIC_WEIGHT = 5e-3, 3.0
#: The gap that the paper sees between redundant scales and others (Figure 5, Table 10): hardly any lies inside.
GAP = (1e-20, 1e-3)


def block_units(model: CSNet) -> Iterator[tuple[str, NormActivation]]:
    """The three convolution units of every ILBlock by name, in order: where dynamic decay acts."""
    for name, block in model.blocks.items():
        for unit in ("conv1x1", "conv3x3_1", "conv3x3_2"):
            yield f"{name}.{unit}", getattr(block, unit)


def gammas(model: CSNet) -> dict[str, nn.Parameter]:
    """The batch norm scales inside the ILBlocks by name; 99 tensors for a split of 5/5."""
    return {
        f"{name}.bns.{scale}.weight": norm.weight
        for name, unit in block_units(model)
        for scale, norm in unit.bns.items()
    }


def parameter_groups(model: CSNet, decay: str, weight: float = STANDARD_WEIGHT) -> list[dict[str, Any]]:
    """The optimiser's groups: all parameters that are tuned with standard decay `weight`, less those gammas that the
    named decay exempts. Raises SodlibError for an unknown decay."""
    if decay not in DECAYS:
        raise SodlibError(f"unknown decay {decay!r}; choose one of {', '.join(DECAYS)}")
    exempt: list[nn.Parameter] = []
    if decay != "standard":
        slip = ("conv3x3_2",) if decay == "dynamic" else ()
        exempt = [gamma for name, gamma in gammas(model).items() if name.split(".")[2] not in slip]
    exempt_ids = {id(gamma) for gamma in exempt}
    tuned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in tuned if id(parameter) not in exempt_ids]
    groups = [{"params": decayed, "weight_decay": weight}]
    return groups + ([{"params": exempt, "weight_decay": 0.0}] if exempt else [])


class DynamicWeightDecay:
    """Watches the features of a network in training and decays its gammas by them.

    Call `shrink` after the optimiser's step for "dynamic-written", `add_gradients` after the backward pass for
    the others. Both use the features of the latest forward pass in training mode. Use as a context
    manager, or call `close`, to take the hooks off the network again.
    """

    def __init__(self, model: CSNet, form: str = "dynamic", weight: float = DYNAMIC_WEIGHT) -> None:
        if form not in DECAYS[1:]:
            raise SodlibError(f"unknown form of dynamic decay {form!r}; choose one of {', '.join(DECAYS[1:])}")
        self.written, self.weight = form == "dynamic-written", weight
        self.gammas = {name: gamma for name, gamma in gammas(model).items() if gamma.requires_grad}
        self._pooled: dict[str, Tensor] = {}
        self._hooks = [unit.register_forward_hook(self._watch(name)) for name, unit in block_units(model)]

    def __enter__(self) -> DynamicWeightDecay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the hooks off the network."""
        for hook in self._hooks:
            hook.remove()

    def metrics(self) -> list[Tensor]:
        """M(x) of every gamma, `[C]` each, in the order of `gammas`: the pooled features of the latest batch, averaged
        over it; each sample's mean with its sign for "dynamic-written", in absolute value for the others."""
        if not self.gammas:
            return []
        pooled = torch.cat([self._pooled[name] for name in self.gammas], 1)
        metrics = (pooled if self.written else pooled.abs()).mean(0)
        return list(metrics.split([len(gamma) for gamma in self.gammas.values()]))

    def penalty(self) -> Tensor:
        """R, the sum of M(x) * gamma^2 / 2: all but "dynamic-written" add lambda_d * R to the loss. Detached."""
        pairs = zip(self.metrics(), self.gammas.values(), strict=True)
        return sum(((metric * gamma.detach() ** 2).sum() for metric, gamma in pairs), torch.zeros(())) / 2

    @torch.no_grad()
    def add_gradients(self, metrics: list[Tensor] | None = None) -> None:
        """Add the gradient of lambda_d * R to every gamma's; `metrics` by default those of the latest batch."""
        metrics = self.metrics() if metrics is None else metrics
        if not metrics:
            return
        terms = torch._foreach_mul(torch._foreach_mul(metrics, list(self.gammas.values())), self.weight)
        torch._foreach_add_([gamma.grad for gamma in self.gammas.values()], terms)

    @torch.no_grad()
    def shrink(self, learning_rate: float | Tensor, metrics: list[Tensor] | None = None) -> None:
        """Take learning rate * lambda_d * M(x) * gamma off every gamma; `metrics` as in `add_gradients`."""
        metrics = self.metrics() if metrics is None else metrics
        if not metrics:
            return
        factors = [1 - learning_rate * self.weight * metric for metric in metrics]
        torch._foreach_mul_(list(self.gammas.values()), factors)

    def _watch(self, unit_name: str) -> Any:
        def hook(module: nn.Module, _: Any, scales: MultiScale) -> None:
            if module.training:
                for scale, x in enumerate(scales):
                    if x is not None:
                        # A fused norm_activation has left the mean with the features.
                        pooled = getattr(x, "pooled", None)
                        pooled = x.detach().mean((2, 3)) if pooled is None else pooled
                        self._pooled[f"{unit_name}.bns.{scale}.weight"] = pooled

        return hook
