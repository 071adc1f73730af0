"""What an evaluation prompt is, where its data come from, and who may draw what at random."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sp_profile.scoring.metrics import MetricName
from sp_profile.words import ADJECTIVES, NOUNS

GENERATED = "generated"
SAMPLE = "built-in sample"

# Calibration draws its keys from the other half, so no needle is in both.
EVAL_NOUNS = NOUNS[len(NOUNS) // 2 :]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalPrompt:
    """One prompt of an evaluation cell (task, length).

    index: its number in the cell. length: tokens that the cell asks for. token_ids: what the model
    sees, chat template and answer prefix included. text: the user's turn, or the plain text.
    answers: what the metric compares with. choices: the options of a multiple-choice question.
    max_new_tokens: as the benchmark generates; 0 where nothing is generated.
    data: GENERATED, SAMPLE, or the sha256 of the files that were read, joined by `+`.
    sha256: identity as `PromptText.sha256` computes it, comparable with a profile's prompts.
    """

    task: str
    index: int
    length: int
    token_ids: tuple[int, ...]
    text: str
    answer_prefix: str
    answers: tuple[str, ...]
    metric: MetricName
    max_new_tokens: int
    choices: tuple[str, ...] | None
    data: str
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskData:
    """Files that evaluation tasks read; None: the sample that ships, where there is one.

    essay: plain text for the haystack of the essay tasks. squad: SQuAD JSON (v1.1 or v2.0) for
    qa_1. hotpotqa: HotpotQA JSON for qa_2. infinitebench: folder of the published JSON lines (no
    sample). text: plain text for ppl. prompts: files or folders of the task agreement (no sample).
    """

    essay: Path | None = None
    squad: Path | None = None
    hotpotqa: Path | None = None
    infinitebench: Path | None = None
    text: Path | None = None
    prompts: tuple[str, ...] = ()


def eval_rng(*parts: object) -> random.Random:
    """A generator named by its parts, in a namespace that calibration does not use.

    The same on every platform and Python release.
    """
    name = "/".join(map(str, parts))
    digest = hashlib.sha256(f"sp-profile/eval-tasks/1/{name}".encode()).digest()
    return random.Random(int.from_bytes(digest, "big"))


def distinct_keys(rng: random.Random) -> Iterator[str]:
    """Adjective-noun keys without end and without repetition, such as `calm-meadow`."""
    names = [f"{adjective}-{noun}" for adjective in ADJECTIVES for noun in EVAL_NOUNS]
    rng.shuffle(names)
    again = 0
    while True:
        yield from (f"{name}-{again}" if again else name for name in names)
        again += 1
