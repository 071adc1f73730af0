"""What `sp-run bench` refuses it refuses before it measures, and finished rows are kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from sp_cli.program import settings_of, walk
from sp_cli.reference import PROGRAMS
from sp_cli.run_main import cli
from sp_cli.runner import run

from sp_profile.bench import model_bench
from sp_profile.bench.clock import Clock
from sp_profile.bench.layer_bench import LayerBench
from sp_runtime.strict_json import MAX_INT

PROFILE = Path(__file__).parents[2] / "profiles" / "smollm2-135m"
PLACE = ("--device", "cpu", "--length", "200,300", "--repeat", "1", "--block-size", "64")
SMALL = (*PLACE, "--heads", "2", "--kv-heads", "1", "--head-dim", "16")
TINY_MODEL = ("--layers", "1", "--hidden", "32", "--intermediate", "32", "--vocabulary", "64")
SPARSE = "vertical_slash:min_tokens=1"


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be timed, planted or built."""

    def fail(*args: Any, **options: Any) -> None:
        pytest.fail("work before the refusal")

    monkeypatch.setattr(Clock, "measure", fail)
    monkeypatch.setattr(Clock, "measure_with_host", fail)
    monkeypatch.setattr(LayerBench, "plant", fail)
    monkeypatch.setattr(model_bench, "build_model", fail)


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("kernel", *SMALL, "--mask", "random,bogus"), "unknown masks 'bogus'", "pivot"),
        (("kernel", *SMALL, "--density", "0.5", "--density", "7"), "density 7.0 is not in", "0.1"),
        (("kernel", *SMALL, "--mask", f"random,recorded:{PROFILE}", "--block-size", "128"),
         "recorded at block size 64, not 128", "--block-size 64"),
        (("kernel", *SMALL, "--mask", ","), "no masks", "random"),
        (("kernel", *SMALL, "--tune", "--mask", "random"), "--tune does not take --mask", "random"),
        (("kernel", *SMALL, "--tune", "--roofline"), "--tune does not take --roofline", "peers"),
        (("kernel", *SMALL, "--tune", "--kernels", "fa4"), "not take --kernels", "operation"),
        (("layer", *SMALL, "--method", f"{SPARSE},minference"), "needs a profile", "search"),
        (("layer", *SMALL, "--method", f"{SPARSE},recorded:{PROFILE}", "--block-size", "128"),
         "recorded at block size 64, not 128", "--block-size 64"),
        (("layer", *SMALL, "--method", ","), "no methods", "vertical_slash"),
        (("layer", *SMALL, "--density", "0"), "density 0.0 is not in (0, 1]", "0.1"),
        (("layer", *SMALL, "--density", "nan"), "density nan is not in (0, 1]", "0.1"),
        (("layer", *SMALL, "--density=-3"), "density -3.0 is not in (0, 1]", "0.1"),
        (("layer", *SMALL, "--head-dim", "4"), "plant attention in 300 tokens", "is 10"),
        (("model", *SMALL, "--density", "nan"), "density nan is not in (0, 1]", "0.1"),
        (("model", *SMALL, "--density", "1.5"), "density 1.5 is not in (0, 1]", "0.1"),
        (("model", *SMALL, "--head-dim", "2"), "plant attention in 300 tokens", "is 10"),
        (("model", *SMALL, "--method", f"{SPARSE},moa"), "needs a profile", "search moa"),
        (("model", *SMALL, "--hidden", "32", "--heads", "3"), "no multiple of 3", "30 and 33"),
        (("model", *SMALL, "--hidden", "32", "--heads", "3", "--kv-heads", "2"), "KV heads", "div"),
        (("model", *SMALL, "--head-dim", "15", "--no-plant"), "head_dim 15 is odd", "take 16"),
        (("model", *SMALL, "--kernels", "triton"), "triton", "reference"),
    ],
)  # fmt: skip
def test_nothing_is_measured_before_a_refusal(
    words: tuple[str, ...],
    message: str,
    hint: str,
    unmeasured: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = run(cli, ["bench", *words])
    lines = capsys.readouterr().err.splitlines()
    (error,) = [line for line in lines if line.startswith("error: ")]
    assert code == 2, lines
    assert message in error
    assert hint in next(line for line in lines if line.startswith("hint: "))


def test_a_profile_of_another_model_is_refused_first(
    unmeasured: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its layers end where those of the measurement go on."""
    shape = ("--heads", "9", "--kv-heads", "3", "--head-dim", "16", "--layers", "31")
    words = ["bench", "layer", *PLACE, *shape, "--profile", str(PROFILE)]
    assert run(cli, [*words, "--method", f"{SPARSE},plan"]) not in (0, 1)
    assert "the plan names 0 heads in layer 30" in capsys.readouterr().err


def test_no_plant_takes_heads_that_are_too_narrow_to_plant(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["bench", "model", *SMALL, *TINY_MODEL, "--head-dim", "4", "--no-plant", "--json"]
    assert run(cli, [*words, "--length", "80", "--method", SPARSE]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["model"]["head_dim"] for row in rows} == {4}


def test_the_rows_of_a_layer_are_kept_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure, target = LayerBench.row, tmp_path / "layer.json"
    calls: Iterator[int] = iter(range(2))

    def twice(self: LayerBench, *args: Any, **options: Any) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return measure(self, *args, **options)

    monkeypatch.setattr(LayerBench, "row", twice)
    methods = ("--method", f"{SPARSE},streaming:min_tokens=1")
    words = ["bench", "layer", *SMALL, "--layers", "1", *methods, "-o", str(target)]
    assert run(cli, words) == 130
    document = json.loads(target.read_text())
    assert [row["method"] for row in document["rows"]] == [SPARSE]
    assert document["unfinished"] == "more methods or lengths"


def test_a_layer_that_ran_densely_is_said_to(capsys: pytest.CaptureFixture[str]) -> None:
    """Both lengths are under min_tokens of the method."""
    words = ["bench", "layer", *SMALL, "--layers", "2", "--method", "vertical_slash"]
    assert run(cli, words) == 0
    out = capsys.readouterr().out
    assert "vertical_slash: ran densely at every measured length" in out
    assert "faster than dense" not in out
    assert out.count("  0 %") == 2


@pytest.mark.parametrize("seed", [-1, MAX_INT + 1, 10**30])
def test_seeds_outside_of_what_artefacts_hold_are_refused(
    seed: int, unmeasured: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cli, ["bench", "kernel", *SMALL, f"--seed={seed}"]) == 2
    assert f"{seed} is not in the range 0<=x<={MAX_INT}" in capsys.readouterr().err


def test_every_seed_has_the_same_range() -> None:
    found = [
        (" ".join(words), option.type)
        for program in PROGRAMS
        for words, command in walk(program, (program.name or "",))
        for option in settings_of(command)
        if option.name == "seed"
    ]
    assert len(found) >= 7
    for name, kind in found:
        assert isinstance(kind, click.IntRange), name
        assert (kind.min, kind.max) == (0, MAX_INT), name
