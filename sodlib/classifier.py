"""CSNet as a classifier, for the question how much a saliency network knows of categories. (Paper, section 5.1.2.)

All weights but those of the last layer fit the saliency network of the same plan, and the other way round.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .channels import ChannelPlan, Split
from .csnet import CSNet
from .errors import SodlibError
from .octconv import GOctConv, MultiScale, OctaveUnit

#: What can be trained while the rest stays as it is. The stem counts as part of stage 1.
TUNED = ("linear", "stage1", "stage2", "stage3", "stage4", "fusion", "all")


class CoarsestOctaveUnit(OctaveUnit):
    """The `OctaveUnit` that merges a fusion, put out at the coarsest scale instead of the finest: the same weights,
    pooled where they were upsampled."""

    def __init__(self, inputs: Split, merged: int) -> None:
        super().__init__(inputs, (merged,), 1)
        self.conv = GOctConv(inputs, (*(0 for _ in inputs[1:]), merged), 1)

    def forward(self, scales: MultiScale) -> MultiScale:
        return self.activate(self.conv(scales)[-1:])


class Classifier(CSNet):
    """A CSNet whose fusion ends at the lowest resolution; global average pooling and a linear layer follow it.

    Input as for CSNet, output: logits `[B, classes]`. Raises SodlibError for a plan without a fusion of several scales.
    """

    def __init__(self, plan: ChannelPlan, classes: int, input_size: int = 224) -> None:
        super().__init__(plan, input_size)
        if plan.fusion is None or len(plan.fusion.outputs) == 1:
            raise SodlibError("a classifier needs the fusion of several stages; choose stages 3-4, 2-4 or 1-4")
        self.classes = classes
        self.oct_fuse.fuse1x1 = CoarsestOctaveUnit(plan.fusion.dilated_outputs, plan.fusion.merged)
        self.cls_layer = nn.Linear(plan.fusion.merged, classes)
        self._frozen: list[nn.Module] = []

    def forward(self, images: Tensor) -> Tensor:
        return self.cls_layer(self.pooled(images))

    def pooled(self, images: Tensor) -> Tensor:
        """What the linear layer works on, `[B, C]`."""
        return self.features(images)[0].mean((2, 3))

    def like(self, plan: ChannelPlan) -> Classifier:
        return Classifier(plan, self.classes, self.input_size)

    @staticmethod
    def loss(logits: Tensor, classes: Tensor) -> Tensor:
        """Cross-entropy with the class of each image `[B]`."""
        return F.cross_entropy(logits, classes)

    def take_features_of(self, network: CSNet) -> None:
        """Take over every weight but the last layer's. Raises SodlibError for a network of another plan."""
        if network.plan != self.plan:
            raise SodlibError("the network has another channel plan than the classifier; train one of the same plan")
        features = {name: value for name, value in network.state_dict().items() if not name.startswith("cls_layer.")}
        self.load_state_dict(features, strict=False)

    def tune(self, part: str) -> None:
        """Leave everything but one of TUNED, and the linear layer, as it is from now on: no gradient, and batch norms
        with their running statistics. Raises SodlibError for an unknown part."""
        if part not in TUNED:
            raise SodlibError(f"unknown part {part!r} to tune; choose one of {', '.join(TUNED)}")
        names = {"linear": (), "stage1": ("stage0", "stage1"), "fusion": ("oct_fuse",)}.get(part, (part,))
        self._frozen = [
            module
            for name, module in self.named_children()
            if part != "all" and name not in names and name != "cls_layer"
        ]
        self.requires_grad_(True)
        for module in self._frozen:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


#: Strengths of the L2 penalty that a linear probe is fitted with.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def fit_probe(model: Classifier, train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor]) -> float:
    """Put the linear layer where its cross-entropy on the training images is least, so that no schedule decides:
    logistic regression on the pooled features, each divided by its deviation, by LBFGS, with the one of PENALTIES that
    classifies the validation images best. Returns that one.

    `train`, `validation`: network inputs `[N, 3, S, S]` and classes `[N]`.
    """
    model.eval()
    with torch.no_grad():
        features, held_out = (torch.cat([model.pooled(x) for x in part.split(32)]) for part, _ in (train, validation))
    mean, deviation = features.mean(0), features.std(0, correction=int(len(features) > 1)).clamp_min(1e-12)
    best = (-1.0, 0.0)
    for penalty in PENALTIES:
        layer = nn.Linear(features.shape[1], model.classes).to(features.device)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        _minimise(layer, (features - mean) / deviation, train[1], penalty)
        right = (layer((held_out - mean) / deviation).argmax(1) == validation[1]).float().mean().item()
        if right > best[0]:
            best = (right, penalty)
            with torch.no_grad():
                model.cls_layer.weight.copy_(layer.weight / deviation)
                model.cls_layer.bias.copy_(layer.bias - model.cls_layer.weight @ mean)
    return best[1]


def _minimise(layer: nn.Linear, features: Tensor, classes: Tensor, penalty: float) -> None:
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(layer(features), classes) + penalty / 2 * layer.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)


@torch.inference_mode()
def class_logits(model: Classifier, images: Tensor, batch: int = 32) -> Tensor:
    """The logits `[N, classes]` of network inputs `[N, 3, S, S]`, in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    return torch.cat([model(part.to(device)) for part in images.split(batch)])
