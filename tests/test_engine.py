"""The fast training step against the plain one, and what a resumed training needs of it."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import sodlib
from sodlib import kernels
from sodlib.decay import DECAYS, gammas
from sodlib.engine import Engine
from sodlib.octconv import norm_activation

RATE = 1e-4
needs_compiler = pytest.mark.skipif(kernels.compiled_source() is None, reason="no C compiler")


def network(split="5/5", seed=0):
    """A network whose batch norms are no longer at their start, where many gradients are zero but for rounding."""
    torch.manual_seed(seed)
    model = sodlib.csnet(split=split)
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.5)
    return model


def batch(step, size=32):
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(6, 3, size, size, generator=generator).contiguous(memory_format=torch.channels_last)
    return images, torch.rand(6, 1, size, size, generator=generator)


def trained(model, steps, decay="dynamic", speed="fast", state=None, first=0):
    with Engine(model, decay, 5e-3, 30.0, speed) as engine:
        if state is not None:
            engine.restore(state)
        kind = next(model.parameters()).dtype
        losses = [
            engine.step(*(tensor.to(kind) for tensor in batch(step)), RATE) for step in range(first, first + steps)
        ]
        return torch.stack(losses), engine.state()


def assert_equal_networks(one, other):
    expected = other.state_dict()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def relative(value, expected):
    return float((value - expected).norm() / expected.norm())


@needs_compiler
@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20), st.integers(-30, 30))
@settings(max_examples=40, deadline=None)
def test_compiled_norm_activation(samples, channels, height, width, centre):
    if samples * height * width == 1:
        return
    torch.manual_seed(0)
    norm, activation = nn.BatchNorm2d(channels, momentum=0.3), nn.PReLU(channels)
    for parameter in (norm.weight, norm.bias, activation.weight):
        nn.init.normal_(parameter)
    x = (torch.randn(samples, channels, height, width) + centre).contiguous(memory_format=torch.channels_last)
    gradient = torch.randn_like(x)
    # Where PReLU bends, both of its slopes are right within rounding: no gradient comes from there.
    gradient[copy.deepcopy(norm).double()(x.double()).abs() < 1e-4] = 0
    results = []
    for function, kind in ((kernels.norm_activation_c, torch.float32), (norm_activation, torch.float64)):
        ours = [copy.deepcopy(layer).to(kind) for layer in (norm, activation)]
        inputs = x.detach().to(kind).requires_grad_()
        features = function(inputs, *ours)
        features.backward(gradient.to(kind))
        pooled = features.pooled if function is kernels.norm_activation_c else features.mean((2, 3))
        gradients = [tensor.grad for tensor in (inputs, ours[0].weight, ours[0].bias, ours[1].weight)]
        results.append([features, pooled, ours[0].running_mean, ours[0].running_var, *gradients])
        assert ours[0].num_batches_tracked == 1
    for fast, exact in zip(*results, strict=True):
        torch.testing.assert_close(fast.double(), exact, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("split", ["5/5", "1/0"])
def test_fast_gradients_are_as_exact_as_plain_ones(split):
    images, targets = batch(0)
    gradients = {}
    for speed, kind in (("fast", torch.float32), ("plain", torch.float32), ("plain", torch.float64)):
        model = network(split).to(kind).train()
        with Engine(model, "standard", 0.0, 0.0, speed):
            F.binary_cross_entropy_with_logits(model(images.to(kind)), targets.to(kind)).backward()
        gradients[speed, kind] = torch.cat([parameter.grad.flatten().double() for parameter in model.parameters()])
    exact = gradients["plain", torch.float64]
    fast, plain = (relative(gradients[speed, torch.float32], exact) for speed in ("fast", "plain"))
    assert fast < max(2 * plain, 1e-4)


@pytest.mark.parametrize("decay", DECAYS)
def test_fast_training_equals_the_plain_one(decay):
    """Both go astray from float64, since Adam turns any gradient, however small, into a step; neither goes farther."""
    trainings = {"plain": network(), "fast": network(), "exact": network().double()}
    losses, gammas_ = {}, {}
    for name, model in trainings.items():
        losses[name], _ = trained(model, 3, decay, "fast" if name == "fast" else "plain")
        gammas_[name] = torch.cat([gamma.detach().double() for gamma in gammas(model).values()])
    torch.testing.assert_close(losses["fast"].double(), losses["exact"], rtol=1e-3, atol=0)
    start = torch.cat([gamma.detach().double() for gamma in gammas(network()).values()])
    exact = gammas_["exact"] - start
    fast, plain = (relative(gammas_[name] - start, exact) for name in ("fast", "plain"))
    assert fast < max(1.5 * plain, 1e-2)


@pytest.mark.parametrize("speed", ["plain", "fast"])
def test_repetition_and_resuming_are_exact(speed):
    whole, again, resumed = network(), network(), network()
    losses, _ = trained(whole, 4, speed=speed)
    assert torch.equal(trained(again, 4, speed=speed)[0], losses)
    assert_equal_networks(whole, again)
    file = io.BytesIO()
    first, state = trained(resumed, 2, speed=speed)
    torch.save({"model": resumed.state_dict(), "optimizer": state}, file)
    file.seek(0)
    saved, resumed = torch.load(file, weights_only=True), network(seed=1)
    resumed.load_state_dict(saved["model"])
    second, state = trained(resumed, 2, speed=speed, state=saved["optimizer"], first=2)
    assert torch.equal(torch.cat([first, second]), losses)
    assert_equal_networks(whole, resumed)
    assert all(moments["step"] == 4 for moments in state.values())


def test_the_state_is_a_copy_and_goes_from_one_speed_to_the_other():
    model = network()
    with Engine(model, "dynamic", 5e-3, 3.0) as engine:
        assert engine.state() == {}
        engine.step(*batch(0), RATE)
        state, weights = engine.state(), copy.deepcopy(model.state_dict())
        kept = copy.deepcopy(state)
        loss = engine.step(*batch(1), RATE)
        assert all(torch.equal(state[name][key], kept[name][key]) for name in state for key in state[name])
        model.load_state_dict(weights)
        engine.restore(state)
        assert torch.equal(engine.step(*batch(1), RATE), loss)
    model.load_state_dict(weights)
    losses, _ = trained(model, 1, speed="plain", state=state, first=1)
    torch.testing.assert_close(losses[0], loss, rtol=1e-4, atol=0)


@pytest.mark.parametrize("decay", DECAYS)
def test_a_closed_engine_leaves_an_ordinary_network(decay):
    model, other = network(), network(seed=1)
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    trained(model, 1, decay)
    assert not any(module._forward_hooks for module in model.modules())
    assert attributes == {name: set(vars(module)) for name, module in model.named_modules()}
    other.load_state_dict(model.state_dict())
    images, _ = batch(0)
    with torch.no_grad():
        assert torch.equal(model.train()(images), other.to(memory_format=torch.channels_last).train()(images))


def test_without_a_compiler_torch_does_the_work(monkeypatch):
    monkeypatch.setattr(kernels, "compiled_source", lambda: None)
    assert "norm_activation" not in kernels.stand_ins(torch.device("cpu"))
    plain, fast = (trained(network(), 2, speed=speed)[0] for speed in ("plain", "fast"))
    torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_captured_step_equals_the_plain_one():
    losses = {}
    for speed in ("plain", "fast"):
        model = network().cuda()
        with Engine(model, "dynamic", 5e-3, 3.0, speed) as engine:
            steps = [engine.step(*(tensor.cuda() for tensor in batch(step)), RATE) for step in range(5)]
            losses[speed] = torch.stack(steps).cpu()
            assert all(moments["step"] == 5 for moments in engine.state().values())
            assert model.stage0[0].conv1x1.bns["0"].num_batches_tracked == 5
    torch.testing.assert_close(losses["fast"], losses["plain"], rtol=2e-2, atol=0)


def test_bad_arguments_get_a_sentence():
    with pytest.raises(sodlib.SodlibError, match="'warp'"):
        Engine(sodlib.csnet(), "dynamic", 5e-3, 3.0, "warp")
    with pytest.raises(sodlib.SodlibError, match="'l1'"):
        Engine(sodlib.csnet(), "l1", 5e-3, 3.0)
    _, state = trained(network(), 1)
    with (
        Engine(sodlib.csnet(split="1/0"), "dynamic", 5e-3, 3.0) as engine,
        pytest.raises(sodlib.SodlibError, match="another network"),
    ):
        engine.restore(state)


@needs_compiler
def test_parts_are_replaced_inside_of_another_time():
    """As by a recalibration in the middle of a training."""
    model = sodlib.csnet()
    unit = model.stage0[0].conv1x1
    plain = unit.norm_activation
    with kernels.replaced(model, {"norm_activation": "outer"}):
        with kernels.replaced(model, {"norm_activation": "inner"}):
            assert unit.norm_activation == "inner"
        assert unit.norm_activation == "outer"
    assert unit.norm_activation == plain


@needs_compiler
def test_a_library_that_cannot_be_loaded_is_done_without(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "whole"))
    assert kernels.shared_library.__wrapped__(kernels.SOURCE) is not None
    (kept,) = (tmp_path / "whole" / "sodlib").glob("*.so")
    # Elsewhere, since what has been loaded from a place is not loaded again.
    (tmp_path / "cut" / "sodlib").mkdir(parents=True)
    (tmp_path / "cut" / "sodlib" / kept.name).write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cut"))
    assert kernels.shared_library.__wrapped__(kernels.SOURCE) is None
