"""What records say together: scores, paired differences, seeds, and the paper's numbers beside ours."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from scipy import stats

import sodlib
from sodlib import charts, metrics, paper, records, seeds, study
from sodlib.description import CENTRE, Run
from sodlib.evidence import MEASURES, Estimate, Evidence
from sodlib.page import Page, _counted_clips
from sodlib.presets import preset_named
from sodlib.provenance import provenance
from sodlib.seeds import SeedVariance
from sodlib.verdicts import effects, no_loss, same_sign, with_seeds

IMAGES = 60


class Recorded:
    """A record without a folder: random curves, better by `shift` on every image."""

    def __init__(self, seed=0, shift=0.0, parameters=1000):
        random = np.random.default_rng(seed)
        levels = np.linspace(0, 1, 8)
        quality = random.uniform(0.5, 0.7, (IMAGES, 1)) + shift
        self.result = {
            "protocol": "released",
            "images": IMAGES,
            "per_image": {
                "precision": (quality + 0.2 * levels).clip(0, 1),
                "recall": (quality - 0.3 * levels + 0.2).clip(0, 1),
                "mae": (1 - quality[:, 0]) / 2,
            },
        }
        self.data = {
            "parameters": parameters,
            "macs": {"paper": 3 * 10**8, "conv": 2 * 10**8},
            "images": {"DUTS-TR/train-2000": 2000, "ECSSD": IMAGES},
            "hardware": "a machine, 2 cores",
            "history": [{"validation_max_f": 0.5 + shift, "validation_mae": 0.2}],
            "scores": {"ECSSD": {"released": {"max_f": self.max_f(), "mae": self.result["per_image"]["mae"].mean()}}},
        }

    def max_f(self):
        precision, recall = (self.result["per_image"][name].mean(0) for name in ("precision", "recall"))
        return (1.3 * precision * recall / (0.3 * precision + recall)).max()

    def by_image(self, test_set):
        assert test_set == "ECSSD"
        return self.result


FIRST, SECOND = Run(), Run(decay="standard")
DECLARED = {entry.run for entry in study.STUDY}
WHOLE, REDUNDANT, SIZED = seeds.POPULATIONS
LITTLE = {("ECSSD", measure, WHOLE): SeedVariance(1e-14, 1e6) for measure in MEASURES}
#: Seeds alone make a difference of 0.05 in max F, of pruned networks of 0.08.
LUCKY = {("ECSSD", "max_f", of): SeedVariance((luck / 1.96) ** 2 / 2, 1e6)
         for of, luck in ((WHOLE, 0.05), (REDUNDANT, 0.08))}  # fmt: skip


def evidence(first, second=(), seeds=(0,)):
    records = {FIRST: tuple(first), SECOND: tuple(second)}
    return Evidence("Table 6", preset_named("brief"), seeds, {run: found for run, found in records.items() if found})


def test_a_value_is_as_exact_as_in_the_record():
    record, coarse = Recorded(), Recorded()
    for name in ("precision", "recall"):
        coarse.result["per_image"][name] = coarse.result["per_image"][name].round(2)
    assert record.max_f() != coarse.max_f()
    assert evidence([coarse]).score(FIRST).value == record.max_f()


def test_a_single_seed_is_the_plain_bootstrap():
    record = Recorded()
    score = evidence([record]).score(FIRST)
    assert (score.low, score.high) == pytest.approx(
        metrics.interval(metrics.bootstrap(record.result)["max_f"]), abs=1e-6
    )
    f = metrics.f_measure(*(record.result["per_image"][name].mean(0) for name in ("precision", "recall")))
    assert score.value == pytest.approx(f.max(), abs=1e-6) and score.low < score.value < score.high
    assert evidence([record]).score(FIRST, "mae").value == pytest.approx(record.result["per_image"]["mae"].mean())
    assert evidence([record]).validation(FIRST) == 0.5


def test_differences_are_paired():
    """A gain on every image is told apart long before two intervals cease to overlap."""
    both = replace(evidence([Recorded(shift=0.01)], [Recorded()]), seed_variances=LITTLE)
    difference = both.difference(FIRST, SECOND)
    expected = metrics.paired(*(both.of(run)[0].result for run in (FIRST, SECOND)))["max_f"]
    assert (difference.value, difference.low, difference.high) == pytest.approx(expected, abs=1e-6)
    assert difference.sign == "higher" and both.score(FIRST).low < both.score(SECOND).high
    assert both.difference(SECOND, FIRST).sign == "lower"
    assert both.difference(FIRST, SECOND, "mae").sign == "lower"
    same = both.difference(FIRST, FIRST)
    assert (same.value, same.low, same.high) == (0, 0, 0) and same.sign == "not told apart"


def test_a_network_that_knows_no_more_than_the_mean_mask_settles_nothing():
    both = replace(evidence([Recorded(shift=0.05)], [Recorded()]), seed_variances=LITTLE)
    told = replace(both, records=both.records | {CENTRE: (Recorded(),)})
    assert told.knows_more(FIRST) and not told.knows_more(SECOND)
    for measure in ("max_f", "mae"):
        expected, blind = both.difference(FIRST, SECOND, measure), told.difference(FIRST, SECOND, measure)
        assert (blind.value, blind.low, blind.high) == (expected.value, expected.low, expected.high)
        assert blind.sign == "no more than the mean mask" == same_sign(0.1, blind) == no_loss(blind)
    assert told.difference(FIRST, CENTRE).sign == "higher"
    assert replace(both, records=both.records | {CENTRE: ()}).difference(FIRST, SECOND).sign == "higher"


def test_seeds_that_disagree_widen_the_interval():
    agree = evidence([Recorded(1, 0.01), Recorded(2, 0.01)], [Recorded(1), Recorded(2)], (0, 1)).difference(
        FIRST, SECOND
    )
    differ = evidence([Recorded(1, 0.03), Recorded(2)], [Recorded(1), Recorded(2, 0.01)], (0, 1)).difference(
        FIRST, SECOND
    )
    assert agree.value == pytest.approx(differ.value, abs=1e-3)
    assert agree.sign == "higher" and differ.sign == "not told apart"


def test_runs_without_a_record_leave_empty_cells():
    some = Evidence("Table 6", preset_named("brief"), (0,), {FIRST: (Recorded(),), SECOND: ()})
    assert np.isnan(some.score(SECOND).value) and np.isnan(some.validation(SECOND))
    difference = some.difference(FIRST, SECOND)
    assert difference.sign == "not recorded" == same_sign(0.1, difference) and str(difference) == ""
    table = some.table({"dynamic": FIRST, "standard": SECOND})
    assert table.loc["standard", ["parameters_k", "max_f"]].isna().all() and table.loc["standard", "max F, 95 %"] == ""
    assert effects([("a over b", 0.1, difference)])["ours, 95 %"].item() == ""
    assert some.caption.endswith("seed 0; 1 of 2 runs recorded so far")
    plt.close(charts.sizes_and_scores({"standard": [(94.0, some.score(FIRST)), (47.0, some.score(SECOND))]}, "partly"))


def test_the_paper_stands_beside_ours():
    both = evidence([Recorded(parameters=211_000)], [Recorded(1)])
    printed = pd.DataFrame(
        {"parameters_k": [211.0, 100.0], "macc_g": [0.61, 0.5], "max_f": [0.9, 0.8], "mae": [0.1, 0.2]}
    )
    table = both.table({"dynamic": FIRST, "standard": SECOND}, printed)
    assert table.loc["dynamic", ("parameters_k", "ours")] == 211 and table.loc["dynamic", ("max_f", "paper")] == 0.9
    assert table.loc["standard", ("max_f", "ours")] == both.score(SECOND).value
    assert list(table["macc_g"].columns) == ["paper", "ours"] and list(table["max_f"].columns) == [
        "paper",
        "ours",
        "95 %",
    ]
    alone = both.table({"dynamic": FIRST})
    assert list(alone) == ["parameters_k", "macc_g", "convolution_g", "max_f", "max F, 95 %", "mae", "MAE, 95 %"]
    with pytest.raises(sodlib.SodlibError, match="2 printed rows for 1 runs"):
        both.table({"dynamic": FIRST}, printed)
    with pytest.raises(sodlib.SodlibError, match="Table 6 has no run csnet-x2"):
        both.score(Run(width=2))
    figure = charts.beside_paper(table, [both.score(FIRST), both.score(SECOND)], both.where)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["dynamic", "standard"]
    plt.close(figure)


@pytest.mark.parametrize(
    ("printed", "value", "low", "high", "expected"),
    [
        (0.01, 0.02, 0.01, 0.03, "as in the paper"),
        (0.01, -0.02, -0.03, -0.01, "opposite"),
        (-0.01, -0.02, -0.03, -0.01, "as in the paper"),
        (0.01, 0.02, -0.01, 0.03, "not told apart"),
        (0.01, 0.0, 0.0, 0.0, "not told apart"),
        (None, 0.02, 0.01, 0.03, "higher"),
        (0.0, -0.02, -0.03, -0.01, "lower"),
    ],
)
def test_signs(printed, value, low, high, expected):
    ours = Estimate(value, low, high)
    assert same_sign(printed, ours) == expected
    row = effects([("a over b", printed, ours)]).iloc[0]
    assert row["here"] == expected and (np.isnan(row["paper"]) if printed is None else row["paper"] == printed)


def test_more_seeds_stand_beside_a_difference():
    ours = Estimate(0.02, 0.01, 0.03)
    table = effects([("dynamic over standard", 0.1, ours), ("nothing lost", 0.0, ours), ("not printed", None, ours)])
    pairs = [(FIRST, SECOND), (SECOND, FIRST), (SECOND, FIRST)]
    rows = [(*row, *pair) for row, pair in zip(table[["difference in max F", "paper"]].to_numpy(), pairs, strict=True)]
    assert with_seeds(table, None, rows) is table
    several = evidence([Recorded(1), Recorded(2)], [Recorded(1, 0.03), Recorded(2, 0.03)], seeds=(0, 1))
    more = with_seeds(table, several, rows, ["nothing lost"])
    said = more.pop("preset brief, seeds 0, 1")
    assert more.equals(table), "what was there stays"
    signs = ("opposite", "as in the paper", "higher")
    assert said.tolist() == [f"{several.difference(*pair)} {sign}" for pair, sign in zip(pairs, signs, strict=True)]


def test_a_caption_says_what_the_numbers_are_from():
    one = evidence([Recorded()])
    assert one.caption == "preset brief (1,000 steps of 8 at 64 × 64); ECSSD, n = 60 of 1,000; seed 0"
    two = evidence([Recorded(), Recorded(1)], seeds=(0, 1))
    lucky = replace(one, seed_variances=LUCKY)
    assert two.caption.endswith("mean of seeds 0, 1")
    assert replace(two, seed_variances=LUCKY).caption.endswith("mean of seeds 0, 1")
    assert lucky.caption.endswith("seed 0 (seeds alone may make a difference in max F of 0.050 as trained)")
    both = replace(lucky, records=one.records | {Run(pruning=study.REDUNDANT): (Recorded(),)})
    assert both.caption.endswith("in max F of 0.050 as trained, 0.080 without redundant channels)")
    text = provenance([one, two])
    assert text.count("Preset brief") == 1 and "2,000 of DUTS-TR/train-2000" in text and "Table 6 (0, 1)" in text
    assert "bfloat16" not in text
    one.of(FIRST)[0].data["hardware"] = "NVIDIA something"
    assert "bfloat16" in provenance([one])


def test_items_of_one_preset_can_stand_beside_each_other():
    one, other = evidence([Recorded()]), evidence((), [Recorded()])
    assert one.with_runs_of(other).records == one.records | other.records
    assert one.with_runs_of(replace(other, seeds=(0, 1))) is one
    assert one.with_runs_of(replace(other, preset=preset_named("lite"))) is one


def test_every_row_of_the_papers_tables_has_its_run():
    """The pages name runs by the printed rows; a row without a declared run would fail there."""
    declared = {item: set(study.runs_of(item)) for item in study.SHOWN}
    assert {Run(network="extractor", split=split) for split in ("1/0", "3/1", "5/5", "1/3", "0/1")} <= declared[
        "Table 6"
    ]
    for row in paper.table(11).itertuples():
        assert Run(width=row.width, pruning=study.REDUNDANT if row.pruned else None) in declared["Table 11"]
    for stages in paper.table(5)["stages"]:
        assert Run(width=2, stages=stages, pruning=study.REDUNDANT) in declared["Table 5"]
    for runs in declared.values():
        assert all(run.parent in runs for run in runs)
    with pytest.raises(sodlib.SodlibError, match="no declared run feeds 'Table 99'"):
        study.runs_of("Table 99")


def test_one_seed_settles_nothing_where_no_other_is_known():
    estimate = Estimate(0.02, 0.01, 0.03, one_seed=True)
    assert estimate.sign == "not known with one seed" == same_sign(0.02, estimate) == no_loss(estimate)
    assert Estimate(0.02, -0.01, 0.03, one_seed=True).sign == "not told apart"
    assert Estimate(0.02, 0.01, 0.03).sign == "higher"


@pytest.mark.parametrize("count", [2, 3, 5])
def test_an_interval_over_seeds_is_students(count):
    """Without images to draw, the interval of a mean is the textbook's, and so is that of every sum of values."""
    scores = np.random.default_rng(3).normal(size=(2, count))
    weights = seeds.seed_weights(count, 200_000)
    means = [seeds.mean_over_seeds(np.repeat(row[:, None], 200_000, 1), weights) for row in scores]
    for drawn, row in ((means[0], scores[0]), (means[0] - means[1], scores[0] - scores[1])):
        expected = stats.t.interval(0.95, count - 1, row.mean(), stats.sem(row))
        assert metrics.interval(drawn) == pytest.approx(expected, abs=0.02 * np.ptp(expected))


def test_one_seed_adds_nothing():
    values = np.random.default_rng(0).normal(size=(1, 10))
    assert np.array_equal(seeds.mean_over_seeds(values, seeds.seed_weights(1, 10)), values[0])


def test_what_seeds_do_is_known_from_other_trainings():
    shifts = [(0, 0.1), (0, 0.02), (0, 0.03), (0, 0.05)]
    trainings = [[Recorded(shift=shift) for shift in of_training] for of_training in shifts]
    scores = [[record.data["scores"]["ECSSD"]["released"]["mae"] for record in several] for several in trainings]
    known = seeds.seed_variances(trainings, ("max_f", "mae"))
    assert known["ECSSD", "mae"] == seeds.seed_variance(scores) and known["ECSSD", "mae"].freedom <= 4
    assert seeds.seed_variances(trainings[:3], ("mae",)) == {}, "three trainings are not enough"
    assert seeds.seed_variance([*scores, [0.3, 0.3]]) == known["ECSSD", "mae"], "a network without any variance"


@pytest.mark.parametrize("freedom", [3, 10, np.inf])
def test_the_variances_of_trainings_are_found_again(freedom):
    """Trainings whose variances are drawn as the method supposes: a value over a chi-square of so many degrees of
    freedom."""
    random = np.random.default_rng(0)
    chance = 1 if np.isinf(freedom) else freedom / random.chisquare(freedom, (50_000, 1))
    found = seeds.seed_variance(0.02 * np.sqrt(chance) * random.normal(size=(50_000, 3)))
    assert found.variance == pytest.approx(0.02**2, rel=0.03)
    assert found.freedom > 1000 if np.isinf(freedom) else found.freedom == pytest.approx(freedom, rel=0.15)


def test_a_few_trainings_are_worth_no_more_than_they_have():
    """Where they differ no more than by chance, or hardly more, and where they are all alike."""
    for deviations in (np.sqrt([2.8139672, 8.39962115, 4.10049082, 0.41699695]), [1.0, 1.0, 1.0, 1.0]):
        found = seeds.seed_variance([[0, deviation, 2 * deviation] for deviation in deviations])
        assert found.freedom == 8 and found.variance == pytest.approx(np.mean(np.square(deviations)))


def test_own_and_known_variance_are_weighed_by_their_freedom():
    known = SeedVariance(6.0, 3)
    assert known.spread([[0, 1, 2], [0, 2, 4]]) == (pytest.approx(np.sqrt(2 * (3 * 6 + 2 * 1 + 2 * 4) / 7 / 3)), 7)
    assert known.spread([[0, 1, 2]]) == (pytest.approx(np.sqrt((3 * 6 + 2 * 1) / 5 / 3)), 5)
    assert known.spread([[0], [1]]) == (pytest.approx(np.sqrt(12)), 3)
    assert SeedVariance().spread([[0, 1, 2]]) == (pytest.approx(stats.sem([0, 1, 2])), 2)
    assert SeedVariance().spread([[0], [1]]) == (0, 0)


@pytest.mark.parametrize("trainings", [6, 40])
def test_an_interval_whose_variance_was_found_from_few_trainings_covers_nearly_as_much(trainings):
    """Also where the two do not vary alike; 500 cases are off by 0.02 at most."""
    random, inside = np.random.default_rng(2), []
    for _ in range(500):
        scales = np.sqrt(5 / random.chisquare(5, (trainings + 2, 1)))
        scores = scales * random.normal(size=(trainings + 2, 3))
        spread, freedom = seeds.seed_variance(scores).spread(scores[:2])
        inside.append(abs(scores[0].mean() - scores[1].mean()) < spread * stats.t.ppf(0.975, freedom))
    assert np.mean(inside) > 0.9


def test_two_populations_bring_a_t_each():
    """What is known of one is not worth more because something is known of the other."""
    pruned, few = Run(pruning=study.REDUNDANT), 3
    both = {
        ("ECSSD", "max_f", WHOLE): SeedVariance(0.01**2, few),
        ("ECSSD", "max_f", REDUNDANT): SeedVariance(4e-4, few),
    }
    found = {run: (Recorded(),) for run in (FIRST, SECOND, pruned)}
    mixed = replace(evidence(()), records=found, seed_variances=both).difference(pruned, SECOND)
    drawn = 0.01 * stats.t.rvs(few, size=(2, 400_000), random_state=0) * [[1], [2]]
    assert (mixed.high - mixed.low) / 2 == pytest.approx(np.quantile(abs(drawn.sum(0)), 0.95), rel=0.02)
    assert not np.array_equal(seeds.student(few, 100), seeds.student(few, 100, 1))


@pytest.mark.parametrize("freedom", [3, 1e6])
@pytest.mark.parametrize("count", [1, 3])
def test_an_interval_with_other_trainings_covers_what_it_promises(freedom, count):
    """Differences of two trainings that vary alike, as any two at a preset: 95 % of the intervals hold the true one, of
    single seeds by their luck; and they are narrower than by three pairs alone."""
    random, cases = np.random.default_rng(1), 20_000
    chance = freedom / random.chisquare(freedom, cases)
    scores = 0.02 * np.sqrt(chance)[:, None, None] * random.normal(size=(cases, 2, count))
    known = seeds.SeedVariance(0.02**2, freedom)
    spreads, freedoms = np.transpose([known.spread(one) for one in scores])
    widths = stats.t.ppf(0.975, freedoms) * spreads
    if count == 1:
        assert widths == pytest.approx(known.luck)
    else:
        pairs = stats.t.ppf(0.975, count - 1) * stats.sem(scores[:, 0] - scores[:, 1], axis=1)
        assert widths.mean() < 0.7 * pairs.mean()
    differences = np.subtract(*scores.mean(2).T)
    assert np.mean(abs(differences) < widths) == pytest.approx(0.95, abs=0.01)


def test_seeds_count_between_trainings_of_one_seed():
    pruned, sized = Run(pruning=study.REDUNDANT), Run(pruning=study.MATCHED[0])
    found = {run: (Recorded(),) for run in (FIRST, SECOND, pruned, sized)}
    single = replace(evidence(()), records=found, seed_variances=LUCKY)

    def half(*runs):
        one = single.difference(*runs)
        return (one.high - one.low) / 2

    assert half(FIRST, SECOND) == pytest.approx(0.05, rel=0.01)
    assert half(pruned, SECOND) == pytest.approx(np.sqrt((0.05**2 + 0.08**2) / 2), rel=0.02), "of either its variance"
    assert half(pruned, FIRST) == 0, "of one training, on equal images"
    assert not single.difference(FIRST, SECOND).one_seed
    assert single.difference(FIRST, SECOND, "mae").one_seed and single.difference(sized, SECOND).one_seed
    assert not single.difference(sized, FIRST).one_seed
    several = evidence([Recorded()] * 4, [Recorded()] * 4, seeds=(0, 1, 2, 3))
    assert not several.difference(FIRST, SECOND).one_seed
    of_image = replace(single, seed_variances={})
    assert single.score(FIRST) == of_image.score(FIRST), "of that network"


def test_whose_variance_an_interval_takes():
    """Two trainings share what is known of their preset; a pruning and its training are pairs; the mean mask has no
    seeds."""
    pruned = Run(pruning=study.REDUNDANT)
    shifts = {FIRST: 0.1, SECOND: 0.05, pruned: 0.09, CENTRE: 0.0}
    found = {run: tuple(Recorded(seed, shift) for seed in range(3)) for run, shift in shifts.items()}
    known = replace(evidence((), seeds=(0, 1, 2)), records=found, seed_variances=LUCKY)
    unknown = replace(known, seed_variances={})

    def half(item, *runs):
        one = item.difference(*runs) if len(runs) > 1 else item.score(*runs)
        return (one.high - one.low) / 2

    # The images hardly matter: the curves of one seed differ by a shift alone.
    assert half(known, FIRST, SECOND) == pytest.approx(0.05 / np.sqrt(3), rel=0.1)
    assert half(known, pruned, SECOND) == pytest.approx(np.sqrt((0.05**2 + 0.08**2) / 6), rel=0.1)
    assert half(known, FIRST, CENTRE) == pytest.approx(0.05 / np.sqrt(6), rel=0.1)
    assert half(known, FIRST, pruned) == half(unknown, FIRST, pruned)
    assert half(known, CENTRE) == half(unknown, CENTRE)
    assert half(known, FIRST) != half(unknown, FIRST)


def test_a_pruning_that_destroys_a_network_is_seen_beside_the_mean_mask():
    pruned = Run(pruning=study.REDUNDANT)
    levels = {FIRST: 0.2, pruned: 0.0, CENTRE: 0.0}
    item = replace(evidence(()), records={run: (Recorded(shift=shift),) for run, shift in levels.items()})
    assert no_loss(item.difference(pruned, FIRST)) == "opposite"
    blind = replace(item, records=item.records | {FIRST: (Recorded(shift=0.001),)})
    assert no_loss(blind.difference(pruned, FIRST)) == "no more than the mean mask"


def test_the_luck_of_a_page_is_of_its_presets_trainings():
    known = Page().evidence("Figure 13")["Figure 13"].seed_variances
    assert {("ECSSD", measure, of) for measure in MEASURES for of in seeds.POPULATIONS} <= set(known)
    assert all(0 < one.luck < 0.1 for one in known.values())
    for pruning, of in ((None, WHOLE), (study.REDUNDANT, REDUNDANT)):
        several = [[records.find(replace(run, pruning=pruning, seed=seed).key("brief"), records.RESULTS) for seed in
                    study.SEEDS] for run in study.TRAININGS if replace(run, pruning=pruning) in DECLARED]  # fmt: skip
        scores = [[record.data["scores"]["ECSSD"]["released"]["mae"] for record in found] for found in several
                  if all(found)]  # fmt: skip
        assert known["ECSSD", "mae", of] == seeds.seed_variance(scores) and len(scores) > 10
    assert not any(run.pruning or run.images or run.seed for run in study.TRAININGS)


def test_clip_paths_have_names_that_do_not_change():
    drawn = [
        f'<clipPath id="{first}"/><clipPath id="{second}"/><g clip-path="url(#{first})"/>'
        for first, second in (("p0123456789", "pabcdef0123"), ("p9876543210", "p0000000000"))
    ]
    named = '<clipPath id="clip0"/><clipPath id="clip1"/><g clip-path="url(#clip0)"/>'
    assert [_counted_clips(svg) for svg in drawn] == [named, named]
