"""Category labels, and the parts of a set that follow from them."""

import importlib.util
from collections import Counter

import pytest
from conftest import REPOSITORY

from sodlib import labels
from sodlib.data import find_set, is_validation
from sodlib.errors import SodlibError


def load_script():
    spec = importlib.util.spec_from_file_location("make_labels", REPOSITORY / "data" / "labels" / "make_labels.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def stems(part):
    return labels.part(labels.categories("DUTS-TR").keys(), part, "DUTS-TR")


def test_every_labelled_image_is_there_once(shared_data):
    by_stem = labels.categories("DUTS-TR")
    named = [stem for stem in find_set("DUTS-TR", shared_data).stems if stem.startswith("n")]
    assert len(by_stem) == 7436 and sorted(by_stem) == named
    assert set(by_stem.values()) == {*labels.CATEGORIES, "other"}
    assert sorted(labels.categories("ECSSD")) == list(find_set("ECSSD", shared_data).stems)
    known = {*labels.CATEGORIES, *labels.UNSEEN, "other"}
    assert set(labels.categories("ECSSD").values()) <= known


def test_parts_do_not_overlap():
    train, test = stems("labelled"), stems("labelled-test")
    assert not train & test and not any(map(is_validation, train | test))
    assert 0.18 < len(test) / len(train | test) < 0.22
    for name in labels.CATEGORIES:
        without, fewer = stems(f"without-{name}"), stems(f"fewer-{name}")
        assert without < train and fewer < train and len(without) == len(fewer) != len(train)
        shown = labels.categories("DUTS-TR")
        assert name not in {shown[stem] for stem in without}
        # The control takes its images from everywhere.
        assert len({shown[stem] for stem in train - fewer}) > 6


def test_the_classification_set_is_that_of_the_paper_in_size():
    by_stem = labels.classes("DUTS-TR")
    train, validation, test = (stems(part) for part in ("classes", "classes-validation", "classes-test"))
    assert len(train) == 644 and len(test) == 150 and train | validation | test == set(by_stem)
    assert set(Counter(by_stem[stem] for stem in train).values()) == {64, 65}
    assert set(Counter(by_stem[stem] for stem in test).values()) == {15}
    # What a saliency network has been trained on tells nothing of test images, and holds all of the training images.
    assert train < stems("labelled") and test < stems("labelled-test")
    assert len(labels.class_names("DUTS-TR")) == len(labels.class_names("cutouts/train")) == 10


def test_parts_are_sets_by_name(shared_data):
    assert len(find_set("DUTS-TR/classes-test", shared_data)) == 150
    part = find_set("cutouts/train/without-fruit")
    assert part.name == "cutouts/train/without-fruit" and 0 < len(part) < 600
    assert labels.set_name("DUTS-TR", "classes-test") == "DUTS-TR/classes-test"
    assert labels.set_name("cutouts", "classes-test") == "cutouts/test/classes"
    with pytest.raises(SodlibError, match="HKU-IS has no category labels"):
        labels.categories("HKU-IS")


def test_two_passes_over_ecssd_agree():
    share, kappa = labels.agreement()
    assert 0.9 < kappa < share < 1


@pytest.mark.parametrize(
    ("synset", "expected"),
    [("bus", "vehicle"), ("cup", "container"), ("tie", "vehicle"), ("idea", "other"), ("n07930864", "container")],
)
def test_the_nearest_category_above_counts(synset, expected):
    tree = {"bus": ["n04524313"], "n04524313": ["n03094503"], "cup": ["n03094503"], "tie": ["n03094503", "n04524313"]}
    assert load_script().category(synset, tree) == expected


def test_wordnet_is_read_by_its_columns(tmp_path):
    (tmp_path / "data.noun").write_text(
        "  1 This software and database is being provided\n"
        "00001740 03 n 01 entity 0 001 ~ 00001930 n 0000 | that which is perceived\n"
        "00001930 03 n 02 thing 0 object 1 003 @ 00001740 n 0000 ~ 00002684 n 0000 @ 00003553 v 0000 | a thing\n"
    )
    hypernyms, words = load_script().read_wordnet(tmp_path / "data.noun")
    assert hypernyms == {"n00001740": [], "n00001930": ["n00001740"]} and words["n00001930"] == "thing"
