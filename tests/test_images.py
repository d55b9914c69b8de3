"""Resizing against scikit-image, and what goes into the network and comes out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.transform import resize as skimage_resize

import sodlib
from sodlib.images import normalise, resize, to_input, to_target
from sodlib.prediction import predict, quantise

sides = st.integers(1, 60)


@given(sides, sides, sides, sides, st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_resize_is_scikit_images(height, width, new_height, new_width, seed):
    pixels = np.random.default_rng(seed).random((height, width), np.float32)
    expected = skimage_resize(pixels, (new_height, new_width), order=1, mode="reflect", anti_aliasing=False)
    ours = resize(torch.from_numpy(pixels), new_height, new_width).numpy()
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_inputs_are_the_released_ones(golden):
    """The oracle's photograph was rounded to 8 bits after resizing: half a grey level is the most it may differ."""
    archive = np.load(golden / "csnet-L-x2.npz")
    difference = to_input(archive["photo_rgb_uint8"], 224).numpy() - archive["x/photo"][0]
    assert np.abs(difference).max() <= 0.5001 / 255 / 0.224


def test_targets_keep_soft_borders():
    mask = np.zeros((50, 50), np.uint8)
    mask[10:33, 7:31] = 255
    target = to_target(mask, 32)
    assert target.shape == (1, 32, 32) and target.min() == 0 and target.max() == 1
    assert ((target > 0) & (target < 1)).any()


def test_normalise():
    grey = normalise(torch.full((3, 2, 2), 0.485))
    assert grey[0].abs().max() < 1e-6 and grey[1, 0, 0] == pytest.approx((0.485 - 0.456) / 0.224)


def test_maps_are_cut_not_rounded():
    assert quantise(np.array([0, 0.999, 1.0, 1.2, -0.1], np.float32)).tolist() == [0, 254, 255, 255, 0]


def test_predict_takes_files_pictures_and_arrays(tmp_path, released):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    maps = [predict(released, source) for source in (pixels, Image.fromarray(pixels), tmp_path / "photo.png")]
    assert maps[0].shape == (40, 50) and maps[0].dtype == np.float32
    assert np.array_equal(maps[0], maps[1]) and np.array_equal(maps[0], maps[2])
    assert predict(released, pixels[..., 0]).shape == (40, 50)
    for bad in (pixels.astype(float), pixels[None], pixels[:0]):
        with pytest.raises(sodlib.SodlibError, match="uint8"):
            predict(released, bad)
    for bad in (Image.new("F", (3, 3)), Image.new("RGB", (0, 3))):
        with pytest.raises(sodlib.SodlibError, match=r"32-bit grey|must have pixels"):
            predict(released, bad)
    with pytest.raises(sodlib.SodlibError, match="size 0"):
        predict(released, pixels, size=0)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "photo.png").read_bytes()[:60])
    with pytest.raises(sodlib.SodlibError, match=r"cut\.jpg"):
        predict(released, tmp_path / "cut.jpg")
