"""The network against the released one, its published counts, and a transcription of the specification."""

import itertools
import json

import numpy as np
import pytest
import torch
from conftest import tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import sodlib
from sodlib.channels import FUSED_STAGES, SPLITS, ChannelPlan, plan_channels
from sodlib.cost import paper_macc
from sodlib.csnet import CSNet
from sodlib.octconv import GOctConv

TOLERANCE = 1e-4
GOLDEN_NAMES = {"1.0": 1, "1.2": 1.2, "1.5": 1.5, "1.8": 1.8, "2.0": 2}


def largest_difference(model, images, expected):
    with torch.inference_mode():
        return np.abs(model(torch.from_numpy(images)).numpy() - expected).max()


@pytest.mark.parametrize("name", ["photo", "random", "rect"])
def test_released_logits(golden, released, name):
    archive = np.load(golden / "csnet-L-x2.npz")
    assert largest_difference(released, archive[f"x/{name}"], archive[f"y/{name}/logits"]) <= TOLERANCE


@pytest.mark.parametrize("split, file", [("1/0", "1-0_onebranch"), ("3/1", "3-1"), ("5/5", "5-5"), ("0/1", "0-1")])
def test_unpruned_logits(golden, split, file):
    archive = np.load(golden / f"unpruned_x1_{file}.npz")
    model = sodlib.load_released(tensors(archive), plan_channels(split=split).to_json())
    assert largest_difference(model, archive["x"], archive["y/logits"]) <= TOLERANCE


def test_plans_equal_the_released_ones(golden_channels):
    for name, width in GOLDEN_NAMES.items():
        assert ChannelPlan.from_json(golden_channels[f"x{name}"]) == plan_channels(width=width)
    assert ChannelPlan.from_json(golden_channels["x1 1/0_onebranch"]) == plan_channels(split="1/0")
    for split in SPLITS[1:]:
        assert ChannelPlan.from_json(golden_channels[f"x1 {split}"]) == plan_channels(split=split)


def test_counts_of_every_published_network(golden, golden_channels):
    counts = json.loads((golden / "counts.json").read_text())
    plans = {f"x{name}": plan_channels(width=width) for name, width in GOLDEN_NAMES.items() if width > 1}
    plans |= {f"x1 {split}": plan_channels(split=split) for split in SPLITS[1:]}
    plans |= {name: ChannelPlan.from_json(golden / f"{name}.channels.json") for name in ("csnet-L-x1", "csnet-L-x2")}
    plans["x1 1/0 [1]"] = plan_channels(split="1/0")
    plans["x1 1/0 [1,0]"] = ChannelPlan.from_json(golden_channels["x1 1/0_twobranch"])
    plans["extractor 1/0 [1.0,0.0] only_stage4_end_merged"] = plan_channels("extractor", split="1/0")
    for split in SPLITS[1:]:
        plans[f"extractor {split} only_stage4_end_merged"] = plan_channels("extractor", split=split)
    plans["vanilla 5/5 ends_of_2_3_4_merged"] = plan_channels("vanilla")
    assert len(plans) == 18
    for name, plan in plans.items():
        model, expected = CSNet(plan), counts[name]
        assert sodlib.count_parameters(model) == expected["params"], name
        assert sodlib.count_macs(model) == {"conv": expected["conv_macs"], "paper": expected["official_tool"]}, name


@pytest.mark.parametrize(
    "width, thousands, macc", [(1, 211, 0.61), (1.2, 298, 0.82), (1.5, 455, 1.17), (1.8, 645, 1.58), (2, 788, 1.87)]
)
def test_counts_of_the_paper(width, thousands, macc):
    model = sodlib.csnet(width)
    assert int(sodlib.count_parameters(model) / 1000 + (0.5 if width == 1 else 0)) == thousands
    assert round(paper_macc(model.plan) / 1e9, 2) == macc


def by_specification(layer, scales):
    """The gOctConv pair by pair, as section 3.1 of the paper says it."""
    if layer.stride == 2:
        scales = [F.avg_pool2d(x, 2) if x is not None else None for x in scales]
    first_rows, first_columns = np.cumsum([0, *layer.outputs]), np.cumsum([0, *layer.inputs])
    result = []
    for j, count in enumerate(layer.outputs):
        terms = []
        for i, x in enumerate(scales):
            if x is None or not count:
                continue
            weight = layer.weight[first_rows[j] : first_rows[j + 1], first_columns[i] : first_columns[i + 1]]
            x = F.max_pool2d(x, 2 ** (j - i)) if i < j else x
            y = F.conv2d(x, weight, padding=layer.kernel_size // 2)
            terms.append(F.interpolate(y, scale_factor=2.0 ** (i - j), mode="bilinear") if i > j else y)
        result.append(sum(terms) if terms else None)
    return result


channel_counts = st.lists(st.integers(0, 3), min_size=1, max_size=3).filter(any)


@given(channel_counts, channel_counts, st.sampled_from([1, 3]), st.sampled_from([1, 2]))
@settings(max_examples=60, deadline=None)
def test_goctconv_is_the_sum_over_scale_pairs(inputs, outputs, kernel_size, stride):
    layer = GOctConv(tuple(inputs), tuple(outputs), kernel_size, stride)
    scales = [torch.randn(2, c, 16 >> i, 24 >> i) if c else None for i, c in enumerate(inputs)]
    with torch.no_grad():
        ours, expected = layer(scales), by_specification(layer, scales)
    for ours_j, expected_j in zip(ours, expected, strict=True):
        assert (ours_j is None) == (expected_j is None)
        if ours_j is not None:
            torch.testing.assert_close(ours_j, expected_j, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 70), st.integers(1, 70))
@settings(max_examples=15, deadline=None)
def test_any_size_works(height, width):
    model = sodlib.csnet().eval()
    with torch.inference_mode():
        assert model(torch.randn(1, 3, height, width)).shape == (1, 1, height, width)


def test_padding_repeats_the_border(released):
    images = torch.randn(1, 3, 30, 45)
    padded = images[:, :, torch.arange(32).clamp(max=29)][..., torch.arange(48).clamp(max=44)]
    with torch.inference_mode():
        assert torch.equal(released(images), released(padded)[..., :30, :45])


@pytest.mark.parametrize("build", [sodlib.csnet, sodlib.extractor, sodlib.vanilla])
def test_every_split_trains(build):
    for split in SPLITS:
        model = build(split=split)
        model(torch.randn(2, 3, 32, 32)).mean().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_fusion_takes_the_named_stages():
    for stages, numbers in FUSED_STAGES.items():
        model = sodlib.csnet(stages=stages)
        assert model.plan.fused_stages == numbers
        assert model(torch.randn(1, 3, 48, 32)).shape == (1, 1, 48, 32)


@given(st.sampled_from(["csnet", "extractor", "vanilla"]), st.floats(1, 3), st.sampled_from(SPLITS))
@settings(max_examples=30, deadline=None)
def test_plans_survive_json(network, width, split):
    plan = plan_channels(network, width, split)
    assert ChannelPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda: sodlib.csnet(split="2/2"), "2/2"),
        (lambda: sodlib.csnet(stages="1-3"), "1-3"),
        (lambda: sodlib.csnet(width=0.5), "0.5"),
        (lambda: sodlib.csnet(width=float("nan")), "nan"),
        (lambda: plan_channels("unet"), "unet"),
        (lambda: sodlib.count_macs(sodlib.csnet(), 0), "0 x 0"),
        (lambda: sodlib.csnet()(torch.zeros(1, 4, 32, 32)), "4, 32, 32"),
        (lambda: sodlib.csnet()(torch.zeros(1, 3, 0, 32)), "0, 32"),
    ],
)
def test_bad_input_gets_a_sentence(call, word):
    with pytest.raises(sodlib.SodlibError, match=word):
        call()


def test_a_plan_with_a_layer_too_many_or_too_few_is_refused():
    for change in (lambda layers: layers.append({"layer": "stage9", "in": [1], "out": [1]}),
                   lambda layers: layers.pop(-3)):  # fmt: skip
        data = sodlib.csnet().plan.to_json()
        change(data["layers"])
        with pytest.raises(sodlib.SodlibError, match="channel plan"):
            ChannelPlan.from_json(data)


def test_a_plan_whose_layers_do_not_follow_is_refused():
    plan = plan_channels().to_json()
    plan["layers"][3]["in"] = [7, 7]
    with pytest.raises(sodlib.SodlibError, match=r"stage1\.2"):
        ChannelPlan.from_json(plan)
    whole = plan_channels().to_json()
    for name, change in (("foo", {"network": "foo"}), ("5, some of 0", {})):
        data = json.loads(json.dumps(whole)) | change
        next(layer for layer in data["layers"] if layer["layer"] == "oct_fuse.ms")["dilated_out"][0].append(0)
        with pytest.raises(sodlib.SodlibError, match=f"channel plan: .*{name}"):
            ChannelPlan.from_json(data)
    for nonsense in ({}, {"layers": 3}, {"stages": [3, 4, 6, 4], "layers": [{"layer": "x"}]}):
        with pytest.raises(sodlib.SodlibError, match="channel plan"):
            ChannelPlan.from_json(nonsense)


def test_state_dict_names_are_the_released_ones(golden, released):
    names = set(tensors(np.load(golden / "csnet-L-x2.npz")))
    assert set(released.state_dict()) == names and len(names) == 737
    assert len(list(itertools.chain(released.parameters()))) == 419
