"""The commands as real subprocesses, and a tiny model folder to run them on."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    def document(self) -> dict[str, Any]:
        """Standard output as exactly one JSON document with a schema."""
        document = json.loads(self.out)
        assert "schema" in document
        return document

    def error_line(self) -> str:
        """The one line that says what went wrong, without a traceback."""
        assert "Traceback" not in self.err
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        return lines[0]


Run = Callable[..., Done]


@pytest.fixture(scope="session")
def command() -> Run:
    """command("sp-run", "env", ...): run a console script of the environment of the tests."""

    def run(program: str, *arguments: str | Path, stdin: bytes = b"", **variables: str) -> Done:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **variables}
        environment.pop("COLUMNS", None)
        script = Path(sys.executable).with_name(program)
        done = subprocess.run(
            [str(script), *map(str, arguments)],
            input=stdin,
            capture_output=True,
            env=environment,
            timeout=300,
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture(scope="session")
def in_process() -> Callable[..., tuple[int, str, str]]:
    """in_process("sp-run", "env", ...): a command in this process, which has torch loaded already:
    code, output, errors."""
    return _in_process


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 2 layers and 4 heads with a byte tokenizer; context 4096."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    _write_tiny_model(folder, layers=2)
    return folder


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like `tiny_model`, of 3 layers."""
    folder = tmp_path_factory.mktemp("model") / "other"
    _write_tiny_model(folder, layers=3)
    return folder


@pytest.fixture(scope="session")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of some 1200 tokens for the tiny tokenizer."""
    file = tmp_path_factory.mktemp("prompts") / "prompt.txt"
    file.write_text(" ".join(f"item {n} is {n * n % 97}" for n in range(80)) + "\n")
    return file


@pytest.fixture(scope="session")
def calibration_prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .jsonl file of two prompts."""
    prompts = tmp_path_factory.mktemp("calibration") / "own.jsonl"
    texts = (f"{seed} " + " ".join(str(n * seed % 1009) for n in range(330)) for seed in (3, 7))
    prompts.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return prompts


@pytest.fixture(scope="session")
def tiny_run(
    tiny_model: Path,
    calibration_prompts: Path,
    command: Run,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A finished calibration of the tiny model."""
    folder = tmp_path_factory.mktemp("run") / "run"
    done = command(
        *("sp-profile", "calibrate", "--model", tiny_model, "--prompts", calibration_prompts),
        *("--block-size", "64", "--min-budget", "128", "-o", folder),
    )
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="session")
def tiny_profile(tiny_run: Path, command: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The profile of that calibration."""
    folder = tmp_path_factory.mktemp("profile") / "profile"
    done = command(
        *("sp-profile", "cluster", tiny_run, "-o", folder),
        *("--min-tokens", "256", "--min-cluster-size", "2"),
    )
    assert done.code == 0, done.err
    return folder


def _write_tiny_model(folder: Path, *, layers: int) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    torch.manual_seed(42)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def _in_process(group: str, *words: str | Path) -> tuple[int, str, str]:
    from sp_cli import profile_main, run_main
    from sp_cli.runner import run

    cli = run_main.cli if group == "sp-run" else profile_main.cli
    handler = signal.getsignal(signal.SIGTERM)
    out, err = io.StringIO(), io.StringIO()
    # The command sets how its streams encode.
    for stream in (out, err):
        stream.reconfigure = lambda **options: None  # type: ignore[attr-defined]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(cli, [str(word) for word in words], group)
    finally:
        signal.signal(signal.SIGTERM, handler)
    return code, out.getvalue(), err.getvalue()
