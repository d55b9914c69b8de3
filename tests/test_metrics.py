"""Scores against PySODMetrics, against the protocol written out in three lines, and on the released network."""

import warnings

import numpy as np
import py_sod_metrics
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

import sodlib
from sodlib.data import find_set
from sodlib.metrics import bootstrap, evaluate_all, f_measure, interval, score

levels = hnp.arrays(np.uint8, (7, 9), elements=st.integers(0, 255))


@given(levels, levels)
@settings(max_examples=50, deadline=None)
def test_released_protocol_written_out(saliency_map, truth):
    precision, recall, error = score(saliency_map, truth)
    salient = truth > 128
    for threshold in (0, 1, 77, 128, 254, 255):
        found = saliency_map > threshold
        hits = (found & salient).sum() + 1e-4
        assert precision[threshold] == pytest.approx(hits / (found.sum() + 1e-4))
        assert recall[threshold] == pytest.approx(hits / (salient.sum() + 1e-4))
    assert error == pytest.approx(np.abs(saliency_map.astype(float) - truth).mean() / 255)


@pytest.fixture
def maps(tmp_path):
    """Eight noisy maps with their ground truth, as a set and by stem."""
    random = np.random.default_rng(0)
    for folder in ("set/images", "set/masks", "maps"):
        (tmp_path / folder).mkdir(parents=True)
    by_stem = {}
    for index in range(8):
        truth = np.zeros((30, 40), np.uint8)
        truth[5 : 10 + index, 8:30] = 255
        noisy = np.clip(truth * random.uniform(0.3, 0.9) + random.normal(40, 40, truth.shape), 0, 255).astype(np.uint8)
        by_stem[f"{index}"] = noisy
        Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / f"set/images/{index}.jpg")
        Image.fromarray(truth).save(tmp_path / f"set/masks/{index}.png")
        Image.fromarray(noisy).save(tmp_path / f"maps/{index}.png")
    return find_set(tmp_path / "set"), by_stem, tmp_path / "maps"


def test_pysodmetrics_is_the_oracle_of_the_second_protocol(maps):
    dataset, by_stem, _ = maps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        f, error = py_sod_metrics.Fmeasure(), py_sod_metrics.MAE()
    for stem, mask in zip(dataset.stems, dataset.masks, strict=True):
        for metric in (f, error):
            metric.step(by_stem[stem], np.asarray(Image.open(mask)))
    result = sodlib.evaluate(by_stem, dataset, "pysodmetrics")
    np.testing.assert_allclose(result["curve"]["f"], f.get_results()["fm"]["curve"][::-1], atol=1e-12)
    assert result["mae"] == pytest.approx(error.get_results()["mae"], abs=1e-12)


def test_maps_in_a_folder_score_as_in_memory(maps):
    dataset, by_stem, folder = maps
    ours, theirs = sodlib.evaluate(folder, dataset), sodlib.evaluate(by_stem, dataset)
    assert ours["max_f"] == theirs["max_f"] and ours["mae"] == theirs["mae"] and ours["images"] == 8
    assert ours["max_f"] == ours["curve"]["f"].max()


def test_bootstrap_surrounds_the_score_and_is_paired(maps):
    dataset, by_stem, _ = maps
    for result in evaluate_all(by_stem, dataset).values():
        draws = bootstrap(result, 500)
        for name in ("max_f", "mae"):
            low, high = interval(draws[name])
            assert low < result[name] < high
        assert np.array_equal(bootstrap(result, 500)["max_f"], draws["max_f"])
    worse = sodlib.evaluate({stem: 255 - noisy for stem, noisy in by_stem.items()}, dataset)
    assert (bootstrap(worse, 500)["mae"] > bootstrap(sodlib.evaluate(by_stem, dataset), 500)["mae"]).all()


def test_f_measure_of_nothing_is_zero():
    assert f_measure(np.zeros(2), np.array([0.0, 1.0])).tolist() == [0, 0]
    assert f_measure(np.ones(1), np.ones(1)) == pytest.approx(1)


def test_maps_in_0_to_1_are_not_taken_for_grey_levels(maps):
    dataset, found, _ = maps
    for kind in (np.float32, bool):
        with pytest.raises(sodlib.SodlibError, match="give uint8"):
            sodlib.evaluate({stem: map_.astype(kind) for stem, map_ in found.items()}, dataset)


def test_bad_maps_are_named(maps):
    dataset, by_stem, _ = maps
    with pytest.raises(sodlib.SodlibError, match="no map for 3"):
        sodlib.evaluate({k: v for k, v in by_stem.items() if k != "3"}, dataset)
    with pytest.raises(sodlib.SodlibError, match=r"0\.png is 4 x 5"):
        sodlib.evaluate(by_stem | {"0": np.zeros((5, 4), np.uint8)}, dataset)
    with pytest.raises(sodlib.SodlibError, match="unknown protocol 'mean'"):
        sodlib.evaluate(by_stem, dataset, "mean")


def test_released_network_scores_as_published(released, shared_data):
    result = sodlib.evaluate(released, find_set("ECSSD", shared_data))
    assert result["images"] == 1000
    assert result["max_f"] == pytest.approx(0.916, abs=0.001)
    assert result["mae"] == pytest.approx(0.066, abs=0.001)
