"""The figures of the architecture say what the model has, legibly, and the same every time."""

import io
from collections import Counter
from dataclasses import replace

import matplotlib

matplotlib.use("agg")

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from matplotlib.legend import Legend
from matplotlib.text import Text

import sodlib
from sodlib import counts, paper
from sodlib.channels import FUSED_STAGES, SPLITS, ChannelPlan, FusionPlan, plan_channels
from sodlib.cost import MACC_KINDS, macc_by_part, paper_macc, parameters_by_part
from sodlib.csnet import CSNet
from sodlib.diagrams import draw_macc, draw_pipeline
from sodlib.exchange import draw_convolutions, exchange
from sodlib.plots import styled, use_style


@pytest.fixture(autouse=True)
def _style():
    with matplotlib.rc_context():
        use_style()
        yield
    plt.close("all")


def pruned() -> CSNet:
    """A pruned network: a low scale of stage 1 gone, and a scale of the dilated convolutions."""
    plan = plan_channels()
    blocks = list(plan.blocks)
    blocks[2:4] = [(9, 0), (9, 0)]
    fusion = FusionPlan((13, 26, 7), ((2, 0, 2, 2, 5), (5, 5, 5, 5, 6), (0, 0, 0, 0, 0)), 31)
    return CSNet(replace(plan, blocks=tuple(blocks), fusion=fusion))


NETWORKS = {
    "csnet": sodlib.csnet,
    "one scale": lambda: sodlib.csnet(split="1/0"),
    "low scale only": lambda: sodlib.csnet(split="0/1"),
    "four fused stages, wide": lambda: sodlib.csnet(2, stages="1-4"),
    "one fused stage": lambda: sodlib.csnet(stages="4"),
    "extractor": sodlib.extractor,
    "vanilla": sodlib.vanilla,
    "pruned": pruned,
}


def texts(figure) -> list[Text]:
    """All texts of a figure whose axes are switched off: these still hold tick labels that nobody sees."""
    found = [text for axis in figure.axes for text in (axis.title, axis._left_title, *axis.texts)]
    found += [text for legend in figure.findobj(Legend) for text in legend.get_texts()]
    return [text for text in found if text.get_text().strip()]


def shown_channels(axis) -> Counter[int]:
    return Counter(int(text.get_text()) for text in axis.texts if text.get_text().isdecimal())


def panels(model: CSNet) -> tuple:
    return tuple(draw_pipeline(model).axes)


@pytest.mark.parametrize("build", NETWORKS.values(), ids=list(NETWORKS))
def test_pipeline_prints_every_channel_count_of_the_plan(build):
    model = build()
    extractor, _, fusion = panels(model)
    assert shown_channels(extractor) == Counter(c for split in model.plan.blocks for c in split if c)
    expected = [*model.plan.fusion_inputs, 1]
    if plan := model.plan.fusion:
        expected += [*plan.outputs, *plan.dilated_outputs, plan.merged]
    else:
        expected = [model.plan.fusion_inputs[0], 1]
    assert shown_channels(fusion) == Counter(count for count in expected if count)


def test_bars_are_proportional_to_channels():
    model = pruned()
    extractor = panels(model)[0]
    heights = [bar.get_height() for container in extractor.containers for bar in container]
    channels = [c * sign for split in model.plan.blocks for c, sign in zip(split, (1, -1), strict=False) if c]
    assert [round(height * 80) for height in heights] == channels


@pytest.mark.parametrize("name", ["csnet", "four fused stages, wide", "pruned"])
def test_pipeline_is_legible(name):
    figure = draw_pipeline(NETWORKS[name]())
    figure.canvas.draw()
    assert min(text.get_fontsize() for text in texts(figure)) >= 8
    boxes = [text.get_window_extent().padded(-1) for text in texts(figure)]
    names = [text.get_text() for text in texts(figure)]
    overlapping = [(names[i], names[j]) for i in range(len(boxes)) for j in range(i) if boxes[i].overlaps(boxes[j])]
    assert not overlapping
    for box, name in zip(boxes, names, strict=True):
        assert figure.bbox.padded(1).containsx(box.x0) and figure.bbox.padded(1).containsx(box.x1), name
        assert figure.bbox.padded(1).containsy(box.y0) and figure.bbox.padded(1).containsy(box.y1), name


def test_equal_models_draw_equal_files():
    def svg() -> bytes:
        file = io.BytesIO()
        draw_pipeline(sodlib.csnet()).savefig(file, format="svg", metadata={"Date": None})
        return file.getvalue()

    assert svg() == svg()


def test_exchange_is_that_of_the_layer():
    model = sodlib.csnet()
    assert exchange(model.stage2[1].conv1x1).paths == ((0, 0), (0, 1), (1, 0), (1, 1))
    assert exchange(model.stage2[3].conv1x1).paths == ((0, 0), (1, 0))
    assert exchange(model.stage2[1].conv3x3_1).paths == ((0, 0), (1, 1))
    assert len(exchange(model.oct_fuse.fuse).paths) == 9
    assert exchange(model.oct_fuse.ms).outputs == (13, 26, 26)
    assert exchange(pruned().oct_fuse.ms).outputs == (11, 26, 0)
    assert exchange(pruned().stage1[2].conv3x3_1).outputs == (9, 0)
    assert exchange(pruned().stage1[2].conv1x1).paths == ((0, 0),)
    with pytest.raises(sodlib.SodlibError, match="Conv2d"):
        exchange(model.cls_layer)


def test_convolutions_draw_one_arrow_and_one_block_a_path():
    model = sodlib.csnet()
    figure = draw_convolutions({"a": model.oct_fuse.fuse, "b": model.stage2[1].conv3x3_1})
    paths, _, weight, diagonal = figure.axes
    assert sum(text.get_text() == "" for text in paths.texts) == 9
    assert len(weight.patches) == 9 and len(diagonal.lines) == 2
    scales = Counter([1, 1])  # the finest scale is called 1 at both ends
    assert shown_channels(paths) == Counter([40, 80, 80, 13, 26, 26]) + scales


def test_macc_bars_add_up():
    plan = plan_channels()
    by_part, by_kind = draw_macc(plan).axes
    for axis in (by_part, by_kind):
        total = sum(bar.get_width() for container in axis.containers for bar in container)
        assert total == pytest.approx(paper_macc(plan) / 1e6)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(
        [{"stages": stages} for stages in FUSED_STAGES] + [{"network": "extractor"}, {"network": "vanilla"}]
    ),
    st.floats(1, 2),
    st.sampled_from(SPLITS),
)
def test_parts_make_up_the_whole(kind, width, split):
    plan: ChannelPlan = plan_channels(width=width, split=split, **kind)
    parts = macc_by_part(plan)
    assert sum(kinds.total() for kinds in parts.values()) == paper_macc(plan)
    assert {kind for kinds in parts.values() for kind in kinds} <= set(MACC_KINDS)
    model = CSNet(plan)
    parameters = parameters_by_part(model)
    assert list(parameters) == list(parts)
    assert sum(parameters.values()) == sodlib.count_parameters(model)


def test_parts_of_the_published_network():
    assert parameters_by_part(sodlib.csnet()) == {
        "stage0": 1_080,
        "stage1": 2_820,
        "stage2": 16_320,
        "stage3": 73_760,
        "stage4": 85_440,
        "fuse": 13_195,
        "ms": 13_884,
        "fuse1x1": 4_420,
        "cls_layer": 66,
    }


def test_structure_in_the_form_of_the_papers_tables():
    extractor = counts.extractor_rows(plan_channels())
    assert set(extractor) <= set(paper.table(2)) and extractor["repeats"].sum() == 18
    fusion = counts.fusion_rows(plan_channels(stages="1-4"))
    assert list(fusion["size"]) == list(paper.table(1)["size"])
    assert list(fusion["channels"].dropna()) == [6, 13, 26, 26, 71, 1]


@pytest.mark.parametrize(
    ("exact", "printed", "found"),
    [(210.985, 211, "rounded"), (298.633, 298, "cut"), (180.4, 180, "rounded"), (180.6, 180, "cut")],
)
def test_how_a_count_was_shortened(exact, printed, found):
    assert counts.shortening(exact, printed, "parameters_k") == found


def test_a_count_that_print_cannot_explain_is_an_error():
    ours = pd.DataFrame([{"width": 1.0, "parameters_k": 209.9, "macc_g": 0.61}])
    printed = paper.table(11).iloc[:1]
    with pytest.raises(sodlib.SodlibError, match=r"209\.9"):
        counts.compare(ours, printed, ["width"], "pruned")


def test_a_row_without_ours_says_why():
    table = counts.compare(
        pd.DataFrame(columns=["width", *counts.COLUMNS]), paper.table(11).iloc[:1], ["width"], "pruned"
    )
    assert list(table["reason", ""]) == ["pruned"]


def test_styled_tables_are_equal_each_time():
    table = pd.DataFrame({"macc_g": [0.61, None], "reason": ["rounded", ""]}, index=pd.Index([1.0, 1.2]))
    formats = {"macc_g": "{:.3f}", "another table's column": "{:.0f}"}
    one, other = (styled(table, "MACC in 10⁹", formats) for _ in range(2))
    first = one.to_html()
    assert first == other.to_html() and repr(one) == repr(other)
    assert all(part in first for part in ("MACC (G)", ">0.610<", ">–<", ">1<", ">1.2<", "MACC in 10⁹"))
