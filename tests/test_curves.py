"""Curves by image, packed: what comes back, what a bootstrap of it says, and how many bytes it takes."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sodlib
from sodlib.curves import pack, unpack
from sodlib.data import find_set, read_mask
from sodlib.metrics import PROTOCOLS, _summary, bootstrap, evaluate_all, interval, paired, score
from sodlib.prediction import predict_set


@pytest.fixture(scope="module")
def images():
    return find_set("cutouts/test").subset(range(100), "100 cutouts")


@pytest.fixture(scope="module")
def maps(images):
    return dict(zip(images.stems, predict_set(sodlib.load("csnet-x1-fast"), images), strict=True))


@pytest.fixture(scope="module")
def scores(maps, images):
    return evaluate_all(maps, images)


@pytest.fixture(scope="module")
def worse_scores(maps, images):
    """The scores after every map was mixed with a little of the wrong answer."""
    masks = map(read_mask, images.masks)
    worse = {stem: (0.99 * maps[stem] + 0.01 * (255 - mask)) for stem, mask in zip(images.stems, masks, strict=True)}
    return evaluate_all({stem: levels.astype(np.uint8) for stem, levels in worse.items()}, images)


def through_file(scores):
    """Packed, written as in a record, and read again: the results by protocol, and the bytes of the file."""
    file = io.BytesIO()
    np.savez_compressed(file, **pack(scores))
    size = file.tell()
    file.seek(0)
    with np.load(file) as arrays:
        return {protocol: unpack(arrays, protocol) for protocol in scores}, size


def ends(result, name, resamples=1000):
    return np.array(interval(bootstrap(result, resamples)[name]))


@st.composite
def random_scores(draw):
    """Scores of random maps, from noise to nearly exact ones, of few or many levels."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    count, contrast, noise = draw(st.integers(1, 100)), draw(st.integers(0, 230)), draw(st.integers(0, 80))
    salient = random.random((count, 8, 8)) < random.random((count, 1, 1))
    levels = np.clip(20 + contrast * salient + noise * random.standard_normal(salient.shape), 0, 255).astype(np.uint8)
    pairs = list(zip(levels, salient * np.uint8(255), strict=True))
    return {protocol: _summary([score(*pair, protocol) for pair in pairs], protocol) for protocol in PROTOCOLS}


@given(random_scores())
@settings(max_examples=20, deadline=None)
def test_what_comes_back(scores):
    for protocol, result in through_file(scores)[0].items():
        exact, thresholds = scores[protocol], result["thresholds"]
        assert result["protocol"] == protocol and result["images"] == exact["images"]
        assert exact["curve"]["f"][thresholds].max() == exact["max_f"]
        assert len(thresholds) <= 65 and (np.diff(thresholds.astype(int)) > 0).all()
        for name in ("precision", "recall"):
            np.testing.assert_allclose(
                result["per_image"][name], exact["per_image"][name][:, thresholds], rtol=0, atol=0.501 / 255
            )
        np.testing.assert_allclose(ends(result, "mae"), ends(exact, "mae"), rtol=0, atol=1e-6)
        tolerance = 0.02 / exact["images"] ** 0.5  # of an interval about 2 / sqrt(images) wide
        np.testing.assert_allclose(ends(result, "max_f"), ends(exact, "max_f"), rtol=0, atol=tolerance)


def test_intervals_of_a_network_agree(scores):
    for protocol, result in through_file(scores)[0].items():
        for name, tolerance in (("max_f", 3e-4), ("mae", 1e-6)):
            expected = ends(scores[protocol], name, 10_000)
            np.testing.assert_allclose(ends(result, name, 10_000), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("count", "kilobytes"), [(1000, 50), (5019, 180)])
def test_size_on_a_benchmark(scores, count, kilobytes):
    # As many images as the benchmark has, none like another: each a mixture of two.
    random = np.random.default_rng(0)
    first, second = random.integers(0, 100, (2, count))
    share = random.random((count, 1))
    mixed = {}
    for protocol, result in scores.items():
        columns = (np.reshape(values, (100, -1)) for values in result["per_image"].values())
        precision, recall, mae = (share * values[first] + (1 - share) * values[second] for values in columns)
        mixed[protocol] = _summary(list(zip(precision, recall, mae[:, 0], strict=True)), protocol)
    assert through_file(mixed)[1] < kilobytes * 1000


def test_paired_shows_what_two_intervals_do_not(scores, worse_scores):
    packed, packed_worse = through_file(scores)[0], through_file(worse_scores)[0]
    for protocol in PROTOCOLS:
        first, second = scores[protocol], worse_scores[protocol]
        exact, kept = paired(first, second), paired(packed[protocol], packed_worse[protocol])
        for name in ("max_f", "mae"):
            (low, high), (other_low, other_high) = ends(first, name), ends(second, name)
            assert low < other_high and other_low < high, "the two intervals overlap"
            difference, low, high = exact[name]
            assert difference == pytest.approx(first[name] - second[name], abs=1e-6)
            assert low < difference < high and np.sign(low) == np.sign(high) == (1 if name == "max_f" else -1)
            assert kept[name] == pytest.approx(exact[name], abs=3e-4 if name == "max_f" else 1e-6)


def test_a_run_equals_itself(scores):
    for result in (scores["released"], *through_file(scores)[0].values()):
        assert paired(result, result, 100) == {"max_f": (0, 0, 0), "mae": (0, 0, 0)}


def test_what_cannot_be_compared_is_named(scores):
    packed = through_file(scores)[0]
    with pytest.raises(sodlib.SodlibError, match="100 images by released and 100 images by pysodmetrics"):
        paired(packed["released"], packed["pysodmetrics"])
    fewer = packed["released"] | {"per_image": {k: v[:9] for k, v in packed["released"]["per_image"].items()}}
    with pytest.raises(sodlib.SodlibError, match="100 images by released and 9 images by released"):
        paired(packed["released"], fewer)
    with pytest.raises(sodlib.SodlibError, match="'released/precision' is missing"):
        unpack(pack({"pysodmetrics": scores["pysodmetrics"]}), "released")
