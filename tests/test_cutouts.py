"""The embedded data set, the photographs beside it, and the generator that rebuilds the set."""

import csv
import hashlib
import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DATA = Path(__file__).resolve().parents[1] / "data"
CUTOUTS = DATA / "cutouts"
SPLITS = {"train": 600, "validation": 150, "test": 150}


def rows(path):
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def labels():
    return rows(CUTOUTS / "labels.csv")


@pytest.fixture
def generator(monkeypatch):
    monkeypatch.syspath_prepend(str(DATA))
    import make_cutouts

    return make_cutouts


@pytest.mark.parametrize(("split", "count"), SPLITS.items())
def test_every_image_has_its_label_and_a_sound_mask(labels, split, count):
    images = {path.stem: path for path in (CUTOUTS / split / "images").iterdir()}
    masks = {path.stem: path for path in (CUTOUTS / split / "masks").iterdir()}
    assert len(images) == count
    assert images.keys() == masks.keys()
    assert {row["file"] for row in labels if row["split"] == split} == {
        f"{split}/images/{path.name}" for path in images.values()
    }
    for stem, path in images.items():
        with Image.open(path) as image, Image.open(masks[stem]) as mask:
            assert image.size == mask.size, stem
            assert max(image.size) == 160 or image.size == (144, 144)
            assert (image.mode, mask.mode) == ("RGB", "1")
            assert 0.03 <= np.asarray(mask).mean() <= 0.60, stem


def test_objects_and_backgrounds_never_repeat_across_splits(labels):
    for column in ("objects", "background"):
        seen = {split: set() for split in SPLITS}
        for row in labels:
            seen[row["split"]].update(row[column].split())
        assert not seen["train"] & seen["validation"]
        assert not seen["train"] & seen["test"]
        assert not seen["validation"] & seen["test"]


def test_no_source_photograph_is_listed_under_two_splits():
    for name in ("objects.csv", "backgrounds.csv"):
        splits = {}
        for row in rows(CUTOUTS / name):
            splits.setdefault(row["sha256"], set()).add(row["split"])
        assert all(len(found) == 1 for found in splits.values())


def test_each_split_holds_all_categories_about_equally(labels):
    categories = {row["category"] for row in labels}
    assert 10 <= len(categories) <= 12
    for split, count in SPLITS.items():
        counts = Counter(row["category"] for row in labels if row["split"] == split)
        assert counts.keys() == categories
        assert min(counts.values()) >= count // len(categories)


def test_labels_name_listed_sources_only(labels):
    objects = {row["file"]: row for row in rows(CUTOUTS / "objects.csv")}
    backgrounds = {row["name"]: row for row in rows(CUTOUTS / "backgrounds.csv")}
    for row in labels:
        for file in row["objects"].split():
            assert (objects[file]["split"], objects[file]["category"]) == (row["split"], row["category"])
        assert {backgrounds[name]["split"] for name in row["background"].split()} == {row["split"]}


def test_everything_together_is_small():
    files = [path for part in ("cutouts", "photos") for path in (DATA / part).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 6e6


def test_every_source_has_a_free_licence_and_an_author():
    free = {"public domain", "CC0-1.0", "CC-BY-4.0", "GPL-2.0-or-later", "GPL-3.0-or-later", "LGPL-3.0-only"}
    backgrounds = rows(CUTOUTS / "backgrounds.csv")
    assert {row["licence"] for row in backgrounds} <= free
    assert all(row["author"] for row in backgrounds)
    photos = rows(DATA / "photos" / "photos.csv")
    assert {row["file"] for row in photos} == {path.name for path in (DATA / "photos").glob("*.jpg")}
    assert {row["licence"] for row in photos} <= free | {"CC-BY-2.0", "CC-BY-SA-4.0"}
    assert all(row["author"] and row["source"] for row in photos)
    for row in photos:
        with Image.open(DATA / "photos" / row["file"]) as image:
            assert max(image.size) in range(440, 481)


def test_the_committed_images_come_out_byte_for_byte(generator, tmp_path):
    folders = os.environ.get("CUTOUTS_SOURCES", str(generator.BACKGROUNDS)).split(os.pathsep)
    stamps = [Path(folder) / "tuxpaint" / "stamps" for folder in folders]
    stamps = next((path for path in stamps if path.is_dir()), generator.STAMPS)
    sources = generator.Sources(CUTOUTS, stamps, [Path(folder) for folder in folders])
    if missing := ", ".join(sources.missing()):
        pytest.skip(f"source packages not installed ({missing}); CUTOUTS_SOURCES can name their folders")
    if generator.versions() != generator.RECORDED:
        pytest.skip(f"bytes were recorded with {generator.RECORDED}, this is {generator.versions()}")
    for split, number in (("train", 0), ("train", 311), ("validation", 7), ("test", 149)):
        image, mask, *_ = generator.make(sources, split, number)
        stem = f"{split}_{number:04d}"
        folder = tmp_path / stem
        generator.save(folder, stem, image, mask)
        for kind in ("images", "masks"):
            (made,) = (folder / kind).iterdir()
            assert made.read_bytes() == (CUTOUTS / split / kind / made.name).read_bytes(), stem


@pytest.fixture
def small_sources(generator, tmp_path):
    """Two categories of drawn stamps and one plain background for each use, in every split."""
    stamps, shared = tmp_path / "stamps", tmp_path / "share"
    stamps.mkdir()
    shared.mkdir()
    noise = np.random.default_rng(0)
    objects, backgrounds = (
        ["file,category,setting,split,sha256"],
        ["name,split,use,package,file,member,left,top,right,bottom,licence,author,sha256"],
    )

    def save(path, pixels):
        packed = io.BytesIO()
        Image.fromarray(pixels).save(packed, "PNG")
        path.write_bytes(packed.getvalue())
        return hashlib.sha256(packed.getvalue()).hexdigest()

    for split in SPLITS:
        for category, setting in (("ball", "lying"), ("box", "standing")):
            pixels = noise.integers(0, 255, (90, 80, 4), np.uint8)
            pixels[..., 3] = 255
            digest = save(stamps / f"{split}_{category}.png", pixels)
            objects.append(f"{split}_{category}.png,{category},{setting},{split},{digest}")
        for use in ("ground", "table", "wall", "field", "scene", "sky"):
            name = f"{split}_{use}"
            digest = save(shared / f"{name}.png", noise.integers(0, 255, (200, 300, 3), np.uint8))
            backgrounds.append(f"{name},{split},{use},drawn,{name}.png,,0,0,1,1,CC0-1.0,nobody,{digest}")
    (tmp_path / "objects.csv").write_text("\n".join(objects) + "\n")
    (tmp_path / "backgrounds.csv").write_text("\n".join(backgrounds) + "\n")
    return generator.Sources(tmp_path, stamps, [shared])


def test_generator_repeats_itself_and_keeps_the_object_in_the_mask(generator, small_sources):
    for number in range(4):
        image, mask, objects, names = generator.make(small_sources, "train", number)
        again = generator.make(small_sources, "train", number)
        assert image.tobytes() == again[0].tobytes()
        assert mask.tobytes() == again[1].tobytes()
        assert image.size == mask.size
        assert generator.AREA[0] < np.asarray(mask).mean() < generator.AREA[1]
        assert {item.split for item in objects} == {"train"}
        assert all(name.startswith("train_") for name in names)
    assert image.tobytes() != generator.make(small_sources, "train", 0)[0].tobytes()


def test_generator_writes_pairs_and_labels(generator, small_sources, tmp_path):
    out = tmp_path / "out"
    generator.write(small_sources, out, {"train": 3, "test": 2})
    assert [row["file"] for row in rows(out / "labels.csv")] == [
        *(f"train/images/train_{number:04d}.webp" for number in range(3)),
        *(f"test/images/test_{number:04d}.webp" for number in range(2)),
    ]
    assert len(list(out.rglob("*.webp"))) == len(list(out.rglob("*.png"))) == 5


def test_generator_names_the_missing_package_and_the_changed_file(generator, small_sources):
    background = small_sources.backgrounds[0]
    path = small_sources.folders[0] / background.file
    path.write_bytes(b"another version")
    with pytest.raises(SystemExit, match=f"{background.file} differs"):
        small_sources.background(background)
    path.unlink()
    assert small_sources.missing() == ["drawn"]
    with pytest.raises(SystemExit, match="install the Debian package drawn"):
        small_sources.background(background)
