"""Large networks under the cross-stage fusion: published counts, and ImageNet weights that classify."""

import pytest
import torch
from conftest import REPOSITORY

from sodlib import paper
from sodlib.backbones import classifier, csf
from sodlib.cost import count_parameters
from sodlib.csf import CSF, ResizingGOctConv, fusion_channels
from sodlib.data import read_image
from sodlib.errors import SodlibError
from sodlib.images import to_input
from sodlib.octconv import GOctConv


@pytest.mark.parametrize(("name", "printed"), [("resnet50", "CSF+R"), ("res2net50", "CSF+R2")])
def test_counts_are_published(name, printed):
    with torch.device("meta"):
        network = csf(name)
    row = paper.table(7).set_index("network").loc[printed].iloc[0]
    assert round(count_parameters(network) / 1e6, 2) == round(row["parameters_k"] / 1e3, 2)


def test_any_size_gives_a_map_of_its_size():
    torch.manual_seed(0)
    network = csf("efficientnet-lite0").eval()
    with torch.no_grad():
        assert network(torch.randn(2, 3, 70, 99)).shape == (2, 1, 70, 99)
    assert fusion_channels((24, 40, 112, 320)) == (32, 32, 64, 160)


def test_resizing_equals_the_goctconv_where_only_coarser_scales_are_read():
    """Bilinear upsampling by a factor is bilinear resizing to that size."""
    torch.manual_seed(0)
    scales = [torch.randn(1, 3, 16, 16), torch.randn(1, 5, 8, 8), torch.randn(1, 4, 4, 4)]
    resizing, plain = ResizingGOctConv((3, 5, 4), (6,)), GOctConv((3, 5, 4), (6,), 1)
    plain.load_state_dict(resizing.state_dict())
    assert torch.allclose(resizing(scales)[0], plain(scales)[0], atol=1e-5)
    assert [x.shape[1:] for x in ResizingGOctConv((3, 5, 4), (2, 7, 1))(scales)] == [(2, 16, 16), (7, 8, 8), (1, 4, 4)]


def test_imagenet_weights_know_what_they_see():
    """ImageNet's classes: Egyptian cat, espresso, jellyfish, ladybird, beacon."""
    expected = {"cat": 285, "coffee": 967, "jellyfish": 107, "ladybird": 301, "lighthouse": 437}
    images = [to_input(read_image(REPOSITORY / "data" / "photos" / f"{name}.jpg"), 224) for name in expected]
    network = classifier("efficientnet-lite0").eval()
    with torch.no_grad():
        assert network(torch.stack(images)).argmax(1).tolist() == list(expected.values())


def test_the_fusion_gets_the_same_weights():
    network, whole = csf("efficientnet-lite0", pretrained=True), classifier("efficientnet-lite0")
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen = []
    whole[1].blocks[6].register_forward_hook(lambda *parts: seen.append(parts[2]))
    with torch.no_grad():
        whole.eval()(image)
        assert torch.allclose(network.eval().backbone(image)[-1], seen[0], atol=1e-4)


def test_mistakes_get_a_sentence(monkeypatch):
    with pytest.raises(SodlibError, match="unknown backbone 'vgg'"):
        csf("vgg")
    with pytest.raises(SodlibError, match="several scales"):
        CSF(torch.nn.Identity(), (64,))

    def offline(*_, **__):
        raise FileNotFoundError("no connection")

    monkeypatch.setattr("sodlib.backbones.timm.create_model", offline)
    with pytest.raises(SodlibError, match="weights of resnet50 are not on this machine"):
        csf("resnet50", pretrained=True)
