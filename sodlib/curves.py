"""Precision and recall of every image, small enough for a record: what a later bootstrap of max F needs.

`pack` keeps the curves at some of the 256 thresholds, in 255 steps; `unpack` gives them back to `metrics.bootstrap`
and `metrics.paired`. Both protocols together take about 30 bytes an image at 1,000 images and 20 at 5,000 (60 and 40
where as many thresholds are kept as allowed). Measured on ECSSD and DUTS-TE, the ends of an interval of max F move
by less than 0.0001 at 1,000 images or more and by 0.0004 at 30; those of MAE do not move.

Which thresholds: those where F has its maximum in one of 1,000 draws of the images, for there a later bootstrap
finds it too. At most 32,000 / images of them are allowed (12 at least, 64 at most); of more, those equal shares
of the draws apart are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .errors import SodlibError
from .metrics import f_of_draws, resample

CURVES = ("precision", "recall")
#: Draws that show which thresholds matter.
DRAWS = 1000
#: Thresholds times images, and the fewest and the most thresholds.
BUDGET, FEWEST, MOST = 32_000, 12, 64
#: Steps between 0 and 1.
STEPS = 255


def pack(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The scores of one set by protocol, as `metrics.evaluate_all` returns them, as small arrays for an npz file.

    By protocol: "released/thresholds" uint8 `[T]`, "released/precision" and "released/recall" uint8 `[N, T]` and
    "released/mae" float32 `[N]`. Along the thresholds each value is the difference to the one before, modulo 256:
    many small numbers, which the compression of the npz file turns into few bytes.
    """
    arrays = {}
    weights = resample(next(iter(scores.values()))["images"], DRAWS)
    for protocol, result in scores.items():
        thresholds = _thresholds(result, weights)
        arrays[f"{protocol}/thresholds"] = thresholds.astype(np.uint8)
        for name in CURVES:
            steps = np.rint(result["per_image"][name][:, thresholds] * STEPS).astype(np.uint8)
            arrays[f"{protocol}/{name}"] = np.diff(steps, axis=1, prepend=np.uint8(0))
        arrays[f"{protocol}/mae"] = result["per_image"]["mae"].astype(np.float32)
    return arrays


def unpack(arrays: Mapping[str, np.ndarray], protocol: str) -> dict[str, Any]:
    """What `pack` kept, for `metrics.bootstrap` and `metrics.paired`.

    Returns "protocol", "images", "thresholds" `[T]`, and "per_image" ("precision" and "recall" float32 `[N, T]`,
    "mae" float32 `[N]`). Raises SodlibError where the arrays hold no curves by this protocol.
    """
    try:
        curves = {name: np.cumsum(arrays[f"{protocol}/{name}"], 1, np.uint8) / np.float32(STEPS) for name in CURVES}
        thresholds, mae = arrays[f"{protocol}/thresholds"], arrays[f"{protocol}/mae"]
    except KeyError as error:
        raise SodlibError(f"there are no curves by image here ({error} is missing); make the record again") from error
    return {
        "protocol": protocol,
        "images": len(mae),
        "thresholds": thresholds,
        "per_image": {**curves, "mae": mae},
    }


def _thresholds(result: Mapping[str, Any], weights: np.ndarray) -> np.ndarray:
    """The thresholds to keep, ascending; the one of max F is among them."""
    maxima = f_of_draws(result, weights).argmax(1)
    most = min(max(BUDGET // result["images"], FEWEST), MOST)
    if len(np.unique(maxima)) > most:
        maxima = np.quantile(maxima, np.linspace(0, 1, most), method="nearest")
    return np.unique(np.append(maxima, result["curve"]["f"].argmax()))
