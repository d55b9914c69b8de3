"""The uint8 cache and the batches cut out of it, against one image at a time by NumPy and `images.resize`."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import sodlib
from sodlib import pixels as module
from sodlib.data import find_set, read_pair
from sodlib.images import to_input, to_target
from sodlib.pixels import Pixels, Stream, open_pixels


def packed(pairs):
    words = np.concatenate([np.concatenate([i, m[..., None]], 2).reshape(-1, 4) for i, m in pairs])
    sides = np.array([mask.shape for _, mask in pairs])
    starts = np.concatenate([[0], np.cumsum(sides.prod(1))[:-1]])
    return Pixels(torch.from_numpy(words).view(torch.int32).flatten(), sides, starts)


def random_pairs(sides, seed=0):
    random = np.random.default_rng(seed)
    return [(random.integers(0, 256, (*s, 3), np.uint8), random.integers(0, 256, s, np.uint8)) for s in sides]


@given(
    st.lists(st.tuples(st.integers(3, 40), st.integers(3, 40)), min_size=1, max_size=4),
    st.integers(1, 33),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_a_batch_is_what_one_image_at_a_time_gives(sides, size, seed):
    pairs = random_pairs(sides, seed)
    random = np.random.default_rng(seed)
    indices = random.integers(len(pairs), size=5)
    crops = np.array([[random.integers(0, s) for s in (h // 3 + 1, h // 3 + 1, w // 3 + 1, w // 3 + 1)] for h, w in
                      (sides[i] for i in indices)])  # fmt: skip
    flips = random.random((5, 2)) < 0.5
    images, targets = packed(pairs).cut(indices, size, crops, flips)
    assert images.is_contiguous(memory_format=torch.channels_last) and targets.shape == (5, 1, size, size)
    for b, index in enumerate(indices):
        top, bottom, left, right = crops[b]
        turn = (slice(None, None, -1 if flips[b, 0] else 1), slice(None, None, -1 if flips[b, 1] else 1))
        image, mask = (
            part[top : len(part) - bottom, left : part.shape[1] - right][turn].copy() for part in pairs[index]
        )
        torch.testing.assert_close(images[b], to_input(image, size), atol=2e-5, rtol=0)
        torch.testing.assert_close(targets[b], to_target(mask, size), atol=2e-6, rtol=0)


def test_the_released_augmentation():
    """Crops of 0 to 14 rows at the top and 1 to 15 at the bottom, columns likewise, none along short sides; half of
    the images flipped, as often left-right as up-down."""
    sides = np.array([[80, 80], [80, 59], [60, 90]])
    stream = Stream(_Sides(sides), 8, 3, seed=0)
    indices, crops, flips = (np.concatenate(parts) for parts in zip(*map(stream.choices, range(4000)), strict=True))
    assert sorted(np.bincount(indices)) == [4000] * 3
    long = crops[indices != 1]
    assert long.min(0).tolist() == [0, 1, 0, 1] and long.max(0).tolist() == [14, 15, 14, 15]
    np.testing.assert_allclose(long.mean(0), [7, 8, 7, 8], atol=0.2)
    assert (crops[indices == 1][:, 2:] == 0).all() and crops[indices == 1][:, 1].min() == 1
    assert not flips.all(1).any()
    np.testing.assert_allclose(flips.mean(0), [0.25, 0.25], atol=0.02)


def test_the_written_augmentation_flips_left_right_alone():
    stream = Stream(_Sides(np.full((10, 2), 80)), 8, 10, seed=0, augmentation="written")
    _, crops, flips = (np.concatenate(parts) for parts in zip(*map(stream.choices, range(400)), strict=True))
    assert not crops.any() and not flips[:, 0].any() and flips[:, 1].mean() == pytest.approx(0.5, abs=0.03)


class _Sides:
    """Sides without pixels: what `choices` needs."""

    def __init__(self, sides):
        self.sides = sides

    def __len__(self):
        return len(self.sides)

    def sides_of(self, indices):
        return self.sides[indices]


def test_a_batch_depends_on_seed_and_step_alone():
    pixels = packed(random_pairs([(64, 70)] * 7))
    one, other = Stream(pixels, 16, 3, seed=1), Stream(pixels, 16, 3, seed=1)
    later = [other.batch(step) for step in (5, 4, 3, 2, 1, 0)][::-1]
    for (images, targets), (again, targets_again) in zip(one.batches(6), later, strict=True):
        assert torch.equal(images, again) and torch.equal(targets, targets_again)
    assert not torch.equal(one.batch(0)[0], Stream(pixels, 16, 3, seed=2).batch(0)[0])
    # A pass takes every image at most once and drops what does not fill a batch.
    taken = np.concatenate([one.choices(step)[0] for step in range(one.per_pass)])
    assert one.per_pass == 2 and len(set(taken)) == 6


def test_parts_make_up_the_batch():
    pixels = packed(random_pairs([(64, 70)] * 6))
    whole = Stream(pixels, 16, 4, seed=0).batch(3)
    parts = [Stream(pixels, 16, 4, seed=0, part=(rank, 2)).batch(3) for rank in range(2)]
    assert all(
        torch.equal(torch.cat(pieces), full) for pieces, full in zip(zip(*parts, strict=True), whole, strict=True)
    )


def test_what_a_stream_refuses():
    pixels = packed(random_pairs([(20, 20)] * 6))
    for options, words in [
        ({"batch": 9}, "6 images do not fill a batch of 9"),
        ({"batch": 3, "part": (0, 2)}, "batch of 3 cannot be shared by 2"),
        ({"batch": 3, "augmentation": "none"}, "unknown augmentation 'none'"),
    ]:
        with pytest.raises(sodlib.SodlibError, match=words):
            Stream(pixels, 16, seed=0, **options)


def test_images_are_decoded_once(tmp_path, monkeypatch):
    chosen = find_set("cutouts/test").subset(range(5), "five")
    first = open_pixels(chosen, tmp_path)
    for index in range(5):
        image, mask = read_pair(chosen, index)
        images, targets = first.squares([index], 32)
        torch.testing.assert_close(images[0], to_input(image, 32), atol=2e-5, rtol=0)
        torch.testing.assert_close(targets[0], to_target(mask, 32), atol=2e-6, rtol=0)

    def decoded_again(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(module, "read_pair", decoded_again)
    assert torch.equal(open_pixels(chosen, tmp_path).words, first.words)
    (tmp_path / f"five-{chosen.fingerprint}" / "words").write_bytes(b"cut")
    with pytest.raises(sodlib.SodlibError, match=f"five-{chosen.fingerprint}.*delete it"):
        open_pixels(chosen, tmp_path)


def test_a_damaged_image_leaves_nothing_behind(tmp_path):
    source = find_set("cutouts/test").subset(range(3), "three")
    for kind, paths in (("images", source.images), ("masks", source.masks)):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for path in paths:
            (tmp_path / "set" / kind / path.name).write_bytes(path.read_bytes())
    broken = sorted((tmp_path / "set" / "images").iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(sodlib.SodlibError, match=broken.name):
        open_pixels(find_set(tmp_path / "set"), tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
    Image.open(source.images[1]).save(broken)
    assert len(open_pixels(find_set(tmp_path / "set"), tmp_path / "cache")) == 3


def test_a_cache_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(sodlib.SodlibError, match="decoded images cannot be kept there"):
        open_pixels(find_set("cutouts/test").subset([0], "one"), tmp_path / "file" / "cache")
