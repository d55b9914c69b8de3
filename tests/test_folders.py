"""Photographs in one folder a class, against the same photographs decoded beforehand."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_pixels import packed, random_pairs

from sodlib import SodlibError, presets, runs
from sodlib.description import Run
from sodlib.folders import FolderPixels, find_folder
from sodlib.integrity import check_records
from sodlib.pixels import Stream
from sodlib.presets import PRESETS, Preset
from sodlib.study import Declared

SIDES = [(70, 64), (61, 80), (64, 64), (59, 90), (66, 70), (80, 62)]


@pytest.fixture
def root(tmp_path):
    """Six photographs of three classes, two each."""
    for index, (photograph, _) in enumerate(random_pairs(SIDES)):
        folder = tmp_path / "animals" / "train" / ("cat", "dog", "owl")[index // 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph).save(folder / f"{index}.png")
    (tmp_path / "animals" / "val").symlink_to("train")
    return tmp_path


def test_batches_are_those_of_decoded_images(root):
    """The same choices, inputs and classes as from pixels that lie decoded in memory."""
    folder = find_folder("animals/train", root)
    assert folder.class_names == ("cat", "dog", "owl") and folder.classes == (0, 0, 1, 1, 2, 2)
    decoded = packed(random_pairs(SIDES)).choose(range(6), folder.classes)
    streams = [Stream(pixels, 32, 3, seed=1) for pixels in (FolderPixels(folder), decoded)]
    for step in range(4):
        (images, classes), (wanted, wanted_classes) = (stream.batch(step) for stream in streams)
        assert torch.equal(images, wanted) and torch.equal(classes, wanted_classes)
    images, classes = FolderPixels(folder).squares([5, 0], 16)
    assert torch.equal(images, decoded.squares([5, 0], 16)[0]) and classes.tolist() == [2, 0]


def test_a_part_and_a_fingerprint(root):
    folder = find_folder("animals/train", root)
    part = folder.subset([4, 1], "two")
    assert (len(part), part.classes, part.class_names) == (2, (0, 2), folder.class_names)
    before = folder.fingerprint
    (root / "animals/train/cat/0.png").rename(root / "animals/train/dog/0.png")
    assert len({before, part.fingerprint, find_folder("animals/train", root).fingerprint}) == 3


def test_a_pretraining_takes_the_folder_that_the_preset_names(root, monkeypatch):
    settings = Preset(**{**vars(PRESETS["smoke"]), "pretraining": "animals", "pretraining_steps": 4, "batch": 2})
    monkeypatch.setitem(presets.PRESETS, "smoke", settings)
    pretraining, run = Run(pretraining="folder").chain
    where = runs.Surroundings(root / "results", root)
    record = runs.obtain(pretraining, "smoke", where)
    assert [entry["steps"] for entry in record.data["history"]] == [2, 4]
    assert record.data["images"] == {"animals/train": 6, "animals/val": 6} and record.model().classes == 3
    assert check_records(root / "results", [Declared(pretraining, ())], root) == []
    # Without a step, the stages are those of the classifier, and the rest is not.
    monkeypatch.setattr("sodlib.making.train", lambda *_, **__: [{"seconds": 0.0}])
    ours, theirs = runs.obtain(run, "smoke", where).model().state_dict(), record.model().state_dict()
    same = {name: torch.equal(value, theirs[name]) for name, value in ours.items() if value.shape == theirs[name].shape}
    assert all(equal for name, equal in same.items() if name.startswith("stage"))
    assert not all(equal for name, equal in same.items() if name.startswith("oct_fuse") and name.endswith("weight"))


def test_only_a_pretraining_depends_on_its_settings(monkeypatch):
    plain, pretrained = Run(), Run(pretraining="categories")
    before = plain.key("brief"), pretrained.key("brief")
    monkeypatch.setitem(PRESETS, "brief", Preset(**{**vars(PRESETS["brief"]), "pretraining_steps": 17}))
    assert plain.key("brief") == before[0] and pretrained.key("brief") != before[1]


def test_mistakes_are_told_in_one_sentence(root):
    with pytest.raises(SodlibError, match="No data root is given for animals/train: name it with --data"):
        find_folder("animals/train", None)
    with pytest.raises(SodlibError, match="birds/train holds no photographs in one folder a class: put them there"):
        find_folder("birds/train", root)
    (root / "animals/train/cat/0.png").write_bytes(b"none")
    pixels = FolderPixels(find_folder("animals/train", root))
    with pytest.raises(SodlibError, match=r"0\.png cannot be read as an image"):
        pixels.sides_of(np.array([0]))
    with pytest.raises(SodlibError, match=r"0\.png cannot be read as an image"):
        pixels.squares([0], 16)


def test_unknown_images_are_refused(tmp_path):
    with pytest.raises(SodlibError, match="unknown images 'boats' for a classifier; choose one of folder, categories"):
        runs.obtain(Run(pretraining="boats"), "smoke", runs.Surroundings(tmp_path))
