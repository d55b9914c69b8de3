"""The command `sodlib` as a person types it."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from torch import zeros

from sodlib import __main__ as command
from sodlib import checkpoints, metrics, networks, prediction, pruning, records
from sodlib.channels import plan_channels
from sodlib.classifier import Classifier


def sodlib(capfd, *arguments):
    """Exit code, what was printed, what was complained about."""
    code = 0
    try:
        sys.argv = ["sodlib", *map(str, arguments)]
        command.main()
    except SystemExit as stop:
        code = stop.code or 0
    printed = capfd.readouterr()
    return code, printed.out, printed.err


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    import torch

    from sodlib import csnet, save
    from sodlib.pruning import recalibrate

    torch.manual_seed(0)
    network = csnet()
    network.input_size = 32
    recalibrate(network, [torch.randn(2, 3, 32, 32)])
    path = tmp_path_factory.mktemp("model") / "net.safetensors"
    save(network, path)
    return path


@pytest.fixture
def photograph(tmp_path):
    path = tmp_path / "photos" / "photo.jpg"
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 44, 3), np.uint8)).save(path)
    return path


def test_predict_one_photograph(capfd, tmp_path, model, photograph):
    code, out, _ = sodlib(capfd, "predict", photograph, "--model", model, "-o", tmp_path / "new" / "map.png")
    assert code == 0 and "map.png" in out
    with Image.open(tmp_path / "new" / "map.png") as saliency_map:
        assert saliency_map.size == (44, 30) and saliency_map.mode == "L"


def test_predict_a_folder(capfd, tmp_path, model, photograph):
    Image.open(photograph).save(photograph.with_name("second.png"))
    code, out, _ = sodlib(capfd, "predict", photograph.parent, "--model", model)
    assert code == 0 and "2 maps" in out
    assert sorted(path.name for path in (tmp_path / "photos-maps").iterdir()) == ["photo.png", "second.png"]


def test_a_folder_with_equal_stems_and_a_damaged_photograph(capfd, tmp_path, model, photograph):
    for other in (".webp", ".png"):
        Image.open(photograph).save(photograph.with_suffix(other))
    (photograph.parent / "cut.jpg").write_bytes(photograph.read_bytes()[:200])
    code, out, complaint = sodlib(capfd, "predict", photograph.parent, "--model", model)
    assert code == 2 and "3 maps" in out and "cut.jpg cannot be read" in complaint
    names = sorted(path.name for path in (tmp_path / "photos-maps").iterdir())
    assert names == ["photo.jpg.png", "photo.png.png", "photo.webp.png"]
    (photograph.parent / "empty.jpg").touch()
    code, out, complaint = sodlib(capfd, "predict", photograph.parent, "--model", model)
    assert code == 2 and "3 maps" in out and "2 of 5 files" in complaint
    assert "cut.jpg cannot be read" in complaint and "empty.jpg cannot be read" in complaint


def test_no_path_leads_to_the_photograph(capfd, tmp_path, monkeypatch, model, photograph):
    picture = photograph.with_name("other.png")
    Image.open(photograph).save(picture)
    before = picture.read_bytes()
    monkeypatch.chdir(photograph.parent)
    for arguments in (("predict", picture, "-o", "other.png"), ("predict", ".", "-o", "../photos")):
        code, _, complaint = sodlib(capfd, *arguments, "--model", model)
        assert code == 2 and "over the photograph" in complaint and picture.read_bytes() == before
    linked = tmp_path / "album"
    linked.symlink_to(photograph.parent)
    code, _, complaint = sodlib(capfd, "predict", linked, "-o", photograph.parent, "--model", model)
    assert code == 2 and "over the photograph" in complaint and picture.read_bytes() == before
    code, _, _ = sodlib(capfd, "predict", linked, "--model", model)
    assert code == 0 and (tmp_path / "album-maps" / "other.png").exists()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "other.png").symlink_to(picture)
    code, _, _ = sodlib(capfd, "predict", tmp_path / "links", "-o", tmp_path / "links", "--model", model)
    assert code == 2 and (tmp_path / "links" / "other.png").is_symlink() and picture.read_bytes() == before
    code, _, _ = sodlib(capfd, "predict", ".", "--model", model)
    assert code == 0 and (tmp_path / "photos-maps" / "other.png").exists()
    code, _, _ = sodlib(capfd, "predict", picture, "--model", model, "-o", tmp_path)
    assert code == 0 and (tmp_path / "other-map.png").exists()
    code, _, _ = sodlib(capfd, "predict", picture, "--model", model, "-o", f"{tmp_path}/new/")
    assert code == 0 and (tmp_path / "new" / "other-map.png").exists()


def test_a_record_has_a_plain_name_and_one_network(capfd, tmp_path, model):
    results = tmp_path / "results"
    (results / "kept").mkdir(parents=True)
    for name in ("..", "a/b", "."):
        code, _, complaint = sodlib(
            capfd, "evaluate", model, "cutouts/validation", f"--record={name}", "--results", results
        )
        assert code == 2 and "cannot name a record" in complaint and (results / "kept").is_dir()
    records.write(results / "published", "same", {"parameters": 5, "scores": {}}, {})
    code, _, complaint = sodlib(
        capfd, "evaluate", model, "cutouts/validation", "--record", "same", "--results", results
    )
    assert code == 2 and "5 parameters" in complaint


def test_evaluate_and_prune(capfd, tmp_path, model):
    code, out, _ = sodlib(
        capfd, "prune", model, "--share", "0.5", "--batches", "1", "-o", tmp_path / "half.safetensors"
    )
    assert code == 0 and "of 210,985 parameters" in out
    assert checkpoints.load(tmp_path / "half.safetensors").input_size == 32
    code, out, _ = sodlib(capfd, "evaluate", tmp_path / "half.safetensors", "cutouts/validation")
    assert code == 0 and "150 images" in out and "max F" in out
    found = metrics.evaluate(checkpoints.load(tmp_path / "half.safetensors"), "cutouts/validation")
    assert f"max F {found['max_f']:.4f}" in out and f"MAE   {found['mae']:.4f}" in out


def test_parameters_are_come_to_by_one_threshold_of_gamma(capfd, tmp_path, model):
    """As the networks that ship were pruned."""
    target = tmp_path / "small.safetensors"
    code, out, _ = sodlib(capfd, "prune", model, "--parameters", "94000", "--batches", "1", "-o", target)
    network = checkpoints.load(model)
    kept = pruning.keep(network, parameters=94_000, ranking="network")
    assert code == 0 and checkpoints.load(target).plan == pruning.prune(network, kept).plan
    assert "recalibrated on 1 batches of cutouts/train" in out


def test_two_photographs_with_one_map(capfd, tmp_path, model, photograph):
    for name in ("a.png", "a.webp", "a.png.jpg"):
        Image.open(photograph).save(tmp_path / name)
    code, _, complaint = sodlib(capfd, "predict", tmp_path, "--model", model, "-o", tmp_path / "maps")
    assert code == 2 and "would both become a.png.png" in complaint and not (tmp_path / "maps").exists()


def test_an_exported_network_is_not_taken_for_another(capfd, tmp_path, model):
    pytest.importorskip("onnxruntime")
    assert sodlib(capfd, "export", model, tmp_path / "out.onnx")[0] == 0
    code, _, complaint = sodlib(capfd, "evaluate", tmp_path / "out.onnx", "cutouts/validation")
    assert code == 2 and "exported from a network of this project" in complaint


def test_study_list_and_data_check(capfd, tmp_path):
    code, out, _ = sodlib(capfd, "study", "list", "--results", tmp_path)
    assert code == 0 and "0 of" in out and "missing" in out
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "record.json").write_text('{"hardware": "none"')
    for words, item in ((("--only", "table6"), "Table 6"), (("--only", "x1-5-5_dynamic_brief_s0_a965d0"), "Figure 5")):
        code, out, _ = sodlib(capfd, "study", "list", "--results", tmp_path, *words)
        assert code == 0 and f"\n{item} " in out
    code, _, complaint = sodlib(capfd, "study", "list", "--only", " ")
    assert code == 2 and "no declared run" in complaint
    code, _, complaint = sodlib(capfd, "study", "run", "--table", "0")
    assert code == 2 and "Traceback" not in complaint
    code, out, _ = sodlib(capfd, "data", "check", "cutouts/test")
    assert code == 0 and "150" in out


def test_too_large_an_input_size_is_told_in_one_sentence(capfd, tmp_path, model, photograph, monkeypatch):
    def starved(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 120000000000 bytes")

    monkeypatch.setattr(prediction, "to_input", starved)
    for arguments in (("predict", photograph, "--model", model), ("evaluate", model, "cutouts/test")):
        code, _, complaint = sodlib(capfd, *arguments, "--size", "100000")
        assert code == 2 and "give a smaller --size" in complaint and complaint.count("\n") == 1


def test_mistakes_get_one_sentence(capfd, tmp_path, model, photograph):
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(photograph.read_bytes()[:200])
    save_file({"x": zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "empty").mkdir()
    classifier = tmp_path / "classifier.safetensors"
    checkpoints.save(Classifier(plan_channels(), 10, 32), classifier)
    checkpoints.save(networks.build("enet", 64), tmp_path / "enet.safetensors")
    enet = ("--network", "enet", "--decay", "standard", "--pretraining", "categories")
    cases = [
        (("predict", tmp_path / "no.jpg", "--model", model), "no.jpg"),
        (("predict", cut, "--model", model), "cut.jpg"),
        (("predict", tmp_path / "empty", "--model", model), "no photographs"),
        (("predict", photograph, "--model", "csnet-x9"), "csnet-x9"),
        (("predict", photograph, "--model", tmp_path / "other.safetensors"), "no channel plan"),
        (("predict", photograph, "--model", tmp_path / "none.safetensors"), "there is no file"),
        (("predict", photograph, "--model", model, "--size", "0"), "size 0"),
        (("predict", photograph, "--model", model, "-o", photograph / "map.png"), "cannot be written"),
        (("predict", photograph, "--model", model, "-o", tmp_path / "map.jpg"), "ends so"),
        (("export", model, tmp_path / "net.txt"), "ends so"),
        (("prune", model, "--share", "0.5", "-o", tmp_path / "p.onnx"), "ends so"),
        (("predict", photograph, "--model", classifier), "is a classifier"),
        (("evaluate", classifier, "cutouts/test"), "is a classifier"),
        (("evaluate", tmp_path / "enet.safetensors", "cutouts/test", "--size", "100"), "multiples of 32"),
        (("prune", tmp_path / "enet.safetensors", "--share", "0.5", "-o", tmp_path / "p.safetensors"), "ILBlocks"),
        (("evaluate", model, "ECSSD"), "SODLIB_DATA"),
        (("evaluate", model, "ECSSD", "--data", tmp_path / "no"), "no folder"),
        (("train", "--preset", "smoke", "--data", tmp_path / "no", "--results", tmp_path / "r"), "no folder"),
        (("prune", model, "-o", tmp_path / "p.safetensors"), "give one of: a threshold, a share"),
        (("prune", model, "--share", "9", "-o", tmp_path / "p.safetensors"), "the share of channels"),
        (("prune", model, "--threshold", "nan", "-o", tmp_path / "p.safetensors"), "threshold nan"),
        (("prune", model, "--parameters", "0", "-o", tmp_path / "p.safetensors"), "0 parameters"),
        (("evaluate", tmp_path / "empty", "cutouts/test", "--size", "64"), "leave out --size"),
        (("evaluate", model, "cutouts/test", "--record", "x", "--size", "0"), "leave out --size"),
        (("evaluate", model, "cutouts/test", "--record", "x", "--protocol", "pysodmetrics"), "leave out --size"),
        (("train", "--network", "vanilla", "--stages", "4", "--results", tmp_path / "r"), "has no fusion"),
        (("train", "--width", "101", "--results", tmp_path / "r"), "from 1, the base network, to 100"),
        (("train", "--split", "2/2", "--preset", "smoke", "--results", tmp_path / "r"), "2/2"),
        (("train", *enet, "--preset", "smoke", "--results", tmp_path / "r"), "no stages"),
        (("reproduce", "77"), "77"),
    ]
    for arguments, words in cases:
        code, _, complaint = sodlib(capfd, *arguments)
        assert code == 2 and words in complaint and complaint.count("\n") == 1, (arguments, complaint)
    for arguments, words in [
        (("train", "--preset", "huge"), "huge"),
        (("train", "--widht", "2"), "--widht"),
        (("train", "--seed", "-1"), "--seed"),
    ]:
        code, _, complaint = sodlib(capfd, *arguments)
        assert code == 2 and words in complaint and "Traceback" not in complaint
    assert not (tmp_path / "p.safetensors").exists() and not (tmp_path / "r").exists()
    assert sorted(path.name for path in photograph.parent.iterdir()) == ["photo.jpg"]


def test_it_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "sodlib", "--help"], capture_output=True, text=True, check=True)
    assert "reproduce" in done.stdout and "study" in done.stdout
