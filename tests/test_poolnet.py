"""PoolNet as a yardstick of running time."""

import pytest
import torch

from sodlib import paper
from sodlib.cost import count_macs, count_parameters
from sodlib.poolnet import PoolNet


def test_its_size_is_the_published_one():
    """68.26M parameters, as printed. The 88.89 G that is printed beside it belongs to a larger input than 224 x 224."""
    with torch.device("meta"):
        network = PoolNet()
        macs = count_macs(network)["conv"]
    row = paper.table(7).query("network == 'PoolNet'").iloc[0]
    assert count_parameters(network) == 68_261_057 == pytest.approx(1000 * row["parameters_k"], abs=5000)
    assert macs == 25_084_641_280 < 0.3 * 1e9 * row["macc_g"]


@pytest.mark.parametrize("size", [(128, 128), (150, 200)])
def test_a_map_has_the_size_of_its_image(size):
    with torch.inference_mode():
        assert PoolNet().eval()(torch.rand(1, 3, *size)).shape == (1, 1, *size)
