"""Prompt text stays out of everything that is written or said, unless --include-text asks for it.

Every file of a calibration, a profile, a prefill and an evaluation, and every line on standard
output and error, is searched for a word of the prompts, as text and as token ids.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

Command = Callable[..., Any]
MARKER = "zqxjkmarker"

pytestmark = pytest.mark.slow


def texts_of(file: Path) -> Iterator[str]:
    """What a file says, compressed members and tables included."""
    data = file.read_bytes()
    yield data.decode("latin-1")
    if file.suffix == ".parquet":
        yield repr(pq.read_table(file).to_pydict())
        yield repr(pq.read_metadata(file).metadata)
    elif data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield from (archive.read(name).decode("latin-1") for name in archive.namelist())


def token_ids_of(file: Path) -> Iterator[np.ndarray]:
    if file.read_bytes()[:2] == b"PK":
        with np.load(file, allow_pickle=False) as arrays:
            yield from (arrays[name].ravel() for name in arrays.files)


def holds_ids(found: np.ndarray, wanted: list[int]) -> bool:
    if found.size < len(wanted):
        return False
    windows = np.lib.stride_tricks.sliding_window_view(found, len(wanted))
    return bool((windows == np.array(wanted)).all(1).any())


def assert_silent(*places: Path) -> None:
    files = [
        file for place in places for file in ([place] if place.is_file() else place.rglob("*"))
    ]
    files = [file for file in files if file.is_file()]
    assert files
    for file in files:
        assert all(MARKER not in text for text in texts_of(file)), file


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    for number in (3, 7):
        words = " ".join(f"{MARKER} {n * number % 1009}" for n in range(80))
        (folder / f"p{number}.txt").write_text(words)
    return folder


@pytest.fixture(scope="module")
def calibrated(
    command: Command, tiny_model: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """(run folder, profile) of prompts with the marker, nothing of it said on the way."""
    folder = tmp_path_factory.mktemp("out")
    run, profile = folder / "run", folder / "profile"
    done = command(
        *("sp-profile", "calibrate", "--model", tiny_model, "--prompts", prompts, "-v"),
        *("--block-size", "64", "--min-budget", "128", "-o", run, "--json"),
        SP_DEBUG="1",
    )
    assert done.code == 0, done.err
    made = command(
        *("sp-profile", "cluster", run, "-o", profile, "--min-tokens", "256"),
        *("--min-cluster-size", "2", "-v"),
    )
    assert made.code == 0, made.err
    shown = command("sp-profile", "show", profile, "-v")
    assert MARKER not in done.out + done.err + made.out + made.err + shown.out + shown.err
    return run, profile


def test_calibration_and_profile(calibrated: tuple[Path, Path]) -> None:
    assert_silent(*calibrated)


def test_prefill(
    command: Command,
    tiny_model: Path,
    calibrated: tuple[Path, Path],
    prompts: Path,
    tmp_path: Path,
) -> None:
    target = tmp_path / "results.parquet"
    words = ("sp-run", "prefill", "--model", tiny_model, "--profile", calibrated[1], prompts)
    done = command(*words, "--compare", "dense", "--generate", "6", "-v", "-o", target)
    assert done.code == 0, done.err
    assert MARKER not in done.out + done.err
    assert "generated\n" not in done.out
    assert_silent(target)
    for row in pq.read_table(target).to_pylist():
        assert row["generated"] is row["text"] is row["dense_text"] is None
        assert row["generated_tokens"] >= 1
        assert row["agreement"]["generated_equal"] in (True, False)


def test_evaluation(
    command: Command,
    tiny_model: Path,
    prompts: Path,
    tmp_path: Path,
) -> None:
    """Its results hold no text. Its prompt files hold token ids, so that it resumes: that is why
    the folder as a whole is not for publication, as the documentation says."""
    from transformers import AutoTokenizer

    target = tmp_path / "evaluation"
    done = command(
        *("sp-run", "eval", "--model", tiny_model, "--method", "dense,streaming", "-v"),
        *("--task", "agreement", "--length", "1536", "--samples", "2", "--no-plot"),
        *("--data-prompts", prompts, "--workers", "1", "-o", target),
    )
    assert done.code == 0, done.err
    assert MARKER not in done.out + done.err
    assert_silent(target)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ids = tokenizer(MARKER, add_special_tokens=False)["input_ids"]
    found = {
        file.relative_to(target).parts[0]
        for file in target.rglob("*")
        if file.is_file() and any(holds_ids(each, ids) for each in token_ids_of(file))
    }
    assert found <= {"prompts"}


BAD = {
    "broken.jsonl": f'{{"prompt": "{MARKER}", \n',
    "fields.jsonl": f'{{"prompt": "{MARKER}", "task": ["{MARKER}"]}}\n',
    "list.jsonl": f'["{MARKER}"]\n',
    "empty.jsonl": f'{{"prompt": " ", "other": "{MARKER}"}}\n',
    "nul.txt": f"{MARKER}\0",
    "long.txt": f"{MARKER} " * 3000,
    "kind.md": MARKER,
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_errors_and_tracebacks(
    command: Command, tiny_model: Path, tmp_path: Path, name: str
) -> None:
    file = tmp_path / name
    file.write_text(BAD[name])
    done = command(
        *("sp-run", "prefill", "--model", tiny_model, "--method", "dense", file, "-v"),
        SP_DEBUG="1",
    )
    assert done.code == 2
    assert "Traceback" in done.err  # as SP_DEBUG asks
    assert MARKER not in done.out + done.err


def test_bytes_that_are_no_text(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "bytes.txt"
    file.write_bytes(MARKER.encode() + b"\xff\xfe")
    done = command(
        *("sp-run", "prefill", "--model", tiny_model, "--method", "dense", file), SP_DEBUG="1"
    )
    assert done.code == 2
    assert MARKER not in done.out + done.err
