"""What a report shows of the example profile, read back from a folder as the command reads it."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import pytest

from sp_profile.artefact import write_profile
from sp_profile.curves import CurvePoint, Curves
from sp_profile.report.data import load_report_data
from sp_profile.report.data_types import ReportData


@pytest.fixture(scope="session")
def data(examples: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    """Twelve heads whose densities all differ, two clusters, two prompts, made-up curves."""
    folder = tmp_path_factory.mktemp("profile") / "profile"
    profile = examples.make_profile()
    rows = [
        dataclasses.replace(row, density=0.05 * (number + 1))
        for number, row in enumerate(examples.head_rows(profile))
    ]
    write_profile(
        folder,
        profile,
        heads=rows,
        similarity=examples.similarity(profile),
        masks=examples.mask_rows(profile),
    )
    points = [
        CurvePoint(
            method=method,
            setting=f"gamma={gamma}",
            length=length,
            prompts=2,
            tokens=length - 10.0,
            cost=gamma / 2,
            recall=recall,
            recall_p10=recall - 0.1,
        )
        for length in (256, 512)
        for method, steps in (
            ("vertical_slash", ((0.8, 0.85), (0.9, 0.93))),
            ("weaving", ((0.8, 0.9), (0.9, 0.8))),
        )
        for gamma, recall in steps
    ]
    curves = Curves(model="tiny", block_size=64, gamma=0.9, points=tuple(points), notes=())
    return dataclasses.replace(load_report_data(folder), curves=curves)
