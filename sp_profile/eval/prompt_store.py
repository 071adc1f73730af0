"""The prompts of an evaluation as files, one a task and length: token ids and what is expected."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sp_profile.eval.quoted import quote, unquote
from sp_profile.scoring import MetricName
from sp_profile.tasks import EvalPrompt
from sp_runtime.errors import CorruptArtefactError, UsageError
from sp_runtime.strict_json import decode, encode, parse

PROMPTS_SCHEMA = "sp.eval_prompts/1"
_MAX_BYTES = 1 << 30
_TOKENS, _META = "token_ids", "meta"
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredPrompt:
    """One prompt without its text, enough to prefill and to score.

    sha256: of the text, as `PromptText.sha256`. data: where its material comes from.
    """

    index: int
    sha256: str
    token_ids: npt.NDArray[np.int32]
    answers: tuple[str, ...]
    choices: tuple[str, ...] | None
    metric: MetricName
    max_new_tokens: int
    data: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptFile:
    """The prompts of one task and length, ascending by index."""

    task: str
    length: int
    seed: int
    chat_template: bool
    prompts: tuple[StoredPrompt, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """One prompt's line in the file's metadata; texts are quoted."""

    index: int
    sha256: str
    tokens: int
    answers: tuple[str, ...]
    choices: tuple[str, ...] | None
    metric: MetricName
    max_new_tokens: int
    data: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Meta:
    schema: str
    task: str
    length: int
    seed: int
    chat_template: bool
    tokens_sha256: str
    rows: tuple[_Row, ...]


def prompts_to_bytes(
    prompts: Iterable[EvalPrompt], *, task: str, length: int, seed: int, chat: bool
) -> bytes:
    """The file of the prompts of one task and length; UsageError where there are none."""
    made = list(prompts)
    if not made:
        raise UsageError(f"task {task} has no prompt of {length} tokens", hint="leave it out")
    tokens = np.concatenate([np.asarray(prompt.token_ids, dtype=np.int32) for prompt in made])
    meta = _Meta(
        schema=PROMPTS_SCHEMA,
        task=task,
        length=length,
        seed=seed,
        chat_template=chat,
        tokens_sha256=_digest(tokens),
        rows=tuple(_row(prompt) for prompt in made),
    )
    members = [(_TOKENS, tokens), (_META, np.frombuffer(encode(meta).encode("ascii"), np.uint8))]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as archive:
        for name, array in members:
            info = zipfile.ZipInfo(f"{name}.npy", _ZIP_TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return buffer.getvalue()


def prompts_from_bytes(data: bytes, name: str) -> PromptFile:
    """Read and check a prompt file; CorruptArtefactError starts with `name`."""
    tokens, raw = _read_arrays(data, name)
    meta = decode(_Meta, parse(raw.tobytes(), name), name)
    if meta.schema != PROMPTS_SCHEMA:
        raise CorruptArtefactError(f"{name}: schema: is not {PROMPTS_SCHEMA}")
    if tokens.dtype != np.int32 or tokens.ndim != 1 or _digest(tokens) != meta.tokens_sha256:
        raise CorruptArtefactError(f"{name}: token_ids: are not those that were stored")
    if [row.index for row in meta.rows] != list(range(len(meta.rows))) or not meta.rows:
        raise CorruptArtefactError(f"{name}: rows: are not numbered from 0")
    ends = np.cumsum([row.tokens for row in meta.rows])
    if min(row.tokens for row in meta.rows) < 1 or ends[-1] != len(tokens):
        raise CorruptArtefactError(f"{name}: rows: their tokens do not add up")
    parts = np.split(tokens, ends[:-1])
    return PromptFile(
        task=meta.task,
        length=meta.length,
        seed=meta.seed,
        chat_template=meta.chat_template,
        prompts=tuple(
            _prompt(row, part, f"{name}: rows[{row.index}]")
            for row, part in zip(meta.rows, parts, strict=True)
        ),
    )


def _row(prompt: EvalPrompt) -> _Row:
    choices = prompt.choices
    return _Row(
        index=prompt.index,
        sha256=prompt.sha256,
        tokens=len(prompt.token_ids),
        answers=tuple(quote(answer) for answer in prompt.answers),
        choices=None if choices is None else tuple(quote(choice) for choice in choices),
        metric=prompt.metric,
        max_new_tokens=prompt.max_new_tokens,
        data=prompt.data,
    )


def _prompt(row: _Row, tokens: npt.NDArray[np.int32], name: str) -> StoredPrompt:
    choices = row.choices
    return StoredPrompt(
        index=row.index,
        sha256=row.sha256,
        token_ids=tokens,
        answers=tuple(unquote(answer, f"{name}.answers") for answer in row.answers),
        choices=None
        if choices is None
        else tuple(unquote(choice, f"{name}.choices") for choice in choices),
        metric=row.metric,
        max_new_tokens=row.max_new_tokens,
        data=row.data,
    )


def _read_arrays(data: bytes, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(info.file_size for info in archive.infolist()) > _MAX_BYTES:
                raise CorruptArtefactError(f"{name}: unpacks to more than {_MAX_BYTES} bytes")
            arrays = [
                np.lib.format.read_array(
                    io.BytesIO(archive.read(f"{member}.npy")), allow_pickle=False
                )
                for member in (_TOKENS, _META)
            ]
    # RuntimeError: an encrypted member; KeyError: a missing one.
    except (
        zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, KeyError
    ) as error:  # fmt: skip
        raise CorruptArtefactError(f"{name}: damaged prompt file: {error}") from error
    return arrays[0], arrays[1]


def _digest(tokens: npt.NDArray[np.int32]) -> str:
    return hashlib.sha256(tokens.tobytes()).hexdigest()
