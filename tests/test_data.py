"""Reading saliency sets: layouts, names, splits, pixel formats, the check, and what bad input is told."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sodlib.data import (
    available_sets,
    data_root,
    find_set,
    is_validation,
    read_image,
    read_mask,
    read_pair,
)
from sodlib.errors import SodlibError
from sodlib.inspection import inspect_set, inspect_sets

# These images must never be trained on: a change of the split would make earlier runs incomparable.
VALIDATION_OF_THE_FIRST_100 = [4, 64, 70, 73, 83, 85, 93, 96]


def write_image(path, size=(6, 4), value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 20, 200)).save(path)
    return path


def write_mask(path, size=(6, 4), box=(1, 1, 3, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.new("L", size)
    if box:
        mask.paste(255, box)
    mask.save(path)
    return path


def make_set(folder, stems=("a", "b"), images="images", masks="masks", suffix=".jpg"):
    for value, stem in enumerate(stems):
        write_image(folder / images / f"{stem}{suffix}", value=10 * value)
        write_mask(folder / masks / f"{stem}.png")
    return folder


@pytest.fixture(autouse=True)
def _no_root_from_outside(monkeypatch, tmp_path):
    monkeypatch.delenv("SODLIB_DATA", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


# Layouts and names


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images", "masks"),
        ("Imgs", "GT"),
        ("images", "GT"),
        ("image", "mask"),
        ("imgs", "gt"),
        ("images", "ground_truth_mask"),
        ("DUTS-TR-Image", "DUTS-TR-Mask"),
        ("DUTS-TE-Image", "DUTS-TE-Mask"),
        ("DUT-OMRON-image", "pixelwiseGT-new-PNG"),
        ("datasets/imgs/pascal", "datasets/masks/pascal"),
        (".", "."),
    ],
)
@pytest.mark.parametrize("nested", [".", "an-archive"])
def test_layouts_of_public_archives(tmp_path, images, masks, nested):
    make_set(tmp_path / "ECSSD" / nested, ("b", "a"), images, masks)
    found = find_set("ECSSD", tmp_path)
    assert found.stems == ("a", "b")
    assert [path.suffix for path in found.images] == [".jpg", ".jpg"]
    assert [path.name for path in found.masks] == ["a.png", "b.png"]


def test_the_archive_of_pascal_s_holds_other_sets_too(tmp_path):
    for other in ("bruce", "pascal", "judd"):
        make_set(tmp_path / "PASCAL-S", (other,), f"datasets/imgs/{other}", f"datasets/masks/{other}")
    assert find_set("PASCAL-S", tmp_path).stems == ("pascal",)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".webp", ".BMP"])
def test_image_formats(tmp_path, suffix):
    found = find_set(str(make_set(tmp_path / "mine", suffix=suffix)))
    assert len(found) == 2
    image, mask = read_pair(found, 0)
    assert image.shape == (4, 6, 3)
    assert mask.shape == (4, 6)


@pytest.mark.parametrize(
    ("folder", "asked", "name"),
    [
        ("PASCALS", "PASCAL-S", "PASCAL-S"),
        ("DUT-O", "dut_omron", "DUT-OMRON"),
        ("DUTS_TE", "DUTS-TE", "DUTS-TE"),
        ("hku_is", "HKU-IS", "HKU-IS"),
        ("holiday", "holiday", "holiday"),
    ],
)
def test_other_names_of_a_set(tmp_path, folder, asked, name):
    make_set(tmp_path / folder)
    assert find_set(asked, tmp_path).name == name
    assert available_sets(tmp_path) == [name]


def test_exact_folder_name_comes_first(tmp_path):
    make_set(tmp_path / "DUTS-TE", ("right",))
    make_set(tmp_path / "DUTSTE", ("other",))
    assert find_set("DUTS-TE", tmp_path).stems == ("right",)


def test_root_from_the_environment_and_the_argument(tmp_path, monkeypatch):
    make_set(tmp_path / "one" / "SOD", ("a",))
    make_set(tmp_path / "two" / "SOD", ("b",))
    assert data_root() is None
    assert available_sets() == []
    monkeypatch.setenv("SODLIB_DATA", str(tmp_path / "one"))
    assert find_set("SOD").stems == ("a",)
    assert find_set("SOD", tmp_path / "two").stems == ("b",)


def test_relative_folder_needs_no_root(tmp_path, monkeypatch):
    make_set(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert len(find_set("mine")) == len(find_set("./mine")) == 2


def test_what_systems_leave_in_folders_is_no_image(tmp_path):
    folder = make_set(tmp_path / "SOD" / "an-archive")
    (folder / "images" / "Thumbs.db").write_bytes(b"x")
    (folder / "images" / "._a.jpg").write_bytes(b"x")
    make_set(tmp_path / "SOD" / "__MACOSX")
    assert find_set("SOD", tmp_path).stems == ("a", "b")


def test_embedded_set_is_read_without_a_root():
    for part in ("train", "validation", "test"):
        embedded = find_set(f"cutouts/{part}")
        image, mask = read_pair(embedded, 0)
        assert image.shape[:2] == mask.shape
        assert mask.max() > 127 > mask.min()


# What bad input is told


def test_no_root_names_the_ways_out():
    with pytest.raises(SodlibError, match=r"ECSSD.*--data.*SODLIB_DATA.*sodlib data fetch ECSSD"):
        find_set("ECSSD")


def test_missing_root_is_named(tmp_path, monkeypatch):
    with pytest.raises(SodlibError, match="nowhere"):
        find_set("ECSSD", tmp_path / "nowhere")
    monkeypatch.setenv("SODLIB_DATA", str(tmp_path / "gone"))
    with pytest.raises(SodlibError, match=r"gone.*SODLIB_DATA"):
        data_root()


def test_missing_set_lists_what_is_there(tmp_path):
    make_set(tmp_path / "SOD")
    with pytest.raises(SodlibError, match=r"no set ECSSD.*there: SOD, here"):
        find_set("ECSSD", tmp_path)
    with pytest.raises(SodlibError, match="no folder /no/such/folder"):
        find_set("/no/such/folder", tmp_path)
    with pytest.raises(SodlibError, match="empty"):
        find_set("", tmp_path)


def test_images_without_mask_are_counted_and_the_first_is_named(tmp_path):
    folder = make_set(tmp_path / "SOD", "abcd")
    (folder / "masks" / "b.png").unlink()
    (folder / "masks" / "d.png").unlink()
    with pytest.raises(SodlibError, match=r"b\.jpg has no mask \(2 of 4 .*sodlib data check SOD"):
        find_set("SOD", tmp_path)


def test_masks_without_image_are_left_aside(tmp_path):
    folder = make_set(tmp_path / "SOD", "abc")
    (folder / "images" / "b.jpg").unlink()
    found = find_set("SOD", tmp_path)
    assert found.stems == ("a", "c")
    assert [path.stem for path in found.masks] == ["a", "c"]


def test_no_images_and_no_layout(tmp_path):
    (tmp_path / "SOD" / "images").mkdir(parents=True)
    (tmp_path / "SOD" / "masks").mkdir()
    with pytest.raises(SodlibError, match="holds no images"):
        find_set("SOD", tmp_path)
    (tmp_path / "ECSSD" / "pictures").mkdir(parents=True)
    with pytest.raises(SodlibError, match="there: pictures"):
        find_set("ECSSD", tmp_path)
    assert available_sets(tmp_path) == []


def test_two_images_of_one_name(tmp_path):
    folder = make_set(tmp_path / "SOD")
    write_image(folder / "images" / "a.png")
    with pytest.raises(SodlibError, match=r"a\.jpg and a\.png share the name a"):
        find_set("SOD", tmp_path)


def test_a_root_is_no_set(tmp_path):
    make_set(tmp_path / "SOD")
    make_set(tmp_path / "ECSSD")
    with pytest.raises(SodlibError, match=r"several sets \(ECSSD, SOD\)"):
        find_set(tmp_path)


def test_sizes_that_differ_name_both_files(tmp_path):
    folder = make_set(tmp_path / "SOD", ("a",))
    write_mask(folder / "masks" / "a.png", (4, 6))
    with pytest.raises(SodlibError, match=r"a\.jpg is 6 x 4 pixels, .*a\.png is 4 x 6"):
        read_pair(find_set("SOD", tmp_path), 0)


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_unreadable_files_are_named(tmp_path, read):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    for suffix in ("jpg", "png", "webp", "bmp"):
        whole = io.BytesIO()
        Image.fromarray(noise).save(whole, "jpeg" if suffix == "jpg" else suffix)
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
        with pytest.raises(SodlibError, match=path.name):
            read(path)
    (tmp_path / "text.jpg").write_text("this is no image")
    (tmp_path / "empty.png").touch()
    for name in ("text.jpg", "empty.png", "missing.png"):
        with pytest.raises(SodlibError, match=name):
            read(tmp_path / name)


# Pixels


def save(tmp_path, image, name="x.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def test_grey_images_become_three_equal_channels(tmp_path):
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6)
    read = read_image(save(tmp_path, Image.fromarray(grey)))
    assert read.dtype == np.uint8
    assert np.array_equal(read, np.repeat(grey[..., None], 3, axis=2))


def test_alpha_is_dropped_not_blended(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 255, (4, 6, 4), np.uint8)
    assert np.array_equal(read_image(save(tmp_path, Image.fromarray(pixels))), pixels[..., :3])
    grey = Image.merge("LA", [Image.new("L", (6, 4), 70), Image.new("L", (6, 4), 0)])
    assert np.all(read_image(save(tmp_path, grey)) == 70)


def test_sixteen_bits_keep_their_upper_eight(tmp_path):
    values = np.array([[0, 255, 256, 40_000, 65_535]], np.uint16)
    path = save(tmp_path, Image.fromarray(values))
    assert read_mask(path).tolist() == [[0, 0, 1, 156, 255]]
    assert read_image(path)[..., 1].tolist() == [[0, 0, 1, 156, 255]]


def test_grey_without_a_scale_is_refused(tmp_path):
    for kind in (np.float32, np.int32):
        path = tmp_path / f"{kind.__name__}.tif"
        Image.fromarray(np.full((4, 6), 0.5 if kind is np.float32 else 200, kind)).save(path)
        for read in (read_image, read_mask):
            with pytest.raises(SodlibError, match="32-bit grey without a scale"):
                read(path)


def test_a_slash_at_the_end_is_no_part_of_a_name():
    assert find_set("cutouts/test/") == find_set("cutouts/test")


def test_a_folder_here_is_found_beside_a_data_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SODLIB_DATA", str(tmp_path / "root"))
    (tmp_path / "root").mkdir()
    for part, suffix in (("images", ".jpg"), ("masks", ".png")):
        (tmp_path / "mine" / part).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / "mine" / part / f"a{suffix}")
    assert find_set("./mine").stems == find_set("mine").stems == ("a",)


@pytest.mark.filterwarnings("error")
def test_palette_images_and_masks_are_read_by_colour(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 255, 255, 255, 10, 20, 30])
    image.putdata([1, 2])
    path = save(tmp_path, image, transparency=b"\x00\x80\xff")
    assert read_image(path).tolist() == [[[255, 255, 255], [10, 20, 30]]]
    assert read_mask(path)[0, 0] == 255


def test_one_bit_masks_become_0_and_255_and_greys_stay(tmp_path):
    bits = Image.new("1", (2, 1))
    bits.putpixel((1, 0), 1)
    assert read_mask(save(tmp_path, bits)).tolist() == [[0, 255]]
    greys = np.arange(256, dtype=np.uint8)[None]
    assert np.array_equal(read_mask(save(tmp_path, Image.fromarray(greys))), greys)
    colours = np.repeat(greys[..., None], 3, axis=2)
    assert np.array_equal(read_mask(save(tmp_path, Image.fromarray(colours))), greys)


def test_orientation_tag_is_applied_only_where_asked(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees to look at it
    path = save(tmp_path, Image.new("RGB", (6, 4)), "x.jpg", exif=exif)
    assert read_image(path).shape == (4, 6, 3)
    assert read_image(path, upright=True).shape == (6, 4, 3)


# Sets and splits


def test_subset_by_index_and_by_stem(tmp_path):
    whole = find_set(make_set(tmp_path / "mine", "abcd"))
    assert whole.subset([3, 1, 1], "two").stems == ("b", "d")
    assert whole.subset(["d", "b"], "two") == whole.subset([1, 3], "two")
    assert whole.subset(np.array([0]), "one").masks == whole.masks[:1]
    for wrong in ([4], [-1], ["e"]):
        with pytest.raises(SodlibError, match="has no image"):
            whole.subset(wrong, "none")


def test_fingerprint_sees_names_and_lengths_but_not_places(tmp_path):
    first, second = make_set(tmp_path / "one"), make_set(tmp_path / "two", masks="GT")
    assert find_set(first).fingerprint == find_set(second).fingerprint
    kept = find_set(first).fingerprint
    assert find_set(first).subset([0], "part").fingerprint != kept
    write_image(second / "images" / "a.jpg", (60, 40))
    assert find_set(second).fingerprint != kept
    (first / "images" / "a.jpg").rename(first / "images" / "A.jpg")
    (first / "masks" / "a.png").rename(first / "masks" / "A.png")
    assert find_set(first).fingerprint != kept


@given(st.text())
def test_about_one_stem_in_21_goes_to_validation(prefix):
    chosen = sum(is_validation(f"{prefix}{number}") for number in range(2_100))
    # 100 in the mean; 6 standard deviations of a fair draw are 59.
    assert 41 < chosen < 159


def test_validation_choice_is_fixed():
    chosen = [number for number in range(100) if is_validation(f"ILSVRC2012_test_{number:08d}")]
    assert chosen == VALIDATION_OF_THE_FIRST_100


def test_parts_of_duts_tr(tmp_path):
    stems = [f"ILSVRC2012_test_{number:08d}" for number in range(100)]
    make_set(tmp_path / "DUTS-TR", stems, suffix=".webp")
    whole, train, validation = (find_set(f"DUTS-TR{part}", tmp_path) for part in ("", "/train", "/validation"))
    assert sorted(train.stems + validation.stems) == list(whole.stems) == stems
    assert all(map(is_validation, validation.stems))
    assert len(validation) == len(VALIDATION_OF_THE_FIRST_100)
    ten, twenty = find_set("DUTS-TR/train-10", tmp_path), find_set("duts_tr/train-20", tmp_path)
    by_hash = sorted(train.stems, key=lambda stem: hashlib.sha256(stem.encode()).hexdigest())
    assert list(ten.stems) == sorted(by_hash[:10])
    assert list(twenty.stems) == sorted(by_hash[:20])
    assert twenty.name == "DUTS-TR/train-20"

    # The choice goes by stems alone: another encoding of the same images is split alike.
    make_set(tmp_path / "again" / "DUTS-TR", stems[::-1], suffix=".jpg")
    assert find_set("DUTS-TR/train-10", tmp_path / "again").stems == ten.stems

    with pytest.raises(SodlibError, match=f"more than the {len(train)} images"):
        find_set("DUTS-TR/train-2000", tmp_path)
    make_set(tmp_path / "ECSSD", [f"{number:04d}" for number in range(30)])
    some = find_set("ecssd/7", tmp_path)
    assert some.name == "ECSSD/7"
    assert list(some.stems) == sorted(
        sorted(find_set("ECSSD", tmp_path).stems, key=lambda stem: hashlib.sha256(stem.encode()).hexdigest())[:7]
    )
    with pytest.raises(SodlibError, match="ECSSD/31 asks for more than the 30 images"):
        find_set("ECSSD/31", tmp_path)
    with pytest.raises(SodlibError, match="no set DUTS-TR/train-0"):
        find_set("DUTS-TR/train-0", tmp_path)


# The check


def test_check_finds_everything_that_is_wrong(tmp_path):
    folder = make_set(tmp_path / "SOD", "abcdefghi")
    (folder / "masks" / "a.png").unlink()
    (folder / "images" / "b.jpg").unlink()
    (folder / "images" / "c.jpg").write_bytes((folder / "images" / "c.jpg").read_bytes()[:300])
    write_mask(folder / "masks" / "d.png", (9, 9))
    (folder / "images" / "f.jpg").write_bytes((folder / "images" / "e.jpg").read_bytes())
    (folder / "images" / "g.jpg").write_bytes((folder / "images" / "e.jpg").read_bytes() + b"another tail")
    Image.new("L", (6, 4), 1).save(folder / "masks" / "g.png")
    write_mask(folder / "masks" / "h.png", box=(0, 0, 6, 4))
    write_image(folder / "images" / "i.bmp", value=200)

    found = inspect_set("SOD", tmp_path)
    assert not found.usable
    assert found.counts.to_dict("records") == [
        {
            "set": "SOD",
            "images": 9,
            "masks": 8,
            "pairs": 7,
            "images without mask": 1,
            "two of a name": 1,
            "unreadable files": 1,
            "size mismatches": 1,
            "masks without image": 1,
            "same file": 1,
            "same pixels": 1,
            "empty masks": 1,
            "full masks": 1,
            "masks with greys": 1,
        }
    ]
    problems = {Path(file).name: text for file, text in zip(found.problems.file, found.problems.problem, strict=True)}
    assert problems["a.jpg"] == "no mask"
    assert problems["b.png"] == "no image"
    assert "cannot be read" in problems["c.jpg"]
    assert problems["d.jpg"] == "6 x 4 pixels, its mask 9 x 9"
    assert problems["f.jpg"] == "the same file as e.jpg"
    assert problems["g.jpg"] == "the same pixels as e.jpg"
    assert "largest value 1 of 255" in problems["g.png"]
    assert "all pixels above half" in problems["h.png"]
    assert problems["i.jpg"] == "the same name as i.bmp"


def test_check_of_sound_sets(tmp_path):
    for name in ("SOD", "ECSSD"):
        make_set(tmp_path / name)
    found = inspect_sets(available_sets(tmp_path), tmp_path)
    assert found.usable
    assert found.counts["set"].tolist() == ["ECSSD", "SOD"]
    assert found.counts["pairs"].tolist() == [2, 2]
    assert found.problems.empty
    with pytest.raises(SodlibError, match="no set to check"):
        inspect_sets([])


# Real sets


def test_real_sets(shared_data):
    train = find_set("DUTS-TR", shared_data)
    validation = find_set("DUTS-TR/validation", shared_data)
    lite = find_set("DUTS-TR/train-2000", shared_data)
    assert (len(train), len(validation), len(lite)) == (10_553, 503, 2_000)
    assert not set(validation.stems) & set(lite.stems)
    assert len(find_set("ECSSD", shared_data)) == 1_000
    for index in (0, 5_000, 10_552):
        image, mask = read_pair(train, index)
        assert image.shape[:2] == mask.shape
        assert set(np.unique(mask)) <= {0, 255}
