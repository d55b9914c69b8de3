"""What redundant channels tell: the position and nothing else, and pruning is to even them out."""

import copy

import pytest
import torch

import sodlib
from sodlib.decay import gammas
from sodlib.position import evened, told_by_redundant
from sodlib.pruning import PerChannel, keep_above, prune, recalibrate, scores

SILENT = ("stage2.1", "stage3.0", "stage4.2")


@pytest.fixture
def batches():
    torch.manual_seed(1)
    return [torch.randn(4, 3, 64, 64) for _ in range(3)]


def network(batches, shift):
    """A network in whose SILENT blocks every second channel of the high resolution has a scale of zero."""
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
    return model, PerChannel(
        kept.blocks, *(tuple(map(torch.ones_like, part)) for part in (kept.fuse, kept.dilated, kept.merged))
    )


def test_pruning_a_channel_of_scale_zero_is_to_even_it_out(batches):
    model, kept = network(batches, shift=1.0)
    pruned, even = prune(model, kept), copy.deepcopy(model)
    recalibrate(pruned, batches)
    with torch.no_grad():
        before = model(batches[0])
        with evened(even, kept):
            recalibrate(even, batches)
            after = even(batches[0])
        torch.testing.assert_close(after, pruned(batches[0]), atol=2e-3, rtol=1e-3)
        assert (after - before).abs().mean() > 0.05
        assert not torch.equal(even(batches[0]), after), "the hooks are gone"


def test_redundant_channels_tell_the_position_alone(batches):
    model, kept = network(batches, shift=1.0)
    told, added = told_by_redundant(model, kept, batches[0])
    count = sum(int((~mask).sum()) for block in kept.blocks for mask in block)
    assert told["redundant channels"] == told["differ between positions"] == count > 30
    assert told["differ between images"] == 0 and told["maps move by"] > 0.005
    with torch.no_grad():
        maps = model(batches[0]).sigmoid()
        with evened(model, kept):
            torch.testing.assert_close(added, (maps - model(batches[0]).sigmoid()).mean((0, 1)))


def test_without_a_shift_they_tell_nothing(batches):
    told, added = told_by_redundant(*network(batches, shift=0.0), batches[0])
    assert told["differ between positions"] == told["maps move by"] == 0 == added.abs().max()
