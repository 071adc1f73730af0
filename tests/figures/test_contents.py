"""What the figures show is what was measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sp_profile.eval.statistics import Estimate
from sp_profile.eval.summary import LengthSummary, MethodInfo, Seconds
from sp_profile.figures.alike import alike_figure
from sp_profile.figures.curves import curves_figure
from sp_profile.figures.gallery import gallery_figure, typical_member
from sp_profile.figures.heads import assignment_figure, cluster_figure, density_figure
from sp_profile.figures.palette import ASSIGNMENT_COLOURS, OKABE_ITO
from sp_profile.figures.pareto import pareto_figure
from sp_profile.figures.similarity import coarse, jaccard_figure, square_of
from sp_profile.figures.style import drawing, mixed
from sp_profile.report.data_types import ReportData
from sp_runtime.errors import UsageError
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.profile import HeadRef

pytest.importorskip("matplotlib")
LAYERS, HEADS = 3, 4  # full-attention layers 0, 2 and 3 of the example


@pytest.fixture(autouse=True)
def _drawing() -> Iterator[None]:
    with drawing():
        yield


def colour_at(axes: object, row: int, head: int) -> str:
    from matplotlib.colors import to_hex

    (picture,) = axes.images  # type: ignore[attr-defined]
    return to_hex(picture.get_array()[row, head]).upper()


def test_density_stands_where_its_layer_and_head_are(data: ReportData) -> None:
    figure = density_figure(data)
    assert figure is not None
    axes = figure.axes[0]
    shown = np.asarray(axes.images[0].get_array())
    assert shown.shape == (LAYERS, HEADS)
    np.testing.assert_allclose(shown.ravel(), [row.density for row in data.heads])
    assert axes.images[0].get_clim() == (0, 0.6)
    assert axes.get_ylim() == (LAYERS - 0.5, -0.5)  # layer 0 on top
    assert [text.get_text() for text in axes.get_yticklabels()] == ["0", "2", "3"]


def test_assignments_have_their_colour_letter_and_count(data: ReportData) -> None:
    figure = assignment_figure(data)
    assert figure is not None
    axes = figure.axes[0]
    for number, head in enumerate(data.profile.plan.heads):
        found = colour_at(axes, *divmod(number, HEADS))
        assert found == ASSIGNMENT_COLOURS[head.assignment]
    assert "".join(text.get_text() for text in axes.texts) == "DSwqbbvvbDvq"
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert "b  borrow (3)" in labels
    assert len(labels) == len({head.assignment for head in data.profile.plan.heads})


def test_clusters_are_strong_where_enabled_and_anchors_framed(data: ReportData) -> None:
    from matplotlib.patches import Rectangle

    figure = cluster_figure(data)
    assert figure is not None
    axes = figure.axes[0]
    assert colour_at(axes, 0, 0) == colour_at(axes, 1, 0) == OKABE_ITO[0]
    assert colour_at(axes, 0, 1) == mixed(OKABE_ITO[1], 0.6)  # off
    assert colour_at(axes, 0, 2) not in OKABE_ITO
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [frame.get_xy() for frame in frames] == [(-0.5, -0.5)]  # of head 0.0 alone


def test_the_matrix_follows_the_dendrogram(data: ReportData) -> None:
    assert data.similarity is not None
    assert data.dendrogram is not None
    figure = jaccard_figure(data)
    assert figure is not None
    tree, strip, matrix = figure.axes[:3]
    shown = np.asarray(matrix.images[0].get_array())
    order = data.dendrogram.order
    heads = len(order)
    rows, columns = np.triu_indices(heads, 1)
    for place, (a, b) in enumerate(zip(rows, columns, strict=True)):
        x, y = (int(np.flatnonzero(order == head)[0]) for head in (a, b))
        assert shown[x, y] == shown[y, x] == data.similarity.mean[place]
    assert strip.images[0].get_array().shape == (1, heads, 3)
    (joints,) = tree.collections
    assert len(joints.get_segments()) == heads - 1
    assert tree.lines[0].get_ydata()[0] == 0.5  # the threshold of the clustering


def test_a_pair_without_a_jaccard_is_grey() -> None:
    condensed = np.array([0.5, -1.0, 0.25], np.float32)
    square = square_of(condensed, 3)
    assert np.isnan(square).sum() == 2
    assert np.isnan(square[0, 2])
    assert square[0, 1] == square[1, 0] == 0.5
    assert np.diag(square).tolist() == [1, 1, 1]


@given(st.integers(2, 40), st.integers(1, 40), st.integers(0, 9))
def test_coarse_matrices_are_means_of_cells(heads: int, side: int, seed: int) -> None:
    square = np.random.default_rng(seed).random((heads, heads), np.float32)
    small = coarse(square, side)
    assert small.shape == (min(heads, side),) * 2
    starts = [(number * heads) // len(small) for number in range(len(small))]
    ends = [*starts[1:], heads]
    for i, j in ((0, 0), (len(small) - 1, 0)):
        cell = square[starts[i] : ends[i], starts[j] : ends[j]]
        assert small[i, j] == pytest.approx(cell.mean(), rel=1e-4)


def test_the_gallery_shows_a_member_beside_its_anchor(data: ReportData) -> None:
    # The enabled cluster, members 0.0 (the anchor), 2.0 and 3.0, all of one Jaccard.
    chosen = typical_member(data)
    assert chosen == HeadRef(3, 0)
    figure = gallery_figure(data, HeadRef(2, 0))
    assert figure is not None
    titles = [axes.get_title() for axes in figure.axes[:2]]
    assert titles == ["mask of head 2.0", "of its anchor, 0.0"]
    assert len(figure.axes) == 2 * len(data.gallery)
    for row, prompt in enumerate(data.gallery):
        for column, number in enumerate((4, 0)):  # heads 2.0 and 0.0 among all
            shown = figure.axes[2 * row + column].images[0].get_array()
            side = np.tril_indices(prompt.side)
            expected = np.sqrt(255.0 * prompt.masks[number])
            np.testing.assert_allclose(np.asarray(shown)[side], expected[side])
            assert np.ma.getmaskarray(shown)[np.triu_indices(prompt.side, 1)].all()
        assert f"{prompt.prompt.tokens:,} tokens" in figure.axes[2 * row].get_ylabel()


def test_the_gallery_with_masses_and_without_an_anchor(data: ReportData) -> None:
    first, second = data.gallery
    mass = np.full_like(first.masks, 7)
    some = dataclasses.replace(data, gallery=(dataclasses.replace(first, mass=mass), second))
    figure = gallery_figure(some)
    assert figure is not None
    assert len(figure.axes) == 6
    assert figure.axes[0].images[0].get_array()[0, 0] == 7
    assert figure.axes[3].texts[0].get_text() == "not recorded"
    with pytest.raises(UsageError, match=r"head 0\.2 has no anchor"):
        gallery_figure(data, HeadRef(0, 2))
    assert gallery_figure(dataclasses.replace(data, gallery=())) is None


def test_alike_heads_stand_beside_one_that_is_not(data: ReportData) -> None:
    assert data.similarity is not None
    figure = alike_figure(data)
    assert figure is not None
    titles = [axes.get_title().split("\n") for axes in figure.axes[:4]]
    assert titles[0] == ["anchor 0.0", "of cluster 0"]
    jaccard = square_of(data.similarity.mean, len(data.refs))[0]
    assert titles[1] == ["head 3.0", f"Jaccard {jaccard[8]:.2f}"]
    assert titles[2] == ["head 2.0", f"Jaccard {jaccard[4]:.2f}"]
    outside = [number for number in range(12) if number not in (0, 4, 8)]
    least = min(outside, key=lambda number: jaccard[number])
    ref = data.refs[least]
    assert titles[3] == [f"unlike head {ref.layer}.{ref.head}", f"Jaccard {jaccard[least]:.2f}"]
    assert len(figure.axes) == 4 * len(data.gallery)
    assert alike_figure(dataclasses.replace(data, similarity=None)) is None


def test_models_of_few_heads_lie_on_their_side(data: ReportData) -> None:
    model = dataclasses.replace(
        data.profile.model, num_heads=1, num_kv_heads=1, layer_types=("full_attention",) * 12,
        num_layers=12,
    )  # fmt: skip
    lying = dataclasses.replace(data, profile=dataclasses.replace(data.profile, model=model))
    figure = density_figure(lying)
    assert figure is not None
    axes = figure.axes[0]
    shown = np.asarray(axes.images[0].get_array())
    assert shown.shape == (1, 12)
    np.testing.assert_allclose(shown[0], [row.density for row in data.heads])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("layer", "head")


def test_curves_join_what_keeps_more_for_more(data: ReportData) -> None:
    assert data.curves is not None
    figure = curves_figure(data.curves)
    assert len(figure.axes) == 4  # two lengths, mean and tail
    rising, weaving = figure.axes[0].lines
    assert rising.get_linestyle() == "-"
    assert weaving.get_linestyle() == "None"
    assert rising.get_ydata().tolist() == [0.85, 0.93]
    assert figure.axes[2].lines[0].get_ydata().tolist() == pytest.approx([0.75, 0.83])
    assert rising.get_color() != weaving.get_color()
    assert rising.get_marker() != weaving.get_marker()


def row(method: str, score: float, density: float, ttft: float | None) -> LengthSummary:
    seconds = None
    if ttft is not None:
        seconds = Seconds(prompts=3, ttft=ttft, attention=ttft / 2, index=None)
    return LengthSummary(
        method=method,
        length=4096,
        tasks=("vt",),
        prompts=3,
        score=Estimate(mean=score, low=score - 0.1, high=score + 0.1),
        difference=None
        if method == "dense"
        else Estimate(mean=score - 0.9, low=score - 0.92, high=score - 0.87),
        density=density,
        estimation=0.0,
        seconds=seconds,
    )


def overview(timed: bool) -> SimpleNamespace:
    measured = {"dense": (0.9, 1.0, 2.0), "streaming:window=64": (0.6, 0.2, 0.5)}
    lengths = [
        row(name, score, density, ttft if timed else None)
        for name, (score, density, ttft) in measured.items()
    ]
    methods = [
        MethodInfo(
            label=name, name=name, family=name.split(":")[0], point=OperatingPoint(), samples=3
        )
        for name in measured
    ]
    return SimpleNamespace(overview=SimpleNamespace(lengths=lengths, methods=methods))


@pytest.mark.parametrize("timed", [False, True])
def test_pareto_has_a_row_of_panels_for_times_only_where_they_were_taken(timed: bool) -> None:
    figure = pareto_figure(overview(timed))  # type: ignore[arg-type]
    assert len(figure.axes) == 1 + timed
    places = [axes.containers[0].lines[0].get_xdata().tolist() for axes in figure.axes]
    assert places == [[0.2], [500.0]][: 1 + timed]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["dense", "streaming"]


def test_pareto_bars_are_the_interval_of_the_difference_to_dense() -> None:
    (panel,) = pareto_figure(overview(timed=False)).axes  # type: ignore[arg-type]
    (bars,) = panel.containers[0].lines[2]
    (bar,) = bars.get_segments()
    assert bar[:, 1] == pytest.approx([58.0, 63.0])  # around 60 %, not of its own 50 to 70
