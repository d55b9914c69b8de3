"""The Triton kernels against torch in double precision: on the GPU where there is one, else in Triton's interpreter."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sodlib
from sodlib.kernels import replaced, stand_ins
from sodlib.octconv import norm_activation, upsampled_sum

pytest.importorskip("triton")
from sodlib import triton_maps, triton_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: Relative to the largest number of a map.
TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 1e-2}
kinds = pytest.mark.parametrize("kind", TOLERANCE, ids=str)


def agree(fast, exact, kind):
    exact = exact.detach().double()
    error = (fast.detach().double().cpu() - exact).abs().max()
    assert error <= TOLERANCE[kind] * exact.abs().max()


def compare(fast, exact, inputs, kind):
    """Values and gradients of two functions of these maps, for one gradient of the result."""
    results, gradient = [], None
    for function, device, precision in ((fast, DEVICE, kind), (exact, "cpu", torch.float64)):
        maps = [x.detach().to(device, precision).requires_grad_() for x in inputs]
        y = function(*maps)
        gradient = torch.randn(y.shape).to(kind) if gradient is None else gradient
        y.backward(gradient.to(device, precision))
        results.append([y, *(x.grad for x in maps)])
    for ours, theirs in zip(*results, strict=True):
        agree(ours, theirs, kind)


@kinds
@pytest.mark.parametrize("shape", [(3, 10, 40, 33), (2, 65, 3, 5), (24, 2, 4, 4), (2, 1, 3, 2)], ids=str)
@pytest.mark.parametrize("centre", [0, -30])
def test_norm_and_activation(kind, shape, centre):
    torch.manual_seed(0)
    norm, activation = nn.BatchNorm2d(shape[1], momentum=0.3), nn.PReLU(shape[1])
    for parameter in (norm.weight, norm.bias, activation.weight):
        nn.init.normal_(parameter)
    x = (torch.randn(shape) + centre).to(kind)
    gradient = torch.randn(shape).to(kind)
    # Where PReLU bends, both of its slopes are right within rounding: no gradient comes from there.
    gradient[copy.deepcopy(norm).double()(x.double()).abs() < 1e-4] = 0
    functions = (
        (triton_norm.norm_activation_triton, DEVICE, kind, torch.float32),
        (norm_activation, "cpu", torch.float64, torch.float64),
    )
    results = []
    for function, device, of_maps, of_layers in functions:
        ours = [copy.deepcopy(layer).to(device, of_layers) for layer in (norm, activation)]
        inputs = x.to(device, of_maps).detach().requires_grad_()
        y = function(inputs, *ours)
        y.backward(gradient.to(device, of_maps))
        pooled = y.pooled if function is triton_norm.norm_activation_triton else y.mean((2, 3))
        gradients = [tensor.grad for tensor in (inputs, ours[0].weight, ours[0].bias, ours[1].weight)]
        results.append([y, *gradients, pooled, ours[0].running_mean, ours[0].running_var])
        assert ours[0].num_batches_tracked == 1
    for fast, exact in zip(*results, strict=True):
        agree(fast, exact, kind)


def test_outside_training_torch_normalises():
    norm, activation, x = nn.BatchNorm2d(5).eval(), nn.PReLU(5), torch.randn(2, 5, 4, 4)
    y = triton_norm.norm_activation_triton(x, norm, activation)
    assert torch.equal(y, norm_activation(x, norm, activation)) and not hasattr(y, "pooled")


@kinds
@pytest.mark.parametrize(("shape", "factor"), [((2, 5, 6, 4), 2), ((1, 33, 3, 5), 4), ((2, 2, 2, 1), 4)])
def test_sum_with_an_upsampled_map(kind, shape, factor):
    torch.manual_seed(0)
    samples, channels, height, width = shape
    low, total = torch.randn(shape).to(kind), torch.randn(samples, channels, height * factor, width * factor).to(kind)
    compare(
        lambda total, low: triton_maps.upsampled_sum_triton(total, low, factor),
        lambda total, low: upsampled_sum(total, low, factor),
        [total, low],
        kind,
    )
    compare(
        lambda low: triton_maps.upsampled_sum_triton(None, low, factor),
        lambda low: upsampled_sum(None, low, factor),
        [low],
        kind,
    )


@kinds
@pytest.mark.parametrize(("shape", "side"), [((2, 5, 8, 4), 2), ((1, 33, 8, 12), 4), ((2, 3, 7, 6), 2)])
def test_pooling_with_equal_pixels(kind, shape, side):
    torch.manual_seed(0)
    x = torch.randint(0, 4, shape).to(kind)
    compare(lambda x: triton_maps.max_pool_triton(x, side), lambda x: F.max_pool2d(x, side), [x], kind)
    compare(lambda x: triton_maps.average_pool_triton(x, side), lambda x: F.avg_pool2d(x, side), [x], kind)


def test_a_block_with_these_parts_has_the_same_gradients(monkeypatch):
    # On a GPU torch's own convolutions round float32 to 10 bits by default, which is more than the tolerance below.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    network = sodlib.csnet()
    exact = nn.ModuleList([network.stage2[0], network.oct_fuse.fuse]).double().train()
    ours = copy.deepcopy(exact).float().to(DEVICE)
    ours_have = stand_ins(torch.device("cuda"))
    units = (exact[0].conv1x1.conv, exact[1].conv)
    scales, fused = (
        [torch.randn(2, count, side, side) for count, side in zip(unit.inputs, sides, strict=True)]
        for unit, sides in zip(units, ((16, 8), (8, 4, 2)), strict=True)
    )
    results = []
    for modules, parts in ((ours, ours_have), (exact, {})):
        one = next(modules.parameters())
        with replaced(modules, parts):
            maps = [*modules[0]([x.to(one) for x in scales]), *modules[1]([x.to(one) for x in fused])]
        sum(x.square().mean() for x in maps).backward()
        gradients = [parameter.grad for parameter in modules.parameters()]
        results.append([tensor.detach().double().cpu() for tensor in (*maps, *gradients)])
    for fast, double in zip(*results, strict=True):
        assert (fast - double).norm() <= 1e-4 * double.norm() + 1e-7
    names = {name for name in ours_have for module in ours.modules() if hasattr(module, name)}
    assert names == ours_have.keys()
