"""Networks made for other tasks: the paper's counts, and a saliency map from each."""

import pytest
import torch

from sodlib import paper
from sodlib.baselines import BASELINES, Baseline
from sodlib.cost import count_macs, count_parameters
from sodlib.errors import SodlibError

#: Those whose published form the paper has taken, by its name for them.
AS_PUBLISHED = {"enet": "ENet", "cgnet": "CGNet", "dabnet": "DABNet"}


@pytest.mark.parametrize(("name", "printed"), AS_PUBLISHED.items())
def test_counts_are_the_papers(name, printed):
    network = Baseline(name)
    row = paper.table(7).set_index("network").loc[printed].iloc[0]
    assert round(count_parameters(network) / 1e6, 2) == round(row["parameters_k"] / 1e3, 2)
    # The paper's MACC also counts batch norm and activations.
    convolutions = count_macs(network)["conv"] / 1e9
    assert 0.9 * row["macc_g"] < convolutions < row["macc_g"]


@pytest.mark.parametrize("name", BASELINES)
def test_every_network_learns_to_give_a_map(name):
    torch.manual_seed(0)
    network = Baseline(name, 64).train()
    images, masks = torch.randn(2, 3, 64, 64), torch.zeros(2, 1, 64, 64)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = network.loss(network(images), masks)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with torch.no_grad():
        assert network.eval()(images).shape == masks.shape


def test_an_unknown_network_gets_a_sentence():
    with pytest.raises(SodlibError, match="unknown network 'unet'"):
        Baseline("unet")
