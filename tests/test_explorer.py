"""The threshold under one's hands: figure and widget follow it."""

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

import sodlib
from sodlib.explorer import Explorer
from sodlib.pruning import keep_above, prune, scores


@pytest.fixture
def explorer():
    torch.manual_seed(0)
    model = sodlib.csnet().eval()
    with torch.no_grad():
        for block in model.blocks.values():
            for norm in block.conv1x1.bns.values():
                norm.weight.uniform_(0, 1)
    random = np.random.default_rng(0)
    photographs = [(name, random.integers(0, 256, (40, 50, 3), np.uint8)) for name in ("cat", "tower")]
    return Explorer(model, photographs, torch.randn(4, 3, 32, 32))


def test_the_figure_tells_the_size_that_is_left(explorer):
    figure = explorer.figure(0.4, "tower")
    left = sodlib.count_parameters(prune(explorer.model, keep_above(scores(explorer.model), 0.4)))
    assert f"{left:,} of {sodlib.count_parameters(explorer.model):,} parameters" in figure.get_suptitle()
    assert [axis.get_title() for axis in figure.axes][-3:] == ["photograph", "map before", "map after"]
    plt.close(figure)


def test_the_statistics_are_those_of_the_given_images(explorer):
    """One pass, and the running mean is the images' own, not a tenth of the way to it."""
    unit = explorer.whole.stage0[0].conv1x1
    with torch.no_grad():
        features = unit.conv([explorer.inputs])
    for scale, feature in enumerate(features):
        torch.testing.assert_close(unit.bns[str(scale)].running_mean, feature.mean((0, 2, 3)), atol=1e-4, rtol=1e-4)


def test_the_widget_draws_anew_when_the_slider_moves(explorer, monkeypatch):
    drawn = []
    monkeypatch.setattr(Explorer, "_show", lambda self, threshold, photograph: drawn.append((threshold, photograph)))
    slider, menu, _ = explorer.widget(1e-3).children
    slider.value = 0.01
    menu.value = "tower"
    assert drawn == [(pytest.approx(1e-3), "cat"), (pytest.approx(0.01), "cat"), (pytest.approx(0.01), "tower")]
