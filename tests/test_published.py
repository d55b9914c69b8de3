"""Networks with their authors' weights: what is kept of them, and one in ONNX."""

import numpy as np
import pytest
import torch

import sodlib
from sodlib import gallery, published
from sodlib.__main__ import main
from sodlib.cost import count_parameters
from sodlib.data import find_set
from sodlib.mean_mask import MeanMask
from sodlib.u2net import U2NetP


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    """A 1x1 convolution of the three colours, with a sigmoid, of 320 x 320 pixels."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.array([1.0, 2.0, -1.0], np.float32).reshape(1, 3, 1, 1), "weight")
    nodes = [helper.make_node("Conv", ["x", "weight"], ["y"]), helper.make_node("Sigmoid", ["y"], ["map"])]
    sides = (1, 3, 320, 320), (1, 1, 320, 320)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip(("x", "map"), sides, strict=True)]
    graph = helper.make_graph(nodes, "tiny", ends[:1], ends[1:], [weight])
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def test_a_network_in_onnx(onnx_file):
    """The photograph over its brightest value, normalised; the map stretched to 0..1: by NumPy."""
    model, random = sodlib.load(onnx_file), np.random.default_rng(0)
    photograph = random.integers(0, 200, (320, 320, 3), np.uint8)
    colours = (photograph / photograph.max() - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    expected = 1 / (1 + np.exp(-colours @ [1, 2, -1]))
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    np.testing.assert_allclose(sodlib.predict(model, photograph), expected, atol=1e-5)
    assert count_parameters(model) == 3 and model.macs == sodlib.count_macs(model)["conv"] == 3 * 320 * 320
    with pytest.raises(sodlib.SodlibError, match="320 x 320 alone"):
        sodlib.predict(model, photograph, size=64)
    with pytest.raises(sodlib.SodlibError, match="U2NetP has no channel plan"):
        sodlib.save(model, onnx_file.with_suffix(".safetensors"))


def test_what_is_no_onnx_file(tmp_path):
    pytest.importorskip("onnx")
    (tmp_path / "torn.onnx").write_bytes(b"torn")
    with pytest.raises(sodlib.SodlibError, match=r"torn\.onnx: not a readable ONNX file"):
        U2NetP(tmp_path / "torn.onnx")


def test_a_record_grows_by_sets(onnx_file, tmp_path, capfd):
    small = [find_set("cutouts/test").subset(range(n), f"small-{n}") for n in (2, 3)]
    for images in small:
        record = published.measure(sodlib.load(onnx_file), "tiny", images, tmp_path)
    assert record.data["images"] == {"small-2": 2, "small-3": 3} and record.data["parameters"] == 3
    assert list(published.every(tmp_path)) == ["tiny"] and not record.has_weights
    assert record.by_image("small-2")["images"] == 2 and record.by_image("small-3")["images"] == 3

    def meanwhile(model, images):
        """Another process records a set while this one is scored."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(published, "scored", before)
            published.measure(model, "tiny", small[0].subset(range(1), "small-1"), tmp_path)
        return before(model, images)

    before = published.scored
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "scored", meanwhile)
        record = published.measure(sodlib.load(onnx_file), "tiny", small[1], tmp_path)
    assert record.data["images"] == {"small-1": 1, "small-2": 2, "small-3": 3}
    with pytest.raises(SystemExit):
        main_with("evaluate", onnx_file, "cutouts/test", "--size", 64, "--record", "tiny")
    assert "a record is of a network at its own input size" in capfd.readouterr().err


def main_with(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["sodlib", *map(str, arguments)])
        main()


def test_the_committed_records_are_those_of_the_paper():
    """What the released network scores on ECSSD and what is said of it in the paper, to its last digit."""
    record = published.every()["csnet-x2-l-released"]
    scores = record.data["scores"]["ECSSD"]["released"]
    assert scores["images"] == 1000 and record.data["parameters"] == 140_894
    assert (round(scores["max_f"], 3), round(scores["mae"], 3)) == (0.916, 0.066)


def test_the_gallery():
    """Every whole photograph, one cut-out of every category; one map each at the network's input size."""
    shown = gallery.photographs()
    assert len(shown) == len({name for name, _, _ in shown})
    assert {truth is None for _, _, truth in shown} == {True, False}
    model = MeanMask(torch.linspace(0, 1, 64).view(8, 8))
    maps = gallery.maps(model)
    assert maps.shape == (len(shown), model.input_size, model.input_size) and maps.dtype == np.uint8
