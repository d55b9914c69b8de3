"""Where a classifier looks: class activation maps, and how well they find the object. (Paper, Figure 9.)"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .classifier import Classifier, class_logits
from .errors import SodlibError
from .images import resize, to_input

#: "cam": the class activation map of Zhou et al. (CVPR 2016), the last features weighted by the linear layer.
#: "grad-cam": that of Selvaraju et al. (ICCV 2017), the mean of its maps at the four scales of the fusion, from the
#: image's own to the eighth of it that the CAM has. (At the last features both would be the same map.)
METHODS = ("cam", "grad-cam")


def activation_maps(
    model: Classifier, inputs: Tensor, classes: Sequence[int], method: str = "cam", batch: int = 32
) -> np.ndarray:
    """Maps float32 `[N, S, S]` in 0..1, one for the class given with each network input of `[N, 3, S, S]`: what speaks
    against the class is cut off, and each map is stretched to its own maximum. A map that is zero everywhere points
    nowhere.

    Raises SodlibError for an unknown method, and where the package grad-cam is missing.
    """
    if method not in METHODS:
        raise SodlibError(f"unknown kind of activation map {method!r}; choose one of {', '.join(METHODS)}")
    try:
        from pytorch_grad_cam import GradCAM, HiResCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as error:
        raise SodlibError("activation maps need the package grad-cam: pip install grad-cam") from error
    # After pooling and a linear layer the gradient of a feature is the layer's weight: HiResCAM is the CAM there.
    fusion = model.oct_fuse
    kind, layers = {
        "cam": (HiResCAM, [fusion.fuse1x1.prelus["0"]]),
        "grad-cam": (GradCAM, [scale.prelu for scale in fusion.ms.convs.values()]),
    }[method]
    model.eval()
    maps = []
    with kind(model, layers) as look, torch.enable_grad():
        for first in range(0, len(inputs), batch):
            chosen = slice(first, first + batch)
            maps.append(look(inputs[chosen], [ClassifierOutputTarget(int(one)) for one in classes[chosen]]))
    return np.concatenate(maps)


def localisation(maps: np.ndarray, objects: np.ndarray) -> dict[str, np.ndarray]:
    """How well maps `[N, S, S]` find the objects, bool `[N, S, S]`: `[N]` of each

    - "energy": the share of the map that lies inside the object (Wang et al., Score-CAM, 2020), and "area", that of the
      object in the image, which a map scores that is the same everywhere;
    - "pointing": whether the map's maximum lies inside (Zhang et al., 2016, without their tolerance), and "centre",
      whether the centre of the image does, which a map scores that always points there;
    - "separation": how well the map tells object from background, whichever of the two it lies on: |2 AUC - 1|.

    A map that is zero everywhere scores 0.
    """
    from scipy.stats import rankdata

    count, side, _ = maps.shape
    flat, inside = maps.reshape(count, -1), objects.reshape(count, -1)
    total = flat.sum(1)
    energy = np.divide((flat * inside).sum(1), total, out=np.zeros(count, np.float32), where=total > 0)
    pointing = inside[np.arange(count), flat.argmax(1)] & (total > 0)
    centre = objects[:, side // 2, side // 2]
    area = inside.mean(1)
    ranks = (rankdata(flat, axis=1) * inside).sum(1) / np.maximum(inside.sum(1), 1)
    # Mann and Whitney: the mean rank of the object's pixels, from 0 where all others lie above to 1.
    auc = (ranks - (inside.sum(1) + 1) / 2) / np.maximum((~inside).sum(1), 1)
    auc = np.where(inside.any(1) & ~inside.all(1), auc, 0.5)  # without an object or a background: nothing to tell
    return {
        "energy": energy,
        "pointing": pointing,
        "area": area,
        "centre": centre,
        "separation": np.abs(2 * auc - 1),
    }


def answers(model: Classifier, photographs: Sequence[np.ndarray]) -> list[int]:
    """The class of each photograph uint8 `[H, W, 3]`, as the network says."""
    return class_logits(model, _inputs(model, photographs)).argmax(1).tolist()


def looks(
    model: Classifier, photographs: Sequence[np.ndarray], classes: Sequence[int], method: str = "cam"
) -> list[np.ndarray]:
    """`activation_maps` of photographs uint8 `[H, W, 3]`, each of its photograph's size."""
    maps = activation_maps(model, _inputs(model, photographs), classes, method)
    shapes = (photograph.shape[:2] for photograph in photographs)
    return [resize(torch.from_numpy(one), *shape).numpy() for one, shape in zip(maps, shapes, strict=True)]


def _inputs(model: Classifier, photographs: Sequence[np.ndarray]) -> Tensor:
    return torch.stack([to_input(photograph, model.input_size) for photograph in photographs])
