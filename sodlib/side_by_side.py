"""One photograph and the maps that several networks make of it, with their sizes and times."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence

import ipywidgets
import numpy as np
from IPython.display import display
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import nn

from .cost import count_parameters
from .plots import FULL_WIDTH, SALIENCY
from .prediction import predict


def figure(photograph: np.ndarray, networks: Mapping[str, nn.Module], timed: bool = False) -> Figure:
    """The photograph, uint8 `[H, W, 3]`, and every network's saliency map, titled by name and parameters; `timed` adds
    the milliseconds of the second of two predictions, resizing included."""
    width = FULL_WIDTH / (1 + len(networks))
    height = min(3.1, 0.42 + width * photograph.shape[0] / photograph.shape[1])
    drawn, axes = plt.subplots(1, 1 + len(networks), figsize=(FULL_WIDTH, height), squeeze=False)
    axes[0, 0].imshow(photograph)
    axes[0, 0].set_title("photograph", fontsize="small")
    for axis, (name, network) in zip(axes[0, 1:], networks.items(), strict=True):
        saliency_map = predict(network, photograph)
        title = f"{name}\n{count_parameters(network) / 1e3:,.0f}K at {network.input_size} × {network.input_size}"
        if timed:
            started = time.perf_counter()
            predict(network, photograph)
            title += f", {1e3 * (time.perf_counter() - started):.0f} ms"
        axis.imshow(saliency_map, **SALIENCY)
        axis.set_title(title, fontsize="small")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        axis.set_anchor("S")
    return drawn


def widget(photographs: Sequence[tuple[str, np.ndarray]], networks: Mapping[str, nn.Module]) -> ipywidgets.Widget:
    """A menu of these photographs, and a place to drop one's own; below, the figure that follows them."""
    menu = ipywidgets.Dropdown(options=[name for name, _ in photographs], description="photograph")
    own = ipywidgets.FileUpload(accept="image/*", description="your own")
    shown = ipywidgets.Output()
    images = dict(photographs)

    def show(photograph: np.ndarray) -> None:
        shown.clear_output(wait=True)
        with shown:
            drawn = figure(photograph, networks, timed=True)
            display(drawn)
            plt.close(drawn)

    def dropped(_: object) -> None:
        if not own.value:
            return
        try:
            with Image.open(io.BytesIO(own.value[0].content)) as image:
                show(np.asarray(ImageOps.exif_transpose(image).convert("RGB")))
        except (UnidentifiedImageError, OSError) as error:
            shown.clear_output()
            with shown:
                print(f"{own.value[0].name} cannot be read as an image ({error}); drop a JPEG, PNG or WebP file.")

    menu.observe(lambda change: show(images[change["new"]]), "value")
    own.observe(dropped, "value")
    show(images[menu.value])
    return ipywidgets.VBox([ipywidgets.HBox([menu, own]), shown])
