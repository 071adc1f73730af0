"""The eval and curves commands as processes: killed and resumed, in groups, and refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

InProcess = Callable[..., tuple[int, str, str]]
METHODS = "vertical_slash:gamma={0.5,0.9}:min_budget=64:min_tokens=128"


def arguments(model: Path, folder: Path) -> list[str]:
    return [
        *("eval", "--model", str(model), "--method", METHODS, "--block-size", "64"),
        *("--task", "ppl,niah_single_1", "--length", "400", "--samples", "2", "--seed", "3"),
        *("--device", "cpu", "--workers", "1", "--no-plot", "-o", str(folder)),
    ]


def start(*words: str, **variables: str) -> subprocess.Popen[bytes]:
    """sp-run as a process."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **variables}
    script = Path(sys.executable).with_name("sp-run")
    return subprocess.Popen(
        [str(script), *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def scores(folder: Path) -> list[tuple[Any, ...]]:
    """Everything in the rows that does not depend on the clock."""
    import pyarrow.parquet as pq

    rows = pq.read_table(folder / "results.parquet").to_pylist()
    names = ("method", "task", "length", "index", "prompt_sha256", "score", "density", "new_tokens")
    return [tuple(row[name] for name in names) for row in rows]


@pytest.fixture(scope="module")
def finished(
    in_process: InProcess, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder: Path = tmp_path_factory.mktemp("eval") / "out"
    code, out, err = in_process("sp-run", *arguments(tiny_model, folder), "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["schema"] == "sp.eval_summary"
    assert document == json.loads((folder / "summary.json").read_text())
    assert len(document["overview"]["cells"]) == 6
    return folder


def test_a_killed_evaluation_resumes_to_the_same_results(
    in_process: InProcess, tiny_model: Path, finished: Path, tmp_path: Path
) -> None:
    words = arguments(tiny_model, tmp_path)
    process = start(*words)
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("cells/*.json")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 0 < len(list(tmp_path.glob("cells/*.json"))) < 6
    code, _, err = in_process("sp-run", *words)
    assert code == 0, err
    assert scores(tmp_path) == scores(finished)


def run_as_two(
    in_process: InProcess, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str]:
    """What two processes print; the variables are torchrun's, and this process is the first one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    member = start(*words, **group, RANK="1", LOCAL_RANK="1")
    with monkeypatch.context() as patch:
        for name, value in {**group, "RANK": "0", "LOCAL_RANK": "0"}.items():
            patch.setenv(name, value)
        code, out, err = in_process("sp-run", *words)
    told, complaint = member.communicate(timeout=240)
    assert (code, member.returncode) == (0, 0), (err, complaint)
    return out, told.decode()


def test_two_processes_find_what_one_finds(
    in_process: InProcess,
    tiny_model: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, told = run_as_two(in_process, arguments(tiny_model, tmp_path), monkeypatch)
    assert "vertical_slash" in out or "v-slash" in out
    assert told == ""
    assert scores(tmp_path) == scores(finished)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["overview"]["untimed"] == ["2 processes ran at once"]
    assert all(cell["seconds"] is None for cell in summary["overview"]["cells"])


def test_a_recall_pass_is_that_of_two_processes_and_is_told(
    in_process: InProcess,
    tiny_model: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import pyarrow.parquet as pq

    folders = (tmp_path / "one", tmp_path / "two")
    for folder in folders:
        shutil.copytree(finished, folder)
    one, two = (
        [*arguments(tiny_model, folder), "--recall-pass", "1", "--audit", "0.5"]
        for folder in folders
    )
    code, out, err = in_process("sp-run", *one)
    assert code == 0, err
    assert "recall on 1 prompts a task and length, 50% of the heads: mean/p10" in out
    assert max(len(line) for line in out.splitlines()) <= 80
    again, told = run_as_two(in_process, two, monkeypatch)
    assert told == ""
    assert again == out
    rows, others = (pq.read_table(folder / "recalls.parquet").to_pylist() for folder in folders)
    assert rows == others
    assert {(row["method"], row["task"]) for row in rows} == {
        (f"vertical_slash{gamma}:min_budget=64:min_tokens=128", task)
        for gamma in (":gamma=0.5", "")
        for task in ("ppl", "niah_single_1")
    }
    assert scores(folders[1]) == scores(finished)
    # The same heads, and a larger gamma keeps more.
    for task in ("ppl", "niah_single_1"):
        less, more = (row["recalls"] for row in rows if row["task"] == task)
        for ours, theirs in zip(less, more, strict=True):
            assert (ours["layer"], ours["head"]) == (theirs["layer"], theirs["head"])
            if ours["layer"] == 0:
                assert ours["recall"] <= theirs["recall"] + 1e-6
    summary = json.loads((folders[0] / "summary.json").read_text())
    assert [row["prompts"] for row in summary["recalls"]["lengths"]] == [2, 2]


def test_another_configuration_is_refused(
    in_process: InProcess, tiny_model: Path, finished: Path
) -> None:
    before = (finished / "summary.json").read_bytes()
    words = arguments(tiny_model, finished)
    words[words.index("--seed") + 1] = "4"
    code, out, err = in_process("sp-run", *words)
    assert (code, out) == (2, "")
    assert "seed: 3, 4" in err
    assert (finished / "summary.json").read_bytes() == before


def test_the_report_fits_eighty_columns_and_is_made_again(
    in_process: InProcess, finished: Path
) -> None:
    (finished / "summary.json").unlink()
    code, out, err = in_process(
        "sp-run", "eval", "--report-only", "-o", finished, "--no-plot", "-v"
    )
    assert code == 0, err
    assert (finished / "summary.json").exists()
    assert "v-slash gamma=0.5" in out
    assert max(len(line) for line in out.splitlines()) <= 80


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "dense"), "no model"),
        (("--model", "m", "--length", "4k"), "4k"),
        (("--model", "m", "--samples", "0"), "samples 0"),
        (("--model", "m", "--profile", "a", "--profile", "b"), "named twice"),
        (("--model", "m", "--method", "vertical_slash:gama=1"), "gama"),
        (("--model", "m", "--task", "nia_single_1"), "niah_single_1"),
    ],
)
def test_usage_errors(
    in_process: InProcess, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    code, out, err = in_process("sp-run", "eval", *words, "-o", tmp_path / "out")
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "out").exists()


def test_curves_of_a_run(in_process: InProcess, tiny_run: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    file = tmp_path / "curves.parquet"
    code, out, err = in_process("sp-profile", "curves", tiny_run, "-o", file, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["schema"] == "sp.curves"
    assert pq.read_table(file).to_pylist() == document["points"]
    points = {(point["method"], point["setting"]): point for point in document["points"]}
    for point in points.values():
        assert 0 < point["recall_p10"] <= 1.01
        assert 0 < point["recall"] <= 1.01
    sweep = [points["vertical_slash", f"gamma={gamma}"] for gamma in (0.7, 0.8, 0.9, 0.95, 0.98)]
    for field in ("cost", "recall"):
        assert [point[field] for point in sweep] == sorted(point[field] for point in sweep)
    code, out, err = in_process("sp-profile", "curves", tiny_run, "-o", file)
    assert (code, out) == (2, "")
    assert "exists" in err
