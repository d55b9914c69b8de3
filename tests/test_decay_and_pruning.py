"""Dynamic weight decay and pruning against the released network's own numbers."""

import copy
import json

import numpy as np
import pytest
import torch
from conftest import tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import sodlib
from sodlib import paper
from sodlib.channels import ChannelPlan
from sodlib.decay import DynamicWeightDecay, gammas, parameter_groups
from sodlib.pruning import CRITERIA, keep, keep_above, keep_share, prune, recalibrate, scores


def test_a_threshold_below_the_smallest_float32_still_prunes():
    """1e-40 is what the release takes where nothing is asked for."""
    model = sodlib.csnet()
    for name, weight in model.named_parameters():
        if name.startswith("stage1.1.conv1x1.bns"):
            torch.nn.init.zeros_(weight[3:])
    sizes = {value: sodlib.count_parameters(prune(model, keep_above(scores(model), value))) for value in (1e-40, 1e-20)}
    assert sizes[1e-40] == sizes[1e-20] < sodlib.count_parameters(model)


def test_training_step_of_the_released_network(golden, released):
    step = np.load(golden / "train_step_L-x2.npz")
    model = released.train()
    with DynamicWeightDecay(model, weight=1.0) as decay:
        logits = model(torch.from_numpy(step["x"]))
        loss = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(step["target"]))
        loss.backward()
        np.testing.assert_allclose(logits.detach().numpy(), step["train_logits"], atol=1e-4)
        np.testing.assert_allclose(loss.item(), step["bce"], rtol=1e-5)
        np.testing.assert_allclose(decay.penalty().item(), step["dwd_term"], rtol=1e-5)
        gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        for name, gradient in gradients.items():
            expected = step[f"grad_bce/{name}"]
            np.testing.assert_allclose(gradient, expected, atol=1e-3 * np.abs(expected).max() + 1e-7, err_msg=name)
        decay.add_gradients()
    assert len(decay.gammas) == 99
    for name, parameter in model.named_parameters():
        expected = step[f"grad_dwd/{name}"] if name in decay.gammas else np.zeros(1)
        np.testing.assert_allclose(
            (parameter.grad - gradients[name]).numpy(), expected + 0 * parameter.grad.numpy(), atol=1e-6
        )
    for name in (name for name in step if name.startswith("buf_after/")):
        buffer = dict(model.named_buffers())[name.removeprefix("buf_after/")]
        np.testing.assert_allclose(buffer.numpy(), step[name], atol=1e-5)


def test_written_decay_is_signed_and_decoupled():
    torch.manual_seed(0)
    model = sodlib.csnet().train()
    before = {name: gamma.detach().clone() for name, gamma in gammas(model).items()}
    with DynamicWeightDecay(model, "dynamic-written", weight=2.0) as decay:
        features = {}
        model.stage0[0].conv1x1.register_forward_hook(lambda *arguments: features.update(x=arguments[2][0].detach()))
        model(torch.randn(3, 3, 32, 32))
        decay.shrink(learning_rate=0.1)
    name = "stage0.0.conv1x1.bns.0.weight"
    expected = before[name] * (1 - 0.1 * 2.0 * features["x"].mean((0, 2, 3)))
    torch.testing.assert_close(decay.gammas[name].detach(), expected)


def test_what_each_decay_exempts():
    model = sodlib.csnet()
    count = len(list(model.parameters()))
    for decay, exempt in (("standard", 0), ("dynamic", 66), ("dynamic-throughout", 99), ("dynamic-written", 99)):
        groups = parameter_groups(model, decay, 0.1)
        assert [group["weight_decay"] for group in groups] == ([0.1, 0.0] if exempt else [0.1])
        assert [len(group["params"]) for group in groups] == ([count - exempt, exempt] if exempt else [count])
    with pytest.raises(sodlib.SodlibError, match="unknown decay 'l1'"):
        parameter_groups(model, "l1")
    with pytest.raises(sodlib.SodlibError, match="standard"):
        DynamicWeightDecay(model, "standard")


def test_decay_leaves_no_hook_behind():
    model = sodlib.csnet()
    with DynamicWeightDecay(model):
        pass
    assert not any(module._forward_hooks for module in model.modules())


def test_thresholds_of_table_10(golden, released):
    expected = json.loads((golden / "prune_L-x2_thresholds.json").read_text())
    assert len(expected) == 10
    for threshold, entry in expected.items():
        smaller = prune(released, keep_above(scores(released), float(threshold)))
        assert smaller.plan == ChannelPlan.from_json(entry["config"]), threshold
        assert sodlib.count_parameters(smaller) == entry["params"]
    counted = {float(row.threshold): row.parameters for row in paper.released_counts().itertuples()}
    assert counted == {float(threshold): entry["params"] for threshold, entry in expected.items()}


def test_transferred_weights(golden, released):
    archive = np.load(golden / "prune_L-x2_thr5e-3.npz")
    smaller = prune(released, keep_above(scores(released), 5e-3))
    expected, ours = tensors(archive), smaller.state_dict()
    assert expected.keys() == ours.keys()
    for name, tensor in ours.items():
        assert np.array_equal(tensor.numpy(), expected[name]), name
    with torch.no_grad():
        logits = smaller.train()(torch.from_numpy(archive["x"]))
    np.testing.assert_allclose(logits.numpy(), archive["train_logits_photo_and_flip"], atol=1e-4)


@given(
    st.sampled_from([sodlib.csnet, sodlib.extractor, sodlib.vanilla]),
    st.sampled_from(["5/5", "3/1", "1/0", "0/1"]),
    st.sampled_from(CRITERIA),
    st.floats(0.05, 1),
)
@settings(max_examples=15, deadline=None)
def test_any_network_can_be_pruned_by_any_criterion(build, split, criterion, share):
    model = build(split=split)
    smaller = prune(model, keep_share(scores(model, criterion), share))
    assert sodlib.count_parameters(smaller) <= sodlib.count_parameters(model)
    smaller.train()(torch.randn(1, 3, 32, 32)).sum().backward()
    if share == 1:
        assert smaller.plan == model.plan


def test_pruning_zero_channels_changes_nothing():
    """A channel whose gamma and shift are zero puts out zeros: without it the network computes the same."""
    torch.manual_seed(0)
    model = sodlib.csnet()
    with torch.no_grad():
        for unit in (model.stage1[1], model.stage3[2]):
            for norm in (unit.conv1x1.bns["0"], unit.conv3x3_1.bns["0"], unit.conv3x3_2.bns["0"]):
                norm.weight[::2], norm.bias[::2] = 0, 0
    smaller = prune(model, keep_above(scores(model), 1e-20))
    assert sodlib.count_parameters(smaller) < sodlib.count_parameters(model)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(smaller.train()(images), model.train()(images), atol=1e-4, rtol=1e-4)


def test_a_scale_may_vanish_but_a_layer_keeps_its_best_channel():
    model = sodlib.csnet()
    with torch.no_grad():
        model.stage2[0].conv1x1.bns["1"].weight.zero_()
        model.oct_fuse.fuse.bns["0"].weight.zero_()
    smaller = prune(model, keep_above(scores(model), 1e-20))
    assert smaller.plan.blocks[4][1] == 0 and smaller.plan.fusion.dilated[0] == (0, 0, 0, 0, 0)
    smaller.train()(torch.randn(1, 3, 32, 32))
    with torch.no_grad():
        model.stage2[0].conv1x1.bns["0"].weight.zero_()[5] = 1e-30
    smaller = prune(model, keep_above(scores(model), 1e-20))
    assert smaller.plan.blocks[4] == (1, 0)
    assert smaller.stage2[0].conv1x1.bns["0"].weight.item() == pytest.approx(1e-30)
    nothing = keep_share(scores(model), 0.5).map(torch.zeros_like)
    with pytest.raises(sodlib.SodlibError, match=r"no channel in stage0\.0"):
        prune(model, nothing)


@given(st.sampled_from([sodlib.csnet, sodlib.extractor]), st.sampled_from(["5/5", "0/1"]), st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_any_threshold_leaves_a_network(build, split, seed):
    torch.manual_seed(seed)
    model = build(split=split)
    channel_scores = scores(model).map(lambda score: torch.rand_like(score) ** 9)
    sizes = []
    for threshold in (0, 1e-6, 1e-3, 0.5, 2):
        smaller = prune(model, keep_above(channel_scores, threshold))
        smaller.train()(torch.randn(1, 3, 32, 32)).sum().backward()
        sizes.append(sodlib.count_parameters(smaller))
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == sodlib.count_parameters(model)


def test_of_equal_channels_one_is_the_best():
    scores_ = scores(sodlib.csnet(), "gamma")
    nothing = scores_.map(torch.zeros_like)
    kept = keep_above(nothing, 1e-20)
    assert all(sum(int(mask.sum()) for mask in block) == 1 for block in kept.blocks)


def test_one_threshold_comes_to_a_size():
    torch.manual_seed(0)
    model = sodlib.csnet()
    with torch.no_grad():
        for gamma in gammas(model).values():
            gamma.uniform_(0, 1)
    for parameters in (150_000, 94_000, 47_000):
        kept = keep(model, parameters=parameters, ranking="network")
        assert sodlib.count_parameters(prune(model, kept)) == pytest.approx(parameters, rel=0.01)
        lowest = min(s[k].min() for s, k in zip(scores(model), kept, strict=True) if len(s) and k.any())
        again = prune(model, keep_above(scores(model), float(lowest)))
        assert again.plan == prune(model, kept).plan


def test_geometric_median_drops_the_filter_that_others_replace():
    model = sodlib.csnet(split="1/0")
    with torch.no_grad():
        weight = model.stage1[0].conv1x1.conv.weight
        weight.normal_()
        weight[7] = weight.mean(0)
    assert scores(model, "geometric-median").blocks[1][0].argmin() == 7


def test_recalibration_moves_statistics_and_no_weight():
    torch.manual_seed(0)
    model = sodlib.csnet()
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    recalibrate(model, [torch.randn(2, 3, 32, 32) for _ in range(3)])
    assert all(torch.equal(old, new) for old, new in zip(weights, model.parameters(), strict=True))
    assert model.stage0[0].conv1x1.bns["0"].num_batches_tracked == 3 and not model.training
    # The first batch replaces the initial mean and variance instead of mixing with them.
    images, unit = torch.randn(2, 3, 32, 32), model.stage0[0].conv1x1
    recalibrate(model, [images])
    with torch.no_grad():
        feature = unit.conv([images])[0]
    torch.testing.assert_close(unit.bns["0"].running_mean, feature.mean((0, 2, 3)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(unit.bns["0"].running_var, feature.var((0, 2, 3)), atol=1e-3, rtol=1e-3)
    assert unit.bns["0"].momentum == 0.1
    before = unit.bns["0"].running_mean.clone()
    with pytest.raises(sodlib.SodlibError, match="at least one batch"):
        recalibrate(model, [])
    assert torch.equal(unit.bns["0"].running_mean, before)
    with pytest.raises(sodlib.SodlibError, match="takes images"):
        recalibrate(model, [torch.randn(2, 4, 32, 32)])
    assert unit.bns["0"].momentum == 0.1 and not model.training


def test_recalibration_on_the_processor_equals_torch():
    """Of double precision the stand-ins leave everything to torch."""
    batches = list(torch.randn(4, 2, 3, 32, 32, generator=torch.manual_seed(0)))
    model = sodlib.csnet()
    exact = copy.deepcopy(model).double()
    parts = model.stage1[0].conv1x1.norm_activation
    recalibrate(model, batches)
    recalibrate(exact, [batch.double() for batch in batches])
    for (name, ours), theirs in zip(model.named_buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), atol=1e-4, rtol=2e-3, msg=name)
    assert model.stage1[0].conv1x1.norm_activation is parts


def test_bad_pruning_gets_a_sentence():
    model = sodlib.csnet()
    with pytest.raises(sodlib.SodlibError, match="unknown criterion 'luck'"):
        scores(model, "luck")
    for share in (0, 1.5, float("nan")):
        with pytest.raises(sodlib.SodlibError, match="share"):
            keep_share(scores(model), share)
