"""Files of figures: which, what is in them, and when they are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from sp_profile.figures import check_target, draw_figures, style
from sp_profile.report.data_types import ReportData
from sp_runtime.errors import ResourceError, UsageError
from sp_runtime.profile import Plan

image = pytest.importorskip("matplotlib.image")
matplotlib = pytest.importorskip("matplotlib")
SVG = "{http://www.w3.org/2000/svg}"
DRAWN = ["density", "jaccard", "clusters", "assignments", "alike", "gallery", "recall-density"]


@pytest.fixture(scope="module")
def drawn(data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    return draw_figures(data, tmp_path_factory.mktemp("figures") / "new" / "folder")


@pytest.fixture
def bare(data: ReportData) -> ReportData:
    """As of an imported profile: clusters, and nothing measured."""
    profile = dataclasses.replace(data.profile, plan=Plan(recall_floor=0.9, heads=()))
    return dataclasses.replace(
        data, profile=profile, heads=(), similarity=None, dendrogram=None, gallery=(), curves=None
    )


def test_every_figure_that_the_data_allows_as_png_and_svg(drawn: tuple[Path, ...]) -> None:
    assert [path.name for path in drawn] == [
        f"{n}.{kind}" for n in DRAWN for kind in ("png", "svg")
    ]
    assert sorted(path.name for path in drawn[0].parent.iterdir()) == sorted(p.name for p in drawn)


def test_no_picture_is_blank(drawn: tuple[Path, ...]) -> None:
    for path in drawn:
        if path.suffix == ".png":
            pixels = image.imread(path)[..., :3]
            assert min(pixels.shape[:2]) > 200, path
            inked = (pixels < 0.98).any(axis=-1).mean()
            assert 0.01 < inked < 0.95, (path, inked)


def test_every_svg_is_one_drawing_without_a_date(drawn: tuple[Path, ...]) -> None:
    for path in drawn:
        if path.suffix == ".svg":
            root = ElementTree.fromstring(path.read_bytes())
            assert root.tag == f"{SVG}svg"
            assert len(root.findall(f".//{SVG}path")) > 10, path
            assert b"<dc:date>" not in path.read_bytes()


def test_a_second_drawing_gives_equal_bytes_whatever_the_users_settings(
    drawn: tuple[Path, ...], data: ReportData, tmp_path: Path
) -> None:
    first = {path.name: path.read_bytes() for path in drawn}
    with matplotlib.rc_context({"font.size": 30, "figure.facecolor": "red"}):
        again = draw_figures(data, tmp_path)
        assert matplotlib.rcParams["font.size"] == 30
    assert {path.name: path.read_bytes() for path in again} == first


def test_what_was_not_measured_is_left_out(bare: ReportData, tmp_path: Path) -> None:
    assert [path.name for path in draw_figures(bare, tmp_path)] == ["clusters.png", "clusters.svg"]
    profile = dataclasses.replace(bare.profile, clusters=())
    empty = dataclasses.replace(bare, profile=profile)
    assert draw_figures(empty, tmp_path / "none") == ()


def test_figures_that_are_there_are_replaced_only_when_asked(
    bare: ReportData, tmp_path: Path
) -> None:
    old = tmp_path / "clusters.svg"
    old.write_text("mine")
    with pytest.raises(UsageError, match=r"clusters\.svg exists") as error:
        draw_figures(bare, tmp_path)
    assert error.value.hint is not None
    assert "--overwrite" in error.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["clusters.svg"]
    assert old.read_text() == "mine"
    (tmp_path / "other.txt").write_text("kept")
    written = draw_figures(bare, tmp_path, overwrite=True)
    assert old in written
    assert old.read_text() != "mine"
    assert (tmp_path / "other.txt").read_text() == "kept"


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "figures").write_text("")
    with pytest.raises(UsageError, match="not a folder"):
        check_target(tmp_path / "figures", overwrite=True)


def test_a_full_disk_leaves_nothing_half_written(
    data: ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sp_profile.atomic.os.fsync", full)
    with pytest.raises(ResourceError, match="no space"):
        draw_figures(data, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_command_that_installs_it(
    data: ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="matplotlib") as error:
        draw_figures(data, tmp_path / "figures")
    assert error.value.hint == "pip install 'sparse-prefill[plot]'"
    assert not (tmp_path / "figures").exists()


def test_fonts_are_the_ones_that_matplotlib_brings() -> None:
    from matplotlib.font_manager import findfont

    with style.drawing():
        name = matplotlib.rcParams["font.family"][0]
        assert Path(findfont(name)).is_relative_to(matplotlib.get_data_path())


def test_colours_of_ink_and_paper() -> None:
    assert style.mixed("#000000", 0.0) == "#000000"
    assert style.mixed("#0072B2", 1.0) == "#FFFFFF"
    assert style.ink_on("#F0E442") == "black"
    assert style.ink_on("#00224E") == "white"
    assert np.isclose(int(style.mixed("#000000", 0.5)[1:3], 16), 128)
