"""Runs, records and the training loop, on a few images of the embedded set."""

import json
import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import sodlib
from sodlib import integrity, labels, records, runs, scoring, study, tuning
from sodlib.data import find_set, read_image
from sodlib.description import Pruning, Run
from sodlib.mean_mask import mean_mask
from sodlib.metrics import bootstrap, interval, score, score_batch
from sodlib.page import Page
from sodlib.pixels import open_pixels
from sodlib.prediction import quantise
from sodlib.presets import EVIDENCE, FIRST_FAST, PRESETS, PUBLISHED_RATE, PUBLISHED_STEPS
from sodlib.runs import Surroundings
from sodlib.study import STUDY
from sodlib.training import Recipe, learning_rate_at, redundant_scale, seed_everything, stays_below, train, validate
from sodlib.unfinished import Checkpoint, Paused


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    return open_pixels(find_set("cutouts/train").subset(range(8), "eight"), tmp_path_factory.mktemp("cache"))


def trained(pixels, checkpoint=None, deadline=math.inf, **options):
    seed_everything(0)
    model = sodlib.csnet()
    recipe = Recipe(**{"epochs": 2, "size": 32, "batch": 4, "learning_rate": 3e-3, **options})
    return model, train(model, pixels, pixels, recipe, checkpoint=checkpoint, deadline=deadline)


def same_weights(first, second):
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs)


TIMES = ("seconds", "scoring_seconds", "images_per_second")


def without_times(history):
    return [{name: v for name, v in entry.items() if name not in TIMES} for entry in history]


@pytest.mark.parametrize("decay", ["standard", "dynamic", "dynamic-written"])
def test_training_learns_and_goes_on_bit_for_bit(pixels, decay, tmp_path):
    """Stopped after every single step, it ends with the weights and the history of the training without a stop."""
    model, history = trained(pixels, decay=decay, epochs=4)
    assert [entry["steps"] for entry in history] == [2, 4, 6, 8]
    assert history[-1]["loss"] < history[0]["loss"]
    checkpoint, stops = Checkpoint(tmp_path / "run.pt"), 0
    while True:
        try:
            again, continued = trained(pixels, checkpoint, time.monotonic(), decay=decay, epochs=4)
            break
        except Paused:
            stops += 1
    assert stops == 7
    assert same_weights(model, again) and without_times(history) == without_times(continued)


def test_a_schedule_can_be_run_in_two_parts(pixels):
    _, whole = trained(pixels, epochs=3)
    first = trained(pixels, epochs=3, last_step=4)[1]
    second = trained(pixels, epochs=3, first_step=4)[1]
    assert without_times(first) == without_times(whole[:2])
    assert [(entry["epoch"], entry["learning_rate"]) for entry in second] == [(3, whole[2]["learning_rate"])]


def test_decays_differ(pixels):
    models = [trained(pixels, decay=decay)[0] for decay in ("standard", "dynamic", "dynamic-written")]
    first = [model.stage0[0].conv1x1.bns["0"].weight.detach().numpy().tobytes() for model in models]
    assert len(set(first)) == 3


def test_validation_counts_as_the_metrics_do(pixels):
    torch.manual_seed(0)
    maps, targets = torch.rand(3, 1, 16, 16), torch.rand(3, 1, 16, 16)
    expected = [score(quantise(m[0].numpy()), quantise(t[0].numpy())) for m, t in zip(maps, targets, strict=True)]
    for row, (precision, recall, error) in zip(score_batch(maps, targets).numpy(), expected, strict=True):
        np.testing.assert_allclose(row, [error, *precision, *recall], atol=1e-7)
    model, history = trained(pixels)
    assert validate(model, pixels, 32)["max_f"] == pytest.approx(history[-1]["validation_max_f"], abs=1e-9)
    assert validate(model, pixels, 32, batch=3) == pytest.approx(validate(model, pixels, 32), abs=1e-4)


def test_schedule():
    rates = [learning_rate_at(step, 300, 1.0) for step in (0, 199, 200, 249, 250, 299)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_a_loss_that_is_no_number_stops_the_training(pixels, tmp_path):
    checkpoint = Checkpoint(tmp_path / "run.pt")
    model = sodlib.csnet()
    with pytest.raises(sodlib.SodlibError, match="not a number before step 2"):
        train(model, pixels, pixels, Recipe(epochs=1, size=32, batch=4, learning_rate=1e30), checkpoint=checkpoint)
    assert not any(module._forward_hooks for module in model.modules())
    assert checkpoint.read() is None


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "run.pt")
    checkpoint.write({"step": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(sodlib.SodlibError, match=r"run\.pt.*No space left on device"):
        checkpoint.write({"step": 2})
    assert checkpoint.read() == {"step": 1} and [path.name for path in tmp_path.iterdir()] == ["run.pt"]
    checkpoint.path.write_bytes(b"half")
    with pytest.raises(sodlib.SodlibError, match=r"run\.pt: not a readable checkpoint"):
        checkpoint.read()


@pytest.fixture
def tiny(monkeypatch):
    preset = replace(PRESETS["smoke"], epochs=2, steps_per_epoch=2, batch=2, images=18, size=32, after_steps=2)
    monkeypatch.setitem(PRESETS, "smoke", preset)
    return preset


def recorded(place):
    return sorted(path.name for path in place.iterdir() if not path.name.startswith("."))


def test_a_checkpoint_knows_all_hardware_that_made_it(tmp_path):
    path = tmp_path / "run.pt"
    Checkpoint(path, hardware="a GPU").write({"step": 1})
    second = Checkpoint(path, hardware="a processor")
    assert second.read() == {"step": 1} and second.made_on == ["a GPU", "a processor"]
    second.write({"step": 2})
    third = Checkpoint(path, hardware="a GPU")
    third.read()
    assert third.made_on == ["a GPU", "a processor"]


def test_a_run_becomes_a_record_once(tmp_path, tiny):
    run = Run(decay="standard", pruning=Pruning(parameters=100_000))
    record = runs.obtain(run, "smoke", Surroundings(tmp_path))
    assert recorded(tmp_path) == sorted([run.key("smoke"), run.parent.key("smoke")])
    assert json.loads(json.dumps(record.data["run"])) == run.description("smoke")["run"]
    assert Run.described(record.data["run"]) == run
    assert record.data["parameters"] == sodlib.count_parameters(record.model())
    assert record.data["scores"]["cutouts/test"]["released"]["images"] == 18
    assert record.arrays["channel_deviation"].shape == (54,)
    again = interval(bootstrap(record.by_image("cutouts/test"))["mae"])
    assert again == pytest.approx(record.data["scores"]["cutouts/test"]["released"]["mae_interval"], abs=1e-6)
    with pytest.raises(sodlib.SodlibError, match="no curves by image"):
        record.by_image("ECSSD")
    parent = records.find(run.parent.key("smoke"), tmp_path)
    assert all("cutouts/test_mae" in entry for entry in parent.data["history"])
    assert not list((tmp_path / ".unfinished").glob("*.pt"))

    class Fails:
        def start(self, *_):
            raise AssertionError("a recorded run was made again")

    elsewhere = Surroundings(tmp_path / "elsewhere", others=[tmp_path], observer=Fails())
    assert runs.obtain(run, "smoke", elsewhere).data == record.data
    finetuned = replace(run, pruning=replace(run.pruning, afterwards="finetuned"))
    assert runs.obtain(finetuned, "smoke", Surroundings(tmp_path)).data["history"][0]["steps"] == 2


def test_a_try_is_scored_on_no_test_set(tmp_path, tiny, monkeypatch):
    monkeypatch.setitem(PRESETS, "smoke", replace(tiny, tests=(), follow=None))
    record = runs.obtain(Run(), "smoke", Surroundings(tmp_path))
    assert record.data["scores"] == {} and set(record.data["images"]) == {"cutouts/train", "cutouts/validation"}
    assert record.data["history"][-1]["validation_max_f"] > 0


def test_a_lost_network_is_trained_again_for_its_pruning(tmp_path, tiny):
    parent = runs.obtain(Run(), "smoke", Surroundings(tmp_path))
    weights = parent.folder / "weights.safetensors"
    before = parent.model()
    weights.unlink()
    assert runs.obtain(Run(), "smoke", Surroundings(tmp_path)).folder == parent.folder and not weights.exists()
    runs.obtain(Run(pruning=Pruning(parameters=100_000)), "smoke", Surroundings(tmp_path))
    assert same_weights(records.find(parent.key, tmp_path).model(), before)


def test_the_written_recipe_prunes_within_the_schedule(tmp_path, tiny):
    run = Run(recipe="written", pruning=Pruning(parameters=100_000, afterwards="finetuned"))
    record = runs.obtain(run, "smoke", Surroundings(tmp_path))
    parent = records.find(run.parent.key("smoke"), tmp_path)
    assert [entry["steps"] for entry in parent.data["history"]] == [2]
    assert [entry["steps"] for entry in record.data["history"]] == [4]
    assert record.data["history"][0]["learning_rate"] < parent.data["history"][0]["learning_rate"]


def test_recalibration_goes_on_where_it_stopped(tmp_path, tiny):
    run = Run(pruning=Pruning(parameters=100_000))
    whole = runs.obtain(run, "smoke", Surroundings(tmp_path / "whole"))
    runs.obtain(run.parent, "smoke", Surroundings(tmp_path))
    with pytest.raises(Paused):
        runs.obtain(run, "smoke", Surroundings(tmp_path, deadline=time.monotonic()))
    assert Checkpoint(runs.checkpoint_file(tmp_path, run.key("smoke"))).read()["step"] == 1
    assert same_weights(runs.obtain(run, "smoke", Surroundings(tmp_path)).model(), whole.model())


def test_nothing_is_written_when_a_run_fails(tmp_path, tiny):
    run = Run(pruning=Pruning("luck", parameters=100_000))
    with pytest.raises(sodlib.SodlibError, match="unknown criterion 'luck'"):
        runs.obtain(run, "smoke", Surroundings(tmp_path))
    assert recorded(tmp_path) == [run.parent.key("smoke")]
    with pytest.raises(sodlib.SodlibError, match="SODLIB_DATA"):
        runs.obtain(Run(), "lite", Surroundings(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_no_memory_is_said_in_one_sentence(tmp_path, tiny, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("sodlib.making.train", full)
    with pytest.raises(sodlib.SodlibError, match="memory ran out; run fewer --jobs"):
        runs.obtain(Run(), "smoke", Surroundings(tmp_path))


def test_a_lost_test_image_costs_the_evaluation_alone(tmp_path, tiny, monkeypatch):
    def lost(*_):
        raise sodlib.SodlibError("There is no file 0001.jpg: check the name.")

    with monkeypatch.context() as patch, pytest.raises(sodlib.SodlibError, match=r"0001\.jpg"):
        patch.setattr(scoring, "evaluate_all", lost)
        runs.obtain(Run(), "smoke", Surroundings(tmp_path))
    assert recorded(tmp_path) == []
    steps = []

    class Counts(runs.Silent):
        def step(self, done):
            steps.append(done)

    runs.obtain(Run(), "smoke", Surroundings(tmp_path, observer=Counts()))
    assert steps == []


def test_a_width_has_one_key():
    assert Run(width=2.0).key("brief") == Run(width=2).key("brief") != Run(width=1.5).key("brief")


def test_the_end_of_the_time_is_no_damaged_photograph(tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)

    def alarm(*_):
        raise Paused

    monkeypatch.setattr("sodlib.data.to_rgb", alarm)
    with pytest.raises(Paused):
        read_image(path)


def test_keys_depend_on_every_choice():
    chosen = [Run(), Run(width=2), Run(split="3/1"), Run(stages="3-4"), Run(decay="standard"), Run(decay_weight=1e-3)]
    chosen += [Run(dynamic_weight=1), Run(seed=1), Run(recipe="written"), Run(pruning=Pruning(threshold=1e-3))]
    chosen += [Run(pruning=Pruning(redundant=True)), Run(pruning=Pruning(parameters=90_000))]
    chosen += [Run(pruning=Pruning(parameters=90_000, ranking="network"))]
    keys = {run.key(preset) for run in chosen for preset in PRESETS}
    assert len(keys) == len(chosen) * len(PRESETS)
    assert Run().key("lite").startswith("csnet-x1-5-5_dynamic_lite_s0_")
    with pytest.raises(sodlib.SodlibError, match="unknown preset 'huge'"):
        Run().key("huge")


def test_long_presets_keep_rate_times_steps():
    """DUTS-TR without its validation split fills 418 batches of 24; the first short schedule raised the rate."""
    for preset in (FIRST_FAST, PRESETS["paper"]):
        assert preset.learning_rate * preset.epochs * 418 == pytest.approx(PUBLISHED_RATE * PUBLISHED_STEPS, rel=0.06)


def test_both_rates_of_a_preset_stand_side_by_side():
    found = tuning.at_rates([Run()])
    assert {run.learning_rate for run in found.records} == {preset.learning_rate for preset in tuning.RATES}
    for (run, several), preset in zip(found.records.items(), tuning.RATES, strict=True):
        assert [record.data["preset"]["learning_rate"] for record in several] == [run.learning_rate]
        assert several[0].key == Run().key(preset.name)
    tries = tuning.tried().query("`tried for` == 'fast'").set_index("learning rate")
    assert tries["validation max F"].idxmax() == PRESETS["fast"].learning_rate, "the preset has the better rate"


def test_evidence_is_chosen_for_all_runs_of_a_table(tmp_path):
    wanted = [Run(), Run(seed=1)]
    assert study.best_preset(wanted, tmp_path) is None
    for preset in EVIDENCE:
        records.write(tmp_path, wanted[0].key(preset), {}, {})
    assert study.best_preset(wanted, tmp_path) == EVIDENCE[0], "none has them all, and none has more than the best"
    records.write(tmp_path, wanted[1].key("fast"), {}, {})
    assert study.best_preset(wanted, tmp_path) == "fast"


def test_committed_records_are_whole_and_small():
    assert integrity.check_records(records.RESULTS, STUDY) == []
    for record in records.every(records.RESULTS):
        assert record.data["history"] or record.data["run"]["activation_map"]
        assert sum(file.stat().st_size for file in record.folder.iterdir() if file.suffix != ".safetensors") < 300_000


def test_damaged_records_are_named(tmp_path):
    (tmp_path / "key").mkdir()
    (tmp_path / "key" / "record.json").write_text("{")
    with pytest.raises(sodlib.SodlibError, match=r"key.record\.json"):
        _ = records.find("key", tmp_path).data


@pytest.fixture
def no_seed_luck(monkeypatch):
    """A page asks no committed record what seeds do: these tests replace the records by names, and what a page learns
    of seeds is kept for the whole process."""
    monkeypatch.setattr(Page, "_seed_variances", lambda page, preset: {})


def test_a_page_without_records_leaves_the_evidence_alone(monkeypatch, no_seed_luck):
    monkeypatch.setattr(study, "best_preset", lambda runs: None)
    monkeypatch.setattr(runs, "obtain", lambda run, preset, where: (preset, where.place))
    page = Page()
    made = page.evidence("Table 5")["Table 5"]
    assert made.preset == PRESETS["smoke"] and made.seeds == (0,)
    assert set(made.records.values()) == {(("smoke", records.REPOSITORY / "build" / "smoke" / "results"),)}
    assert page.figures == records.REPOSITORY / "build" / "smoke" / "figures"
    assert page.tables == records.REPOSITORY / "build" / "smoke" / "tables"


def test_seeds_count_where_every_run_of_the_item_has_them(monkeypatch, no_seed_luck):
    recorded = {run.key("brief") for seed in (0, 2) for run in study.runs_of("Figure 10", seed)}
    recorded |= {run.key("brief") for run in study.runs_of("Figure 10", 1)[1:]}
    monkeypatch.setattr(records, "find", lambda key, *places: key if key in recorded else None)
    monkeypatch.setattr(runs, "obtain", lambda run, preset, where: run)
    made = Page().evidence("Figure 10")["Figure 10"]
    assert made.preset.name == "brief" and made.seeds == (0, 2)
    assert made.of(Run()) == (Run(), Run(seed=2))
    assert Page("brief", fresh=True).evidence("Figure 10")["Figure 10"].seeds == (0,)


def test_a_better_preset_with_one_seed_has_a_shorter_one_with_more_beside_it(monkeypatch, no_seed_luck):
    item = "Table 10"
    recorded = {run.key("brief") for seed in study.SEEDS for run in study.runs_of(item, seed)}
    monkeypatch.setattr(records, "find", lambda key, *places: key if key in recorded else None)
    monkeypatch.setattr(runs, "obtain", lambda run, preset, where: run)
    assert Page().repeated(item) is None, "the one that the page shows has all seeds"
    recorded |= {run.key("fast") for run in study.runs_of(item)}
    assert Page().evidence(item)[item].origin == "preset fast, seed 0"
    assert Page().repeated(item).origin == "preset brief, seeds 0, 1, 2"
    assert Page("fast").repeated(item) is None and Page(fresh=True).repeated(item) is None
    recorded.remove(study.runs_of(item, 2)[0].key("brief"))
    assert Page().repeated(item) is None


def test_what_is_not_recorded_stays_empty_on_a_committed_page(monkeypatch, no_seed_luck):
    recorded = {run.key("brief") for run in study.runs_of("Table 9") if run.decay == "dynamic"}
    monkeypatch.setattr(records, "find", lambda key, *places: key if key in recorded else None)
    monkeypatch.setattr(runs, "obtain", lambda run, preset, where: run)
    made = Page().evidence("Table 9")["Table 9"]
    lost = Run(width=2, decay="standard")
    assert made.preset.name == "brief" and made.of(study.X2) == (study.X2,) and made.of(lost) == ()
    assert Page("brief").evidence("Table 9")["Table 9"].of(lost) == (lost,), "a page that was told its preset makes it"


def test_pages_write_beside_the_evidence(tmp_path):
    page = Page("smoke", output=str(tmp_path))
    assert page.figures == tmp_path / "figures" and page.tables == tmp_path / "tables"
    for part, count in (("labelled", 12), ("classes", 10)):
        titles = [title for title, photograph in page.examples(part) if photograph.ndim == 3]
        assert len(set(titles)) == count and set(titles) <= set(labels.words("cutouts").values())
    assert Page(fresh=True).output.parts[-2:] == ("build", "smoke")
    assert Page().tables == records.REPOSITORY / "results" / "tables"
    with pytest.raises(sodlib.SodlibError, match="unknown preset 'smok'"):
        Page("smok")
    with pytest.raises(sodlib.SodlibError, match="no folder"):
        Page(data=str(tmp_path / "nothing"))


def test_a_redundant_scale_goes_the_way_of_adam():
    gamma = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    adam = torch.optim.Adam([gamma], lr=3e-3, betas=(0.9, 0.95), weight_decay=0.02)
    path = redundant_scale(3e-3, 600, 0.02, 0.95)
    for step in range(600):
        adam.param_groups[0]["lr"] = learning_rate_at(step, 600, 3e-3)
        gamma.grad = torch.zeros_like(gamma)
        adam.step()
        assert abs(gamma.item()) == pytest.approx(path[step], rel=1e-9, abs=1e-12)
    assert path[-1] < 0.1, "it has come some way"


def test_a_path_is_below_a_value_where_it_stays_there():
    path = np.array([1.0, 0.1, 0.5, 0.2, 0.1])
    assert stays_below(path, 0.4) == 3 and stays_below(path, 2.0) == 0 and np.isnan(stays_below(path, 0.1))


def test_a_redundant_scale_vanishes_by_the_published_schedule_only():
    published = redundant_scale(PUBLISHED_RATE, PUBLISHED_STEPS)
    assert published[9_000] > 0.05 and published[-1] < 1e-20
    assert redundant_scale(PUBLISHED_RATE, 3000, weight=0.5)[2999] == pytest.approx(published[2999], abs=0.1)
    assert redundant_scale(3e-3, 750)[-1] > 1e-2


def test_the_mean_mask_is_one_map_for_all(tmp_path, tiny, pixels):
    model = mean_mask(pixels, 32)
    _, masks = pixels.squares(range(8), 32)
    maps = torch.sigmoid(model(torch.randn(3, 3, 32, 32)))
    assert torch.equal(maps[0], maps[2]) and torch.allclose(maps[0], masks.mean(0), atol=1e-5)
    record = runs.obtain(study.CENTRE, "smoke", Surroundings(tmp_path))
    assert record.data["parameters"] == 0 and not record.has_weights
    assert not list(integrity.check_records(tmp_path, STUDY))
    scores = record.data["scores"]["cutouts/test"]["released"]
    assert 0.2 < scores["max_f"] < 0.6 and scores["images"] == 18
