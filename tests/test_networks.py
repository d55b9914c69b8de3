"""Networks beside those of a channel plan, as runs of the study."""

from dataclasses import replace

import pytest
import torch

from sodlib import networks, runs
from sodlib.backbones import BACKBONES
from sodlib.baselines import BASELINES
from sodlib.checkpoints import load, save
from sodlib.description import Run
from sodlib.engine import SPEEDS, Engine
from sodlib.errors import SodlibError
from sodlib.jobs import units
from sodlib.presets import PRESETS


def test_the_names_are_those_of_the_packages():
    assert set(networks.NAMES) == {f"csf-{name}" for name in BACKBONES} | set(BASELINES)


@pytest.mark.parametrize("name", ["enet", "csf-efficientnet-lite0"])
def test_a_network_is_kept(name, tmp_path):
    torch.manual_seed(0)
    network = networks.build(name, 64).eval()
    save(network, tmp_path / "network.safetensors")
    again, images = load(tmp_path / "network.safetensors"), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert again.input_size == 64 and torch.equal(again(images), network(images))


@pytest.mark.parametrize("name", ["enet", "csf-efficientnet-lite0"])
def test_the_fast_step_is_the_plain_one(name):
    """What the engine puts in the place of CSNet's parts fits those that the other networks share."""
    images, masks = torch.randn(2, 3, 64, 64), torch.rand(2, 1, 64, 64).round()
    losses = []
    for speed in SPEEDS:
        torch.manual_seed(0)
        with Engine(networks.build(name, 64), "standard", 5e-4, 0.0, speed) as engine:
            torch.manual_seed(1)  # ENet drops features out
            losses.append([engine.step(images, masks, 1e-4) for _ in range(2)])
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)


def test_a_network_becomes_a_record(tmp_path):
    run = Run(network="enet", decay="standard", decay_weight=5e-4, learning_rate=1e-3)
    assert run.key("smoke").startswith("enet_standard-0.0005_rate-0.001_smoke_s0_")
    record = runs.obtain(run, "smoke", runs.Surroundings(tmp_path))
    assert record.data["history"][0]["learning_rate"] == 1e-3 and record.data["plan"] is None
    assert record.data["parameters"] == 355_468 and record.data["macs"]["conv"] == 361_906_944
    assert Run.described(record.data["run"]) == run and record.model().name == "enet"
    smoke, large = PRESETS["smoke"], replace(run, network="csf-resnet50")
    assert units(large, smoke) > 10 * units(run, smoke) > 0
    assert replace(large, pretrained=True).key("smoke").startswith("csf-resnet50-imagenet_standard")


def test_mistakes_get_a_sentence(tmp_path):
    with pytest.raises(SodlibError, match="unknown network 'vgg'"):
        networks.build("vgg")
    with pytest.raises(SodlibError, match="no ImageNet weights for enet"):
        networks.build("enet", pretrained=True)
    with pytest.raises(SodlibError, match="enet has no ILBlocks for dynamic decay"):
        runs.obtain(Run(network="enet"), "smoke", runs.Surroundings(tmp_path))
