import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import sodlib
from sodlib import compiled, data, runtime, timing
from sodlib.__main__ import app
from sodlib.folding import fold
from sodlib.gallery import PHOTOS
from sodlib.images import to_input
from sodlib.plain import plain
from sodlib.prediction import predict, predict_files, quantise
from sodlib.pruning import keep_above, prune, scores

NETWORKS = {
    "csnet": lambda: sodlib.csnet(),
    "low resolution alone": lambda: sodlib.csnet(split="0/1"),
    "two stages fused": lambda: sodlib.csnet(stages="3-4"),
    "four stages fused": lambda: sodlib.csnet(stages="1-4"),
    "extractor": lambda: sodlib.extractor(split="3/1"),
    "vanilla": lambda: sodlib.vanilla(split="1/3"),
    "one scale": lambda: sodlib.csnet(split="1/0"),
}
needs_compiler = pytest.mark.skipif(compiled.machine_code() is None, reason="no C compiler")


def settled(model):
    """Random weights whose features neither vanish nor overflow."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.5, 1.5)
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 64, 64))
    return model.eval()


def furthest(one, other, images):
    """Largest difference of the logits, as a share of the largest logit where that is above 1."""
    with torch.inference_mode():
        expected = other(images)
        return ((one(images) - expected).abs().max() / expected.abs().max().clamp_min(1)).item()


@pytest.mark.parametrize("engine", ["torch", pytest.param("c", marks=needs_compiler)])
@pytest.mark.parametrize("name", NETWORKS)
def test_optimised_networks_compute_the_same(name, engine):
    torch.manual_seed(0)
    model = settled(NETWORKS[name]())
    if (name, engine) == ("one scale", "c"):
        with pytest.raises(sodlib.SodlibError, match="stride"):
            runtime.optimise(model, engine)
        return
    # Random weights amplify rounding: torch is compared in double precision, C by what rounding cannot explain.
    optimised = fold(model.double()) if engine == "torch" else runtime.optimise(model, engine)
    kind, bound = (torch.float64, 1e-9) if engine == "torch" else (torch.float32, 2e-3)
    for shape in ((1, 3, 64, 96), (3, 3, 50, 37), (2, 3, 16, 16)):
        assert furthest(optimised, model, torch.randn(shape, dtype=kind)) < bound


@pytest.fixture(scope="module")
def photographs():
    paths = [*sorted(PHOTOS.glob("*.jpg")), *data.find_set("cutouts/test").images][:50]
    return torch.stack([to_input(data.read_image(path), 96) for path in paths])


@pytest.mark.parametrize("engine", ["torch", pytest.param("c", marks=needs_compiler)])
def test_released_network_on_golden_inputs_and_photographs(engine, released, golden, photographs):
    archive, optimised = np.load(golden / "csnet-L-x2.npz"), runtime.optimise(released, engine)
    with torch.inference_mode():
        for name in ("photo", "random", "rect"):
            logits = optimised(torch.from_numpy(archive[f"x/{name}"])).numpy()
            assert np.abs(logits - archive[f"y/{name}/logits"]).max() < 1e-4
        assert (optimised(photographs) - released(photographs)).abs().max() < 1e-4


@pytest.fixture(scope="module")
def exported():
    pytest.importorskip("onnxscript")
    model = sodlib.load("csnet-x1-fast")
    return model, runtime.onnx_content(fold(model))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_onnx_file_in_both_runtimes_with_any_size_and_batch(engine, exported, photographs):
    pytest.importorskip(engine)
    model, content = exported
    network = fold(model)
    build = runtime.OnnxRuntime if engine == "onnxruntime" else runtime.OpenVino
    other = build(network, content=content)
    with torch.inference_mode():
        assert (other(photographs) - model(photographs)).abs().max() < 1e-4
        images = torch.randn(3, 3, 45, 70)
        assert (other(images) - model(images)).abs().max() < 1e-4


@needs_compiler
def test_compiled_engine_in_several_threads_at_once():
    model = sodlib.optimise(settled(sodlib.csnet()), "c")
    images = [torch.rand(1, 3, 48, 48) for _ in range(4)]
    expected = [model(image) for image in images]

    def wrong(index):
        return sum(not torch.equal(model(images[index]), expected[index]) for _ in range(40))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(wrong, range(4))) == [0] * 4


@needs_compiler
def test_compiled_engine_refuses_what_it_cannot_read():
    model = sodlib.optimise(sodlib.csnet().eval(), "c")
    for images in (torch.zeros(1, 3, 32, 32, device="meta"), torch.zeros(1, 3, 0, 32), torch.zeros(3, 32, 32)):
        with pytest.raises(sodlib.SodlibError, match="takes images"):
            model(images)


@pytest.mark.parametrize("threads", [1, 2])
def test_compiled_engine_with_threads_and_changing_sizes(threads):
    torch.manual_seed(1)
    model = settled(sodlib.csnet())
    optimised = runtime.optimise(model, "c")
    with timing.threads(threads):
        for shape in ((1, 3, 80, 48), (5, 3, 32, 48), (1, 3, 80, 48), (2, 3, 33, 31)):
            assert furthest(optimised, model, torch.randn(shape)) < 2e-3


@needs_compiler
@settings(max_examples=5, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**20), tenths=st.integers(0, 9))
def test_compiled_engine_with_any_number_of_channels(seed, tenths):
    """Blocks that work in place have more outputs than inputs, fewer, or none at a scale."""
    torch.manual_seed(seed)
    model = sodlib.csnet()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
    model = settled(prune(model, keep_above(scores(model), tenths / 10)))
    assert furthest(runtime.optimise(model, "c"), model, torch.randn(2, 3, 48, 80)) < 2e-3


@needs_compiler
def test_every_step_has_a_time_and_a_layer():
    model = settled(sodlib.csnet())
    steps = compiled.CompiledCSNet(fold(model)).seconds(torch.randn(1, 3, 64, 64))
    assert all(seconds >= 0 for _, _, seconds in steps) and sum(seconds for *_, seconds in steps) > 0
    assert {layer.partition(".")[0] for layer, *_ in steps} == {f"stage{n}" for n in range(5)} | {"fusion", "last"}


def test_plain_baseline_is_the_same_network():
    model = settled(sodlib.csnet())
    images = torch.randn(1, 3, 64, 64)
    assert furthest(plain(timing.copied(model)), model, images) < 2e-3


def test_engine_that_is_not_installed_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(sodlib.SodlibError, match=r"pip install 'sodlib\[openvino\]'"):
        runtime.optimise(sodlib.csnet(), "openvino")
    with pytest.raises(sodlib.SodlibError, match="choose one of"):
        runtime.optimise(sodlib.csnet(), "abacus")


@needs_compiler
def test_fallback_says_so_in_one_line():
    _, engine, remarks = runtime.fastest(sodlib.csnet(split="1/0").eval())
    assert engine == "torch" and len(remarks) == 1 and "engine c cannot run this network" in remarks[0]
    assert runtime.fastest(sodlib.csnet().eval())[1:] == ("c", [])
    other = nn.Conv2d(3, 1, 1)
    assert runtime.fastest(other)[:2] == (other, "eager")


def test_a_folder_in_the_pipeline_gives_the_maps_of_one_by_one(tmp_path):
    paths = sorted(PHOTOS.glob("*.jpg"))[:7]
    model, found = sodlib.load("csnet-x1-fast"), {}
    done = list(predict_files(model, paths, found.__setitem__, 64))
    assert done == [(index, None) for index in range(7)]
    for index, path in enumerate(paths):
        difference = found[index].astype(int) - quantise(predict(model, path, 64))
        assert np.abs(difference).max() <= 1
        with Image.open(path) as opened:
            assert np.array_equal(predict(model, opened, 64), predict(model, path, 64))
    broken = tmp_path / "broken.jpg"
    broken.write_text("no image")
    there = torch.get_num_threads()
    found.clear()
    done = dict(predict_files(model, [paths[0], broken, *paths[1:]], found.__setitem__, 64))
    assert "broken" in str(done.pop(1)) and set(done.values()) == {None} and found.keys() == done.keys()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == there, "threads that come later have as many"


def test_command_line_says_which_engine_ran(tmp_path):
    result = CliRunner().invoke(app, ["predict", str(PHOTOS / "cat.jpg"), "-o", str(tmp_path / "map.png")])
    assert result.exit_code == 0 and "engine: " in result.output
    with Image.open(PHOTOS / "cat.jpg") as photograph, Image.open(tmp_path / "map.png") as found:
        assert found.size == photograph.size


def test_recorded_engines_agree():
    """Every engine of the committed record computes the same; half and 8-bit precision are other functions."""
    part = timing.read("engines", REPOSITORY / "results")
    if part is None:
        pytest.skip("no record of the engines")
    compared = 0
    for by_setting in part["networks"].values():
        for rows in by_setting.values():
            assert rows["plain eager"]["speedup"] == 1
            for name, row in rows.items():
                if "difference" in row and "int8" not in name and "bfloat16" not in name:
                    compared += 1
                    assert row["difference"] < 1e-4
    assert compared > 5
