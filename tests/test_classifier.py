"""CSNet as a classifier: the saliency network's weights, and what of them is tuned."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import sodlib
from sodlib import runs, study
from sodlib.channels import plan_channels
from sodlib.checkpoints import load, save
from sodlib.classifier import PENALTIES, TUNED, Classifier, class_logits, fit_probe
from sodlib.cost import count_macs, macc_by_part
from sodlib.description import Classification, Run
from sodlib.engine import Engine
from sodlib.errors import SodlibError
from sodlib.pruning import keep, prune, recalibrate

PLAN = plan_channels(stages="1-4")


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def network(images):
    torch.manual_seed(0)
    network = sodlib.csnet(stages="1-4")
    recalibrate(network, [images])
    return network


@pytest.fixture
def classifier(network):
    classifier = Classifier(PLAN, 10)
    classifier.take_features_of(network)
    return classifier.eval()


@torch.no_grad()
def test_it_pools_what_the_saliency_network_upsamples(network, classifier, images):
    ends, scales = [], [images]
    for stage in range(5):
        scales = getattr(network, f"stage{stage}")(scales)
        ends += scales[:1] if stage else []
    scales = network.oct_fuse.ms(network.oct_fuse.fuse(ends))
    pooled = torch.cat([F.max_pool2d(x, 2 ** (3 - j)) for j, x in enumerate(scales)], 1)
    merge = network.oct_fuse.fuse1x1
    features = merge.prelus["0"](merge.bns["0"](F.conv2d(pooled, merge.conv.weight)))
    expected = features.mean((2, 3)) @ classifier.cls_layer.weight.T + classifier.cls_layer.bias
    assert torch.allclose(classifier(images), expected, atol=1e-4 * expected.abs().max())


def test_what_is_tuned_next_is_not_held(classifier):
    classifier.tune("linear")
    assert not next(classifier.stage1.parameters()).requires_grad
    classifier.tune("all")
    assert all(parameter.requires_grad for parameter in classifier.parameters())


@pytest.mark.parametrize("tuned", TUNED)
def test_only_the_named_part_is_tuned(classifier, images, tuned):
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    classifier.tune(tuned)
    with Engine(classifier, "dynamic", 5e-3, 3.0) as engine:
        losses = [engine.step(images, torch.arange(4), 1e-4) for _ in range(4)]
        assert losses[-1] < losses[0]
        engine.restore(engine.state())
    moved = {name.partition(".")[0] for name, value in classifier.state_dict().items() if (value != before[name]).any()}
    everything = {name.partition(".")[0] for name in before}
    parts = {"linear": set(), "stage1": {"stage0", "stage1"}, "fusion": {"oct_fuse"}, "all": everything}
    assert moved == parts.get(tuned, {tuned}) | {"cls_layer"}


def test_a_probe_is_at_its_optimum(classifier):
    random = torch.Generator().manual_seed(0)
    images, classes = torch.randn(40, 3, 32, 32, generator=random), torch.arange(40) % 10
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    assert fit_probe(classifier, (images, classes), (images, classes)) == min(PENALTIES)
    changed = {name for name, value in classifier.state_dict().items() if (value != before[name]).any()}
    assert changed == {"cls_layer.weight", "cls_layer.bias"}
    # 40 images in as many dimensions and more can be told apart; a second fit finds the same layer.
    assert (class_logits(classifier, images).argmax(1) == classes).float().mean() > 0.95
    first = classifier.cls_layer.weight.detach().clone()
    fit_probe(classifier, (images, classes), (images, classes))
    assert torch.allclose(classifier.cls_layer.weight, first, rtol=1e-2, atol=1e-3 * float(first.abs().max()))


def test_a_classifier_can_be_pruned_and_kept(classifier, images, tmp_path):
    smaller = prune(classifier, keep(classifier, "l1", share=0.5))
    recalibrate(smaller, [images])
    save(smaller, tmp_path / "smaller.safetensors")
    again = load(tmp_path / "smaller.safetensors")
    with torch.no_grad():
        assert smaller(images).shape == (4, 10) and torch.equal(again(images), smaller(images))


def test_its_cost_is_counted_where_it_works():
    # A plan of which the paper's counter, which cuts where it should round, loses no channel.
    plan = plan_channels(stages="2-4")
    counted, terms = count_macs(Classifier(plan, 10)), macc_by_part(plan, 224, classes=10)
    assert sum(part["convolution"] for part in terms.values()) == counted["conv"] + 10
    assert counted["paper"] < count_macs(sodlib.csnet())["paper"]


def test_mistakes_get_a_sentence(network):
    with pytest.raises(SodlibError, match="needs the fusion of several stages"):
        Classifier(plan_channels("extractor"), 10)
    with pytest.raises(SodlibError, match="unknown part 'stage9'"):
        Classifier(PLAN, 10).tune("stage9")
    with pytest.raises(SodlibError, match="another channel plan"):
        Classifier(plan_channels(), 10).take_features_of(network)


@pytest.mark.parametrize(("start", "tuned"), [("saliency", "fusion"), ("random", "linear"), ("random", "probe")])
def test_a_classification_becomes_a_record(tmp_path, start, tuned):
    run = Run(stages="3-4", images="without-fruit", classification=Classification(start, tuned))
    record = runs.obtain(run, "smoke", runs.Surroundings(tmp_path))
    assert Run.described(record.data["run"]) == run
    ((name, scores),) = record.data["scores"].items()
    logits, classes = record.arrays[f"logits/{name}"], record.arrays[f"classes/{name}"]
    assert name == "cutouts/test/classes" and scores["top1"]["right"] == int((logits.argmax(1) == classes).sum())
    assert np.isfinite(logits).all() and "validation_accuracy" in record.data["history"][-1]
    assert isinstance(record.model(), Classifier)
    # The saliency network that it starts from is a record of its own, trained without the category.
    parents = [folder.name for folder in tmp_path.iterdir() if folder.name == run.parent.key("smoke")]
    assert bool(parents) == (start == "saliency") or run.parent == run


def test_what_a_run_starts_from():
    transfer = study.TRANSFERS["fusion"]
    assert transfer.parent == study.ALL_STAGES and transfer.has_parent and not study.RANDOM.has_parent
    pruned = replace(study.RANDOM, pruning=study.REDUNDANT)
    assert pruned.parent == study.RANDOM
    assert study.WITHOUT["food"].key("brief").startswith("csnet-x1-5-5_dynamic_without-food_brief_s0_")
