"""Verdicts follow from numbers by one rule."""

import json
import math

import numpy as np
import pytest
from conftest import REPOSITORY
from matplotlib import rc_context

from sodlib import (
    checkpoints,
    claims,
    cost,
    evidence,
    inventory,
    ledger,
    paper,
    pruned_claims,
    records,
    semantics,
    side_by_side,
)
from sodlib.evidence import KNOWS_MORE, Estimate
from sodlib.page import Page
from sodlib.sensitivity import Sensitivity
from sodlib.study import (
    AT_SIZE,
    CENTRE,
    DECAYS_COMPARED,
    HALVES,
    LOST,
    MATCHED,
    POSITION,
    PUBLISHED_SIZES,
    REDUNDANT,
    VANILLA,
    X1_5,
    Run,
    replace,
)
from sodlib.verdicts import AGREES, OPPOSITE, no_loss, verdict


@pytest.mark.parametrize(
    ("signs", "word"),
    [
        ([AGREES, AGREES], "reproduced"),
        ([AGREES, "not told apart"], "partly"),
        ([AGREES, OPPOSITE], "partly"),
        (["not told apart", OPPOSITE], "not reproduced"),
        (["not known with one seed"], "open"),
        (["not recorded"], "open"),
        ([], "not testable here"),
    ],
)
def test_the_word_of_a_claim(signs, word):
    assert verdict(signs) == word


def test_no_loss_needs_the_whole_interval():
    assert no_loss(Estimate(0.0, -0.009, 0.01)) == AGREES
    assert no_loss(Estimate(-0.03, -0.04, -0.02)) == OPPOSITE
    assert no_loss(Estimate(0.0, -0.02, 0.02)) == "not told apart"
    assert no_loss(Estimate(*[math.nan] * 3)) == "not recorded"
    assert no_loss(Estimate(-0.03, -0.04, -0.02, one_seed=True)) == "not known with one seed"


@pytest.fixture(scope="module")
def found():
    with rc_context():  # a page sets the style of all figures
        return Page().evidence(*ledger.ITEMS)


def test_every_claim_has_its_row(found):
    table = ledger.ledger(found, inventory.shipped())
    assert table["id"].tolist() == paper.claims()["id"].tolist()
    words = {"reproduced", "partly", "not reproduced", "open", "not testable here"}
    assert set(table["verdict"]) <= words and (table["here"] != "").all()
    pages = {path.stem for path in (REPOSITORY / "notebooks").glob("*.ipynb")}
    assert set(table["page"].dropna()) <= pages


def test_more_seeds_stand_beside_a_verdict_and_are_no_part_of_it(found):
    beside, item = "verdict with more seeds", "Table 9"
    nothing = replace(found[item], records=dict.fromkeys(found[item].records, ()))
    alone = ledger.ledger(found, {})
    assert beside not in alone
    for again, word in ((nothing, "open"), (found[item], alone.set_index("id")["verdict"]["table09"])):
        table = ledger.ledger(found, {}, {item: again}).set_index("id")
        assert table[beside].dropna().to_dict() == {"table09": f"{again.preset.name}, {len(again.seeds)} seeds: {word}"}
        assert table["here with more seeds"]["table09"].count("not recorded") == (2 if again is nothing else 0)
        assert (
            table["here"].tolist() == alone["here"].tolist() and table["verdict"].tolist() == alone["verdict"].tolist()
        )


def test_what_pruning_takes_away_is_a_cause_where_it_was_measured(found):
    class Measured:
        seeds = (0, 1)

        def __init__(self, *steps):
            self.by_step = steps

        def values(self, run):
            step = next(steps.index(run) for steps in LOST.values() if run in steps)
            return [0.8 + sum(self.by_step[:step]), 0.8]

    measured = Measured(0.001, -0.02, 0.0)
    assert pruned_claims.steps_lost(measured).loc[1.8].round(6).to_numpy().tolist() == [
        [0.001, -0.02, 0.0, -0.019],
        [0.0, 0.0, 0.0, 0.0],
    ]
    assert "each of 10 networks what pruning changes is, to 0.0010, what it changes to take" in pruned_claims.position(
        measured
    )
    assert (
        pruned_claims.position(Measured(0.001, -0.01, -0.01))
        == pruned_claims.position(Measured(0.001, -0.002, 0.0))
        == ""
    )
    item = found[POSITION]
    assert pruned_claims.position(replace(item, records=dict.fromkeys(item.records, ()))) == ""


def test_tables_1_and_2_as_printed_are_not_the_network_that_the_paper_counts():
    assert claims.fusion().signs == (OPPOSITE, AGREES, AGREES) and claims.fusion().ours.startswith("2 of the 10 rows")
    assert claims.extractor().signs == (OPPOSITE, AGREES) and "17 blocks 210.0K" in claims.extractor().ours


def test_test_images_are_named_where_they_decide(found):
    table = ledger.ledger(found, {}).set_index("id")
    counted = ["d", "table04", "figure04", "figure05", "figure10"]
    assert table.loc[counted, "test images"].isna().all() and table.loc[counted, "preset"].notna().all()
    assert table.loc["table05", "test images"] == 1000


def test_a_threshold_is_compared_at_the_papers_size_where_one_training_has_both(found):
    item = found["Table 10"]
    sized = replace(found[PUBLISHED_SIZES], preset=item.preset, seeds=item.seeds)
    assert "141K" in pruned_claims.thresholds(item, sized).ours
    other = replace(sized, seeds=(7,))
    assert "141K" not in pruned_claims.thresholds(item, other).ours
    assert len(pruned_claims.thresholds(item, sized).signs) == len(pruned_claims.thresholds(item, other).signs) + 2


def test_sections_of_the_ledger_are_headings_of_their_page(found):
    headings = {
        path.stem: {
            line.lstrip("# ").rstrip()
            for cell in json.loads(path.read_text())["cells"]
            if cell["cell_type"] == "markdown"
            for line in cell["source"]
            if line.startswith("#")
        }
        for path in (REPOSITORY / "notebooks").glob("*.ipynb")
    }
    for name, entry in ledger.entries(found, {}).items():
        assert entry.section in headings[entry.page], name


def test_every_part_of_a_claim_shows_how_it_stands(found):
    for name, entry in ledger.entries(found, inventory.shipped()).items():
        for sign in set(entry.signs):
            assert entry.ours.count(sign) >= entry.signs.count(sign), (name, sign)


def test_what_longer_trainings_say_is_no_part_of_a_verdict(found):
    entry, sized = ledger.entries(found, {})["figure13"], found[PUBLISHED_SIZES]
    standard = Run(decay="standard")
    for smaller in (AT_SIZE, HALVES):
        difference = sized.difference(smaller[Run()], smaller[standard])
        assert str(difference) and str(difference) in entry.ours.partition("no part of the verdict")[2]
    assert len(entry.signs) == len(MATCHED) + 1


def test_nothing_follows_from_runs_that_are_not_recorded(found):
    nothing = {name: replace(item, records=dict.fromkeys(item.records, ())) for name, item in found.items()}
    entries = ledger.entries(nothing, {})
    without_runs = {"headline", "table01", "table02", "table08"}
    for name in entries.keys() - without_runs:
        assert verdict(entries[name].signs) == "open", name
        assert "nan" not in entries[name].ours


@pytest.mark.parametrize("item", ledger.ITEMS)
def test_what_is_missing_stays_empty(found, item, monkeypatch):
    """One run without a record takes nothing else away."""
    monkeypatch.setattr(evidence, "_estimate", lambda by_seed, *_: Estimate(*[0.1 if by_seed else math.nan] * 3))
    monkeypatch.setattr(
        semantics, "sensitivity", lambda *given, **options: Sensitivity(np.ones((2, 2, 2)), *["ab"] * 2, (1, 2))
    )
    every = ledger.entries(found, {})
    for run in found[item].records:
        partly = replace(found[item], records={**found[item].records, run: ()})
        assert ledger.entries({**found, item: partly}, {}).keys() == every.keys()


def test_a_part_that_every_seed_must_show(found):
    item = found["Table 4"]
    saliency, classification = (
        [record.data["parameters"] for record in item.of(replace(run, pruning=REDUNDANT))] for run in X1_5.values()
    )
    ratios = np.divide(saliency, classification)
    limits = (ratios.min() / 2, ratios.mean(), ratios.max() * 2)
    assert len(ratios) == 3 and ratios.min() < ratios.mean() < ratios.max()
    assert semantics.tasks(item, *limits).signs == (OPPOSITE, "not told apart", AGREES)


def test_the_shares_of_the_low_resolution(found, monkeypatch):
    item = found["Figure 10"]
    run = Run(pruning=REDUNDANT)
    item = replace(item, seeds=(0,), records={one: item.of(one)[:1] for one in (run, Run())})
    entry = pruned_claims.resolutions(item)
    layers = {layer["layer"]: layer["out"] for layer in item.of(run)[0].data["plan"]["layers"]}
    low, every = (
        sum(part(outputs) for name, outputs in layers.items() if name.startswith("stage4.") and len(outputs) > 1)
        for part in (lambda outputs: outputs[1], sum)
    )
    assert f", {low / every:.0%} [" in entry.ours
    assert entry.signs == ("not known with one seed",) * (3 + 4)
    shares = pruned_claims.resolutions(replace(item, seeds=(0, 1), records={run: item.of(run) * 2, Run(): ()}))
    assert shares.ours.partition(" [")[0] == entry.ours.partition(" [")[0] and {AGREES, OPPOSITE} & set(shares.signs)
    monkeypatch.setattr(pruned_claims, "severed_layers", lambda record: ["stage4.1.conv1x1"])
    cut = pruned_claims.resolutions(item)
    assert len(cut.signs) == 2 + 3 and "stage 4: severed layers, not judged" in cut.ours, "nor the step to it"


def test_a_part_without_an_interval():
    assert claims.with_every([]) == "not recorded" and claims.with_every([True]) == "not known with one seed"
    assert claims.with_every([True, True]) == AGREES and claims.with_every([False, False]) == OPPOSITE
    assert claims.with_every([True, False]) == claims.with_every([None, None]) == "not told apart"
    assert claims.counted([True]) == AGREES and claims.counted([False]) == OPPOSITE
    assert claims.counted([True, False]) == "not told apart" and claims.counted([]) == "not recorded"
    assert [claims.beyond(value, 0.02) for value in (0.02, -0.03, 0.01, math.nan)] == [True, False, None, None]


class Scales:
    def __init__(self, *scales):
        self.found = np.array(scales)

    def scales(self, layers=""):
        return self.found


def test_a_gap_is_where_no_scale_lies(found):
    """Not more scales that are redundant, which a slope of scales without any gap has too."""
    gap, slope = Scales(1e-30, 1e-30, 0.1, 0.1), Scales(1e-30, 1e-15, 1e-9, 0.1)
    standard, dynamic = DECAYS_COMPARED[:2]

    def signs(before, after):
        item = replace(
            found["Figure 5"], records=dict.fromkeys(DECAYS_COMPARED, ()) | {standard: before, dynamic: after}
        )
        return claims.gap(item).signs

    severed = pytest.MonkeyPatch()
    severed.setattr(claims, "severed", lambda records: 0)
    assert signs([slope] * 2, [gap] * 2) == (AGREES, OPPOSITE) and signs([gap] * 2, [slope] * 2) == (OPPOSITE, AGREES)
    assert signs([gap] * 2, [gap] * 2) == ("not told apart",) * 2
    assert signs([slope, gap], [gap, gap]) == ("not told apart",) * 2
    severed.undo()


def test_sizes_and_the_mean_mask_are_parts_of_the_claims(found):
    entries, table = ledger.entries(found, {}), found["Table 11"]
    wide, narrow = (
        [record.data["parameters"] for record in table.of(Run(width=width, pruning=REDUNDANT))] for width in (2, 1)
    )
    assert (entries["table11"].signs[-1] == AGREES) == all(np.divide(wide, narrow) <= claims.LARGER)
    table = found["Table 6"]
    advantages = [table.difference(run, CENTRE) for run in (Run(network="extractor"), table.chosen(VANILLA))]
    knows_more = min(advantage.low for advantage in advantages) > KNOWS_MORE
    assert (entries["table06"].signs[-1] == "no more than the mean mask") == (not knows_more)


def test_shipped_networks_are_those_of_their_records():
    shipped = inventory.shipped()
    assert set(shipped) == {path.stem for path in checkpoints.MODELS.glob("*.safetensors")}
    for name, record in shipped.items():
        assert cost.count_parameters(checkpoints.load(name)) == record.data["parameters"]


def test_the_cards_say_what_the_records_say():
    lines = (checkpoints.MODELS / "README.md").read_text(encoding="utf-8").splitlines()
    cards = {line.split("`")[1]: line for line in lines if line.startswith("| `")}
    for name, record in inventory.shipped().items():
        ecssd, duts = (record.data["scores"][images]["released"] for images in ("ECSSD", "DUTS-TE"))
        said = []
        for measure in ("max_f", "mae"):
            low, high = ecssd[f"{measure}_interval"]
            said.append(f"{ecssd[measure]:.3f} ({low:.3f} to {high:.3f})")
        said += [f"{duts['max_f']:.3f}, {duts['mae']:.3f}", f"{record.data['parameters']:,}"]
        said += [f"{record.data['history'][-1]['validation_max_f']:.3f}"]
        missing = [words for words in said if f"| {words} |" not in cards[name]]
        assert not missing, f"{name}: {missing}"


def test_costs_count_every_record():
    every = records.every(records.RESULTS)
    costs = inventory.costs(every)
    assert costs["runs"].sum() == len(every)
    hours = sum(record.data["seconds"] for record in every) / 3600
    assert costs["training (h)"].sum() == pytest.approx(hours)
    moved = [record for record in every if ", then " in record.data["hardware"]]
    assert moved and costs["hardware"].str.contains(", then ").sum() > 0, "no hour of one machine is another's"


def test_one_photograph_side_by_side():
    photograph = np.random.default_rng(0).integers(256, size=(40, 60, 3), dtype=np.uint8)
    networks = {"one": checkpoints.load("csnet-x1-fast")}
    figure = side_by_side.figure(photograph, networks, timed=True)
    assert len(figure.axes) == 2 and "211K at 224 × 224" in figure.axes[1].get_title()
    widget = side_by_side.widget([("a", photograph), ("b", photograph)], networks)
    menu, own = widget.children[0].children
    assert menu.options == ("a", "b") and own.accept == "image/*"
