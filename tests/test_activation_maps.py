"""Where a classifier looks: the maps against their formulas, and how well they find an object."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sodlib import runs, study
from sodlib.activation_maps import activation_maps, localisation
from sodlib.channels import plan_channels
from sodlib.classifier import Classifier
from sodlib.description import Run
from sodlib.errors import SodlibError
from sodlib.pruning import recalibrate
from sodlib.study_commands import show

CLASSES = [3, 0, 9]


@pytest.fixture
def images():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def classifier(images):
    torch.manual_seed(0)
    classifier = Classifier(plan_channels(stages="1-4"), 10)
    recalibrate(classifier, [images])
    # The package adds 1e-7 to every maximum, which gradients of a random network are not far from.
    classifier.cls_layer.weight.data *= 1000
    return classifier.eval()


def stretched(maps):
    """What is positive, from 0 to 1."""
    maps = maps.detach().relu()
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / maps.amax((1, 2), keepdim=True)


def enlarged(maps):
    return F.interpolate(maps[:, None], (64, 64), mode="bilinear")[:, 0]


def test_a_cam_is_the_features_weighted_by_the_linear_layer(classifier, images):
    weights = classifier.cls_layer.weight[CLASSES]
    expected = torch.einsum("nchw,nc->nhw", classifier.features(images)[0], weights)
    assert expected.shape == (3, 8, 8)
    expected = stretched(enlarged(stretched(expected))).numpy()
    assert np.allclose(activation_maps(classifier, images, CLASSES, batch=2), expected, atol=1e-4)


def test_a_grad_cam_weights_features_by_their_mean_gradients(classifier, images):
    seen = {}
    for scale, unit in classifier.oct_fuse.ms.convs.items():
        unit.prelu.register_forward_hook(lambda *parts, scale=scale: seen.update({scale: parts[2]}))
    logits = classifier(images)
    gradients = torch.autograd.grad(logits[range(3), CLASSES].sum(), list(seen.values()))
    maps = [(x * grad.mean((2, 3), keepdim=True)).sum(1) for x, grad in zip(seen.values(), gradients, strict=True)]
    assert [len(one[0]) for one in maps] == [64, 32, 16, 8]
    expected = stretched(torch.stack([enlarged(stretched(one)) for one in maps]).mean(0)).numpy()
    assert np.allclose(activation_maps(classifier, images, CLASSES, "grad-cam"), expected, atol=1e-4)


def test_how_well_a_map_finds_an_object():
    objects = np.zeros((3, 4, 4), bool)
    objects[:, 2:, 2:] = True
    maps = np.zeros((3, 4, 4), np.float32)
    maps[0, 2, 2], maps[0, 0, 0] = 0.75, 0.25
    maps[1] = 1 - np.eye(4)[3]
    found = localisation(maps, objects)
    assert found["energy"].tolist() == pytest.approx([0.75, 2 / 12, 0])
    assert found["pointing"].tolist() == [True, False, False]
    assert found["area"].tolist() == [0.25] * 3 and found["centre"].all()
    # Pairs of a pixel of the object and one of the background, ties half: 28.5 and 16 of 48 for the object.
    assert found["separation"].tolist() == pytest.approx([2 * 28.5 / 48 - 1, 1 - 2 * 16 / 48, 0])


def test_without_an_object_or_a_background_nothing_is_told_apart():
    objects = np.stack([np.zeros((4, 4), bool), np.ones((4, 4), bool)])
    assert localisation(np.eye(4, dtype=np.float32)[None].repeat(2, 0), objects)["separation"].tolist() == [0, 0]


def test_mistakes_get_a_sentence(classifier, images):
    with pytest.raises(SodlibError, match="unknown kind of activation map 'saliency'"):
        activation_maps(classifier, images, CLASSES, "saliency")


def test_a_look_becomes_a_record(tmp_path, capsys):
    run = replace(study.RANDOM_FEATURES, activation_map="grad-cam")
    record = runs.obtain(run, "smoke", runs.Surroundings(tmp_path))
    ((name, scores),) = record.data["scores"].items()
    numbers = scores["grad-cam"]
    assert numbers["images"] == len(record.arrays[f"energy/{name}"]) == record.data["images"][name]
    assert 0 <= numbers["energy"] <= 1 and 0 < numbers["area"] < 1 and numbers["empty"] <= numbers["images"]
    # Nothing is trained: the network is its parent's.
    assert not record.has_weights and record.data["history"] == []
    assert (tmp_path / run.parent.key("smoke") / "weights.safetensors").exists()
    assert Run.described(record.data["run"]) == run
    show(record)
    assert f"{numbers['energy']:.3f} of the map's energy" in capsys.readouterr().out
