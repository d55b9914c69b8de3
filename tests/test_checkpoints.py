"""Networks in and out of files, and what is refused."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

import sodlib
from sodlib.__main__ import DEFAULT_MODEL
from sodlib.checkpoints import MODELS, read_checkpoint
from sodlib.pruning import keep_share, prune, recalibrate, scores


@pytest.fixture
def small():
    torch.manual_seed(0)
    model = sodlib.csnet()
    model = prune(model, keep_share(scores(model), 0.3))
    recalibrate(model, [torch.randn(2, 3, 32, 32)])
    return model


def test_saved_networks_come_back(tmp_path, small):
    small.input_size = 96
    sodlib.save(small, tmp_path / "a" / "small.safetensors")
    loaded = sodlib.load(tmp_path / "a" / "small.safetensors")
    assert loaded.plan == small.plan and loaded.input_size == 96 and not loaded.training
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(images), small.eval()(images))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["small.safetensors"]


def test_failed_save_leaves_nothing(tmp_path, small):
    (tmp_path / "file").write_text("")
    with pytest.raises(sodlib.SodlibError, match="cannot be written"):
        sodlib.save(small, tmp_path / "file" / "small.safetensors")
    assert (tmp_path / "file").read_text() == ""


def test_an_optimised_network_is_no_file(tmp_path, small):
    with pytest.raises(sodlib.SodlibError, match="save the network that it was made of"):
        sodlib.save(sodlib.optimise(small, "torch"), tmp_path / "small.safetensors")
    assert not list(tmp_path.iterdir())


def test_unreadable_files_are_named(tmp_path, small):
    path = tmp_path / "cut.safetensors"
    sodlib.save(small, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(sodlib.SodlibError, match=r"cut\.safetensors"):
        sodlib.load(path)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(sodlib.SodlibError, match="no channel plan"):
        sodlib.load(tmp_path / "other.safetensors")
    with pytest.raises(sodlib.SodlibError, match="unknown model 'csnet-x9'"):
        sodlib.load("csnet-x9")


def test_another_architecture_is_refused(small):
    state = small.state_dict()
    with pytest.raises(sodlib.SodlibError, match=r"weight is \[3\] and should be \[10\]"):
        sodlib.load_released(state, sodlib.csnet().plan.to_json())
    with pytest.raises(sodlib.SodlibError, match=r"has no cls_layer\.bias"):
        sodlib.load_released({k: v for k, v in state.items() if k != "cls_layer.bias"}, small.plan.to_json())
    with pytest.raises(sodlib.SodlibError, match="also holds extra"):
        sodlib.load_released(state | {"extra": torch.zeros(1)}, small.plan.to_json())


def test_checkpoints_are_never_unpickled(tmp_path, small):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"state_dict": Trap()}))
    torch.save({"state_dict": Trap()}, tmp_path / "trap2.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "noise.pth").write_bytes(b"noise")
    torch.save({"state_dict": torch.zeros(3)}, tmp_path / "tensor.pth")
    torch.save({3: torch.zeros(3)}, tmp_path / "numbers.pth")
    (tmp_path / "bytes.pth").write_bytes(bytes(range(256)))
    for name in (
        "trap.pth",
        "trap2.pth",
        "list.pth",
        "noise.pth",
        "missing.pth",
        "tensor.pth",
        "numbers.pth",
        "bytes.pth",
    ):
        with pytest.raises(sodlib.SodlibError, match=name):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "sprung").exists()
    torch.save({"state_dict": {f"module.{k}": v for k, v in small.state_dict().items()}}, tmp_path / "good.pth")
    assert set(read_checkpoint(tmp_path / "good.pth")) == set(small.state_dict())


def test_shipped_networks_load_by_name():
    names = [path.stem for path in MODELS.glob("*.safetensors")]
    assert DEFAULT_MODEL in names
    for name in names:
        model = sodlib.load(name)
        assert model(torch.randn(1, 3, 32, 32)).isfinite().all()
        assert (MODELS / f"{name}.safetensors").stat().st_size < 1_000_000
