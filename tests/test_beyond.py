"""Training beyond the paper, against the formulas and against a training without a stop."""

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import sodlib
from sodlib.beyond import TEACHING, WAYS, WINDOW, cosine_rate, mean_of, overlap_loss, taught
from sodlib.data import find_set
from sodlib.description import TEACHER, Run
from sodlib.pixels import CONTRAST, Stream, open_pixels
from sodlib.study import BEYOND, BEYOND_THE_PAPER, CENTRE, IMAGENET, STUDY
from sodlib.training import Recipe, seed_everything, train
from sodlib.unfinished import Checkpoint, Paused


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    return open_pixels(find_set("cutouts/train").subset(range(8), "eight"), tmp_path_factory.mktemp("cache"))


@given(st.integers(2, 500), st.floats(1e-5, 1))
def test_the_cosine_rises_once_and_falls_to_nothing(steps, base):
    rates = np.array([cosine_rate(step, steps, base) for step in range(steps + 1)])
    top = int(rates.argmax())
    assert rates.max() == pytest.approx(base) and rates[-1] == pytest.approx(0, abs=base * 1e-9)
    assert (np.diff(rates[: top + 1]) > 0).all() and (np.diff(rates[top:]) <= 0).all() and top <= 1 + steps / 20


def test_the_loss_counts_overlap():
    torch.manual_seed(0)
    logits, masks = torch.randn(3, 1, 5, 5), (torch.rand(3, 1, 5, 5) < 0.4).float()
    found = torch.sigmoid(logits).numpy()
    ious = [(f * m).sum() / (f + m - f * m).sum() for f, m in zip(found, masks.numpy(), strict=True)]
    expected = F.binary_cross_entropy_with_logits(logits, masks).item() + 1 - np.mean(ious)
    assert overlap_loss(logits, masks).item() == pytest.approx(expected, rel=1e-5)
    assert overlap_loss(40 * (2 * masks - 1), masks).item() == pytest.approx(0, abs=1e-5)
    assert overlap_loss(torch.full((1, 1, 5, 5), -40.0), torch.zeros(1, 1, 5, 5)).isfinite()


def test_the_mean_is_of_weights_and_statistics():
    network = torch.nn.BatchNorm2d(2)
    mean, steps = mean_of(network, 100), 4
    decay, expected = 1 - 1 / (WINDOW * 100), None
    for step in range(steps):
        with torch.no_grad():
            network.weight.fill_(step)
            network.running_mean.fill_(2 * step)
        mean.update_parameters(network)
        expected = float(step) if expected is None else decay * expected + (1 - decay) * step
    assert mean.module.weight.tolist() == pytest.approx([expected] * 2)
    assert mean.module.running_mean.tolist() == pytest.approx([2 * expected] * 2)


def test_a_teacher_is_half_of_the_target():
    masks = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
    targets = taught(lambda images: torch.full((2, 1, 1, 1), 40.0), torch.zeros(2, 3, 1, 1), masks)
    assert targets.flatten().tolist() == pytest.approx([TEACHING, 1])


def test_the_stronger_augmentation(pixels):
    """Masks go with their images; of a crop only contrast and brightness change, and parts make up the whole."""
    stream = Stream(pixels, 32, 4, seed=0, augmentation="stronger")
    slopes = []
    for step in range(20):
        images, targets = stream.batch(step)
        plain, masks = pixels.cut(stream.choices(step)[0], 32, *stream.choices(step)[1:])
        assert torch.equal(targets, masks)
        for image, before in zip(images, plain, strict=True):
            slope, shift = np.polyfit(before.flatten().numpy(), image.flatten().numpy(), 1)
            torch.testing.assert_close(image, before * float(slope) + float(shift), atol=1e-4, rtol=1e-4)
            slopes.append(slope)
        halves = [Stream(pixels, 32, 4, 0, "stronger", (part, 2)).batch(step)[0] for part in (0, 1)]
        assert torch.equal(torch.cat(halves), images)
    assert 1 - CONTRAST <= min(slopes) < 0.8 and 1.2 < max(slopes) <= 1 + CONTRAST
    crops = np.concatenate([stream.choices(step)[1] for step in range(200)])
    shares = crops / np.repeat(pixels.sides[np.concatenate([stream.choices(step)[0] for step in range(200)])], 2, 1)
    assert shares.min() == 0 and 0.19 < shares.max() < 0.2


def trained(pixels, way, checkpoint=None, deadline=math.inf):
    seed_everything(0)
    model, teacher = sodlib.csnet(), torch.nn.Conv2d(3, 1, 1)
    recipe = Recipe(epochs=2, size=32, batch=4, learning_rate=3e-3, beyond=WAYS[way])
    teacher = teacher if WAYS[way].distilled else None
    train(model, pixels, pixels, recipe, teacher=teacher, checkpoint=checkpoint, deadline=deadline)
    return model.state_dict()


def test_a_distilled_training_needs_its_teacher(pixels):
    recipe = Recipe(epochs=1, size=32, batch=4, beyond=WAYS["distilled"])
    with pytest.raises(sodlib.SodlibError, match="needs a teacher"):
        train(sodlib.csnet(), pixels, pixels, recipe)


def test_every_way_ends_elsewhere_and_all_together_go_on_bit_for_bit(pixels, tmp_path, monkeypatch):
    monkeypatch.setattr("sodlib.beyond.WINDOW", 0.75)  # of four steps, more than one
    ends = {way: trained(pixels, way) for way in WAYS}
    name = "stage0.0.conv1x1.bns.0.weight"
    assert name in ends[""] and len({ends[way][name].numpy().tobytes() for way in WAYS}) == len(WAYS)
    checkpoint, again = Checkpoint(tmp_path / "run.pt"), None
    while again is None:
        try:
            again = trained(pixels, "together", checkpoint, time.monotonic())
        except Paused:
            continue
    assert all(torch.equal(again[key], value) for key, value in ends["together"].items())


def test_what_is_declared():
    assert TEACHER in IMAGENET and BEYOND[""] == Run()
    for name, run in BEYOND.items():
        assert run.parent == (TEACHER if WAYS[name].distilled else run)
    assert {entry.run for entry in STUDY if BEYOND_THE_PAPER in entry.feeds and entry.run.seed == 0} == {
        *BEYOND.values(),
        TEACHER,
        CENTRE,
    }
    with pytest.raises(sodlib.SodlibError, match="unknown way of training 'better'"):
        _ = Run(beyond="better").parent
