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
    return classifier.eval()


def stretched(maps):
    """Cut off what is negative, upsample to the input's size, stretch each map to 0..1."""
    maps = maps.detach().relu()
    maps = F.interpolate((maps - maps.amin((1, 2), keepdim=True))[:, None], (64, 64), mode="bilinear")[:, 0]
    maps = maps - maps.amin((1, 2), keepdim=True)
    return (maps / maps.amax((1, 2), keepdim=True)).numpy()


def test_a_cam_is_the_features_weighted_by_the_linear_layer(classifier, images):
    weights = classifier.cls_layer.weight[CLASSES]
    expected = torch.einsum("nchw,nc->nhw", classifier.features(images)[0], weights)
    assert expected.shape == (3, 8, 8)
    assert np.allclose(activation_maps(classifier, images, CLASSES, batch=2), stretched(expected), atol=1e-4)


def test_a_grad_cam_weights_the_finest_features_by_their_mean_gradients(classifier, images):
    seen = []
    hook = classifier.oct_fuse.ms.convs["0"].prelu.register_forward_hook(lambda *parts: seen.append(parts[2]))
    logits = classifier(images)
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[range(3), CLASSES].sum(), seen)
    expected = (seen[0] * gradient.mean((2, 3), keepdim=True)).sum(1)
    assert expected.shape == (3, 64, 64)
    assert np.allclose(activation_maps(classifier, images, CLASSES, "grad-cam"), stretched(expected), atol=1e-4)


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
    assert study.Run.described(record.data["run"]) == run
    show(record)
    assert f"{numbers['energy']:.3f} of the map's energy" in capsys.readouterr().out
