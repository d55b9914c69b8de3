"""Whether a category that was left out is found worse: the changes, and the statistic over them."""

import numpy as np
import pytest

from sodlib import labels
from sodlib.errors import SodlibError
from sodlib.sensitivity import Sensitivity, sensitivity

NAMES = labels.CATEGORIES[:6]


def made(change, draws=20, noise=0.0):
    random = np.random.default_rng(0)
    drawn = change + noise * random.standard_normal((draws, *change.shape))
    return Sensitivity(np.concatenate([drawn, change[None]]), NAMES, NAMES, (50,) * 6)


def test_rows_and_columns_do_not_count():
    rows, columns = np.arange(6.0)[:, None], np.array([3.0, -1, 0, 2, 5, 1])
    assert made(rows + columns).own()[0] == pytest.approx(0)


def test_a_lower_diagonal_is_found():
    change = made(-1.0 * np.eye(6), noise=0.1)
    value, low, high = change.own()
    # By as much as it lies below the others, with six categories as with more.
    assert value == pytest.approx(-1) and low < value < high < 0
    # Only the true assignment of 720 gives it.
    assert change.chance() < 0.01
    assert made(np.eye(6)).chance() == 1


def test_no_effect_is_rarely_called_one():
    random = np.random.default_rng(1)
    values = [made(random.standard_normal((6, 6))).chance(200) for _ in range(60)]
    assert 0.3 < np.mean(values) < 0.7


def test_means_tell_own_from_others():
    assert made(np.ones((6, 6)) - 3 * np.eye(6)).means() == pytest.approx((-2, 1))


def test_the_category_that_loses_most():
    change = np.zeros((6, 6))
    change[0, 0], change[1, 2], change[3, 3], change[3, 4] = -1, -1, -2, -3
    assert made(change - 0.1 * np.eye(6)[::-1]).lowest() == (1, 6)


def test_a_control_is_taken_off_draw_by_draw():
    change = made(-1.0 * np.eye(6), noise=0.5)
    assert change.less(change).own() == (0, 0, 0)


class Scored:
    """A record of made-up curves: precision and recall of every image at two thresholds."""

    def __init__(self, level, images=1000):
        self.data = {"images": {"ECSSD": images}, "preset": {"images": None}}
        self.level, self.images = level, images

    def by_image(self, test_set):
        shown = np.array([labels.categories("ECSSD")[stem] for stem in sorted(labels.categories("ECSSD"))])
        level = np.where(shown == "vehicle", self.level, 0.8)[: self.images, None].repeat(2, 1).astype(np.float32)
        of_images = {"precision": level, "recall": level, "mae": 1 - level[:, 0]}
        return {"protocol": "released", "images": self.images, "per_image": of_images}


def test_changes_are_relative_and_by_category():
    found = sensitivity([Scored(0.8)] * 2, {"vehicle": [Scored(0.4)] * 2}, "ECSSD", resamples=5)
    assert found.rows == ("vehicle",) and "flower" in found.columns and "fruit" not in found.columns
    expected = [-50 if name == "vehicle" else 0 for name in found.columns]
    assert found.change[0] == pytest.approx(expected, abs=1e-4)
    fewest = sensitivity([Scored(0.8)], {}, "ECSSD", fewest=1, resamples=2)
    assert set(found.columns) < set(fewest.columns) and min(fewest.images) < 10 <= min(found.images)
    with pytest.raises(SodlibError, match="trained on everything"):
        sensitivity([], {"vehicle": []}, "ECSSD")
    with pytest.raises(SodlibError, match="same seeds"):
        sensitivity([Scored(0.8)] * 2, {"vehicle": [Scored(0.4)]}, "ECSSD")
    with pytest.raises(SodlibError, match="1000 labels for 10 images"):
        sensitivity([Scored(0.8, 10)], {"vehicle": [Scored(0.4, 10)]}, "ECSSD")
