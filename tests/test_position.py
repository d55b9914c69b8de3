"""What redundant channels tell: the position and nothing else, and pruning is to even them out."""

import copy

import pytest
import torch

import sodlib
from sodlib.decay import gammas
from sodlib.position import even_out, told_by_redundant
from sodlib.pruning import PerChannel, keep_above, prune, recalibrate, scores

SILENT = ("stage2.1", "stage3.0", "stage4.2")


@pytest.fixture
def batches():
    torch.manual_seed(1)
    return [torch.randn(4, 3, 64, 64) for _ in range(3)]


def network(batches, shift):
    """A network with random shifts, in whose SILENT blocks every second channel of the high resolution has a scale of
    zero in its first unit; and which channels these are."""
    torch.manual_seed(0)
    model = sodlib.csnet()
    for name, gamma in gammas(model).items():
        gamma.data.uniform_(0.5, 1.5)
        if name.startswith(tuple(f"{block}.conv1x1.bns.0" for block in SILENT)):
            gamma.data[::2] = 0
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.bias.data.uniform_(-shift, shift)
    recalibrate(model, batches)
    kept = keep_above(scores(model), 1e-20)
    fusion = (tuple(map(torch.ones_like, part)) for part in (kept.fuse, kept.dilated, kept.merged))
    return model, PerChannel(kept.blocks, *fusion)


def test_pruning_channels_of_scale_zero_is_to_even_them_out(batches):
    model, kept = network(batches, shift=1.0)
    whole, pruned, even = copy.deepcopy(model), prune(model, kept), even_out(model, kept, batches[0])
    for each in (whole, pruned, even):
        recalibrate(each, batches)
    with torch.no_grad():
        before, after, evened = (each(batches[0]) for each in (whole, pruned, even))
    torch.testing.assert_close(evened, after, atol=2e-3, rtol=1e-3)
    assert (evened - before).abs().mean() > 0.05, "new statistics alone do not do it"
    changed = [
        name
        for name, old in even_out(model, kept, batches[0]).state_dict().items()
        if not torch.equal(old, model.state_dict()[name])
    ]
    assert changed and all(name.startswith(tuple(f"{block}.conv3x3_2." for block in SILENT)) for name in changed)


def test_redundant_channels_tell_the_position_alone(batches):
    model, kept = network(batches, shift=1.0)
    told, added = told_by_redundant(model, kept, batches[0])
    count = sum(int((~mask).sum()) for block in kept.blocks for mask in block)
    assert told["redundant channels"] == told["differ between positions"] == count > 30
    assert told["differ between images"] == 0 and told["change of the maps"] > 0.005
    # As constants they have no say in where the map is high.
    nothing, _ = told_by_redundant(even_out(model, kept, batches[0]), kept, batches[0])
    assert nothing["differ between positions"] == 0 and nothing["change of the maps"] < 1e-6
    assert added.shape == (64, 64) and added.std() > 1e-3


def test_without_a_shift_they_tell_nothing(batches):
    told, added = told_by_redundant(*network(batches, shift=0.0), batches[0])
    assert told["differ between positions"] == 0 and told["change of the maps"] < 1e-6 > added.abs().max()
