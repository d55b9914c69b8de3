"""What a trained network scores, for its record: numbers, and small arrays of what every image has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import curves, networks, records
from .activation_maps import activation_maps, localisation
from .classifier import Classifier, class_logits
from .cost import count_macs, count_parameters
from .csnet import CSNet
from .data import SaliencySet
from .features import channel_deviation, gamma_vectors
from .folders import FolderPixels
from .mean_mask import MeanMask
from .metrics import evaluate_all
from .pixels import Pixels

Scored = tuple[dict[str, Any], dict[str, np.ndarray]]


def describe(model: nn.Module, inputs: Tensor) -> Scored:
    """Size and cost of a network for its record; of those with a channel plan also the gammas, and how evenly the
    channels respond to `inputs`."""
    if isinstance(model, MeanMask):
        return {"plan": None, "parameters": 0, "macs": {"conv": 0, "paper": 0}}, {}
    if not isinstance(model, CSNet):
        with torch.device("meta"):  # some networks take images of their input size alone
            macs = count_macs(networks.build(model.name))
        return {"plan": None, "parameters": count_parameters(model), "macs": macs}, {}
    arrays = {f"gamma/{name}": vector for name, vector in gamma_vectors(model).items()}
    arrays["channel_deviation"] = channel_deviation(model, inputs).astype(np.float32)
    numbers = {"plan": model.plan.to_json(), "parameters": count_parameters(model), "macs": count_macs(model)}
    return numbers, arrays


def scored(model: nn.Module, images: SaliencySet) -> Scored:
    """Scores for the record, curves and what every image has for its arrays."""
    by_protocol = evaluate_all(model, images)
    arrays = {
        f"curve/{images.name}/{protocol}/{curve}": values.astype(np.float32)
        for protocol, result in by_protocol.items()
        for curve, values in result["curve"].items()
    }
    arrays |= {f"images/{images.name}/{kind}": values for kind, values in curves.pack(by_protocol).items()}
    return records.summarise(by_protocol), arrays


def classified(model: Classifier, name: str, pixels: Pixels | FolderPixels) -> Scored:
    """Accuracy on the set of this name for the record; logits and classes of every image for its arrays."""
    parts = torch.arange(len(pixels)).split(256)  # ImageNet's do not fit into memory at once
    by_part = [class_logits(model, pixels.squares(part.numpy(), model.input_size)[0]) for part in parts]
    logits, classes = torch.cat(by_part).cpu().numpy(), pixels.classes.cpu().numpy()
    right = int((logits.argmax(1) == classes).sum())
    arrays = {f"logits/{name}": logits.astype(np.float16), f"classes/{name}": classes.astype(np.uint8)}
    return {"top1": {"images": len(classes), "right": right, "accuracy": right / len(classes)}}, arrays


def localised(model: Classifier, name: str, pixels: Pixels, method: str) -> Scored:
    """How well the activation maps for the true class find the objects of the set of this name: means for the record,
    and every image's for its arrays."""
    everyone = range(len(pixels))
    inputs, masks = replace(pixels, classes=None).squares(everyone, model.input_size)
    maps = activation_maps(model, inputs, pixels.classes.tolist(), method)
    of_images = localisation(maps, masks[:, 0].numpy() >= 0.5)
    numbers = {measure: float(values.mean()) for measure, values in of_images.items()}
    arrays = {f"{measure}/{name}": values.astype(np.float32) for measure, values in of_images.items()}
    return {method: {"images": len(pixels), "empty": int((maps.max((1, 2)) == 0).sum()), **numbers}}, arrays
