"""Runs, records and the training loop, on a few images of the embedded set."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import sodlib
from sodlib import records, study
from sodlib.data import find_set
from sodlib.page import Page
from sodlib.study import EVIDENCE, PRESETS, PUBLISHED_RATE, PUBLISHED_STEPS, STUDY, Pruning, Run
from sodlib.training import (
    Recipe,
    learning_rate_at,
    read_pairs,
    redundant_scale,
    seed_everything,
    train,
    training_batches,
)


@pytest.fixture(scope="module")
def pairs():
    return read_pairs(find_set("cutouts/train").subset(range(8), "eight"))


def trained(pairs, **options):
    seed_everything(0)
    model = sodlib.csnet()
    recipe = Recipe(**{"epochs": 2, "size": 32, "batch": 4, "learning_rate": 3e-3, **options})
    return model, train(model, pairs, pairs[:3], recipe)


@pytest.mark.parametrize("decay", ["standard", "dynamic", "dynamic-written"])
def test_training_learns_and_repeats(pairs, decay):
    model, history = trained(pairs, decay=decay, epochs=4)
    again, _ = trained(pairs, decay=decay, epochs=4)
    assert [entry["steps"] for entry in history] == [2, 4, 6, 8]
    assert history[-1]["loss"] < history[0]["loss"]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_decays_differ(pairs):
    models = [trained(pairs, decay=decay)[0] for decay in ("standard", "dynamic", "dynamic-written")]
    first = [model.stage0[0].conv1x1.bns["0"].weight.detach().numpy().tobytes() for model in models]
    assert len(set(first)) == 3


def test_schedule():
    rates = [learning_rate_at(step, 300, 1.0) for step in (0, 199, 200, 249, 250, 299)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_batches_are_seeded_and_complete(pairs):
    stream = training_batches(pairs, 32, 3, np.random.default_rng(1))
    first = [next(stream) for _ in range(5)]
    other = training_batches(pairs, 32, 3, np.random.default_rng(1))
    for images, targets in first:
        again = next(other)
        assert torch.equal(images, again[0]) and torch.equal(targets, again[1])
        assert images.shape == (3, 3, 32, 32) and targets.shape == (3, 1, 32, 32)
    with pytest.raises(sodlib.SodlibError, match="do not fill a batch of 9"):
        next(training_batches(pairs, 32, 9, np.random.default_rng(1)))


def test_a_loss_that_is_no_number_stops_the_training(pairs):
    with pytest.raises(sodlib.SodlibError, match="not a number in epoch 1"):
        trained(pairs, learning_rate=1e30)


def test_a_failed_training_leaves_no_hook_behind(pairs):
    model = sodlib.csnet()
    with pytest.raises(sodlib.SodlibError, match="not a number"):
        train(model, pairs, pairs[:3], Recipe(epochs=1, size=32, batch=4, learning_rate=1e30))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.fixture
def tiny(monkeypatch):
    preset = replace(PRESETS["smoke"], epochs=1, steps_per_epoch=1, batch=2, images=18, size=32, after_steps=2)
    monkeypatch.setitem(PRESETS, "smoke", preset)
    return preset


def test_a_run_becomes_a_record_once(tmp_path, tiny):
    run = Run(decay="standard", pruning=Pruning(share=0.5))
    record = study.obtain(run, "smoke", tmp_path, progress=lambda _: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([run.key("smoke"), run.parent.key("smoke")])
    assert json.loads(json.dumps(record.data["run"])) == run.description("smoke")["run"]
    assert record.data["parameters"] == sodlib.count_parameters(record.model())
    assert record.data["scores"]["cutouts/test"]["released"]["images"] == 18
    assert record.arrays["channel_deviation"].shape == (54,)

    def fail(_):
        raise AssertionError("a recorded run was made again")

    again = study.obtain(run, "smoke", tmp_path / "elsewhere", others=[tmp_path], progress=fail)
    assert again.data == record.data
    finetuned = replace(run, pruning=replace(run.pruning, afterwards="finetuned"))
    assert study.obtain(finetuned, "smoke", tmp_path, progress=lambda _: None).data["history"][0]["steps"] == 2


def test_nothing_is_written_when_a_run_fails(tmp_path, tiny):
    run = Run(pruning=Pruning(threshold=1e6))
    with pytest.raises(sodlib.SodlibError, match="no channel in"):
        study.obtain(run, "smoke", tmp_path, progress=lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == [run.parent.key("smoke")]
    with pytest.raises(sodlib.SodlibError, match="SODLIB_DATA"):
        study.obtain(Run(), "lite", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_keys_depend_on_every_choice():
    runs = [Run(), Run(width=2), Run(split="3/1"), Run(stages="3-4"), Run(decay="standard"), Run(decay_weight=1e-3)]
    runs += [Run(dynamic_weight=1), Run(seed=1), Run(pruning=Pruning(threshold=1e-3)), Run(pruning=Pruning(share=0.4))]
    keys = {run.key(preset) for run in runs for preset in PRESETS}
    assert len(keys) == len(runs) * len(PRESETS)
    assert Run().key("lite").startswith("csnet-x1-5-5_dynamic_lite_s0_")
    with pytest.raises(sodlib.SodlibError, match="unknown preset 'huge'"):
        Run().key("huge")


def test_long_presets_keep_rate_times_steps():
    """DUTS-TR without its validation split fills 418 batches of 24; a short schedule raises the rate instead."""
    for name in ("fast", "paper"):
        preset = PRESETS[name]
        assert preset.learning_rate * preset.epochs * 418 == pytest.approx(PUBLISHED_RATE * PUBLISHED_STEPS, rel=0.06)


def test_declared_runs_are_different():
    keys = [declared.run.key("lite") for declared in STUDY]
    assert len(set(keys)) == len(keys)


def test_evidence_is_chosen_for_all_runs_of_a_table(tmp_path):
    runs = [Run(), Run(seed=1)]
    assert study.best_preset(runs, tmp_path) is None
    for preset in EVIDENCE:
        records.write(tmp_path, runs[0].key(preset), {}, {})
    records.write(tmp_path, runs[1].key("fast"), {}, {})
    assert study.best_preset(runs, tmp_path) == "fast"


def test_committed_records_are_whole():
    """Every committed record belongs to the study, by its own description, and none is too large."""
    declared = {declared.run.key(preset): (declared.run, preset) for declared in STUDY for preset in PRESETS}
    for folder in records.RESULTS.glob("*/record.json"):
        record = records.Record(folder.parent)
        run, preset = declared[record.key]
        assert json.loads(json.dumps(run.description(preset))) == {k: record.data[k] for k in ("run", "preset")}
        assert record.data["history"] and record.arrays
        assert sum(path.stat().st_size for path in folder.parent.glob("*.*") if path.suffix != ".safetensors") < 300_000


def test_damaged_records_are_named(tmp_path):
    (tmp_path / "key").mkdir()
    (tmp_path / "key" / "record.json").write_text("{")
    with pytest.raises(sodlib.SodlibError, match=r"key.record\.json"):
        _ = records.find("key", tmp_path).data


def test_a_page_without_records_leaves_the_evidence_alone(monkeypatch):
    monkeypatch.setattr(study, "best_preset", lambda runs: None)
    monkeypatch.setattr(study, "obtain", lambda run, preset, place, *_: (preset, place))
    page = Page()
    made = page.records({"any": Run()})
    assert made == {"any": ("smoke", records.REPOSITORY / "build" / "smoke" / "results")}
    assert page.figures == records.REPOSITORY / "build" / "smoke" / "figures"
    assert page.tables == records.REPOSITORY / "build" / "smoke" / "tables"


def test_pages_write_beside_the_evidence(tmp_path):
    page = Page("smoke", output=str(tmp_path))
    assert page.figures == tmp_path / "figures" and page.tables == tmp_path / "tables"
    assert Page(fresh=True).output.parts[-2:] == ("build", "smoke")
    assert Page().tables == records.REPOSITORY / "results" / "tables"
    with pytest.raises(sodlib.SodlibError, match="unknown preset 'smok'"):
        Page("smok")
    with pytest.raises(sodlib.SodlibError, match="no folder"):
        Page(data=str(tmp_path / "nothing"))


def test_a_redundant_scale_vanishes_by_the_published_schedule_only():
    published = redundant_scale(PUBLISHED_RATE, 12_000, schedule=PUBLISHED_STEPS)
    assert published[9_000] > 0.05 and published[-1] < 1e-20
    assert redundant_scale(PUBLISHED_RATE, 3000, weight=0.5)[2999] == pytest.approx(published[2999], abs=0.1)
    assert redundant_scale(3e-3, 750)[-1] > 1e-2
