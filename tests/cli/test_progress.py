"""How long work is told: counts, rates, lines, and a bar on a real terminal."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sp_cli import progress as told
from sp_cli.output import Output
from sp_cli.progress import Memory, Meter, ProgressLine, choose_mode, plain_text, show_progress

Capture = pytest.CaptureFixture[str]
FIELDS = {field.name for field in dataclasses.fields(ProgressLine)}


class Clock:
    """Stands still unless it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(st.integers(0, 50), st.integers(1, 50), st.integers(0, 50), st.floats(0.5, 1e4))
def test_rate_counts_what_this_process_did(
    before: int, new: int, left: int, seconds: float
) -> None:
    clock = Clock()
    meter = Meter("calibrate", "prompts", clock)
    clock.now += 77  # loading the model belongs to no prompt
    total = before + new + left
    meter.update(before, total)
    assert meter.line("update").rate is None
    clock.now += seconds
    meter.update(before + new, total)
    line = meter.line("update")
    assert line.rate == pytest.approx(new / seconds, abs=1e-6)
    assert line.seconds_left == pytest.approx(left * seconds / new, abs=0.06)
    assert line.seconds == pytest.approx(77 + seconds, abs=1e-3)


def test_each_phase_counts_anew() -> None:
    clock = Clock()
    meter = Meter("eval", "steps", clock)
    meter.update(0, 100, "prompts")
    clock.now += 1
    meter.update(100, 100, "prompts")
    clock.now += 5
    meter.update(2, 4, "cells")
    assert meter.line("update").rate is None
    clock.now += 10
    meter.update(3, 4, "cells")
    line = meter.line("update")
    assert (line.phase, line.rate, line.seconds_left) == ("cells", 0.1, 10.0)


def test_memory_is_of_this_process() -> None:
    device, now, peak = told.process_memory()
    assert device == "cpu" or device.startswith("cuda:")
    assert 1 << 20 < now <= max(peak, now) < 1 << 40


def test_the_peak_never_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([("cuda:0", 5, 9), ("cuda:0", 3, 4)])  # a measurement has reset torch's peak
    monkeypatch.setattr(told, "process_memory", lambda: next(readings))
    meter = Meter("bench", "rows")
    meter.line("update")
    assert meter.line("update").memory == Memory(device="cuda:0", now_bytes=3, peak_bytes=9)


def test_plain_lines_come_once_a_minute(capsys: Capture) -> None:
    clock = Clock()
    with show_progress("calibrate", "prompts", "plain", clock=clock) as update:
        for done in range(11):
            update(done, 10)
            clock.now += 20
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("calibrate: 3/10 prompts, 20.0 s each, 140 s left, ")
    assert " GiB on " in lines[0]
    assert lines[-1].startswith("calibrate: 10/10 prompts, 22.0 s each, 220 s in all, ")


def test_short_work_says_nothing_in_a_log(capsys: Capture) -> None:
    with Output(json_mode=False).progress("calibrate", "prompts") as update:
        update(1, 1)
    assert capsys.readouterr().err == ""


def test_a_line_comes_while_one_unit_takes_minutes(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(told, "LINE_EVERY_SECONDS", 0.1)
    with show_progress("prefill", "prompts", "json") as update:
        update(0, 2)
        time.sleep(1.5)
    events = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert events[:2] == ["begin", "update"]
    assert events.count("update") >= 2
    assert events[-1] == "end"


def test_json_lines_are_whole_and_few(capsys: Capture) -> None:
    clock = Clock()
    with show_progress("eval", "steps", "json", clock=clock) as update:
        for done in range(1001):
            update(done, 1000, "prompts")
            clock.now += 0.01
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert all(set(line) == FIELDS for line in lines)
    assert {line["schema"] for line in lines} == {"sp.progress"}
    assert 10 <= len(lines) <= 14
    assert lines[-1]["event"] == "end"
    assert lines[-1]["done"] == lines[-1]["total"] == 1000


def test_an_error_stops_it(capsys: Capture) -> None:
    def work() -> None:
        with show_progress("eval", "steps", "json") as update:
            update(0, 2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["event"] == "stop"


def test_what_auto_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert choose_mode("auto", silent=False) == "bar"
    assert choose_mode("auto", silent=True) == "none"
    assert choose_mode("json", silent=True) == "json"
    monkeypatch.setenv("TERM", "dumb")
    assert choose_mode("auto", silent=False) == "plain"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (599, "599 s"), (3000, "50 min"), (9000, "2.5 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert told.duration_text(seconds) == text


def test_text_of_fast_work() -> None:
    line = ProgressLine(
        event="update", task="eval", phase="cells", unit="steps", done=3, total=None, rate=12.5,
        seconds=1.0, seconds_left=None,
        memory=Memory(device="cuda:0", now_bytes=2**30, peak_bytes=3 * 2**30),
    )  # fmt: skip
    assert plain_text(line) == "eval: 3/? cells, 12.50 cells/s, 1.00 GiB on cuda:0 (peak 3.00)"


def test_a_real_command_tells_a_program(
    command: Callable[..., Any], tiny_model: Path, prompt: Path
) -> None:
    words = ("--method", "vertical_slash", "--block-size", "64", "--device", "cpu", "--json")
    done = command(
        *("sp-run", "prefill", "--model", tiny_model, prompt, *words, "--progress", "json")
    )
    assert done.code == 0, done.err
    assert done.document()["schema"] == "sp.prefill"
    lines = [json.loads(line) for line in done.err.splitlines() if line.startswith("{")]
    assert lines[0]["event"] == "begin"
    assert lines[-1] | {"event": "end", "done": 1, "total": 1} == lines[-1]
    assert lines[-1]["memory"]["peak_bytes"] >= lines[-1]["memory"]["now_bytes"] > 0
    assert lines[-1]["task"] == "prefill"


def test_a_bar_on_a_terminal_leaves_the_result_alone(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    code = (
        "from sp_cli.output import Output\n"
        "import time\n"
        "output = Output(json_mode=False)\n"
        "with output.progress('bench', 'rows') as update:\n"
        "    for n in range(4):\n"
        "        update(n, 4)\n"
        "        output.line(f'row {n}')\n"
        "        time.sleep(0.4)\n"
    )
    main, terminal = pty.openpty()
    with open(tmp_path / "out.txt", "wb") as result:
        variables = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=result, stderr=terminal, env=variables
        )
        os.close(terminal)
        seen = b""
        while True:
            try:
                part = os.read(main, 4096)
            except OSError:  # Linux says so where the other side has closed
                break
            if not part:
                break
            seen += part
        assert process.wait(timeout=60) == 0
    os.close(main)
    assert b"bench" in seen
    assert b"/4" in seen
    assert b"GiB" in seen
    assert (tmp_path / "out.txt").read_text() == "row 0\nrow 1\nrow 2\nrow 3\n"
