"""Prompt files read strictly, and prompts turned into tokens; nothing is ever truncated."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sp_runtime.errors import SpError, UsageError

STDIN = "-"
_SUFFIXES = (".jsonl", ".txt")
_MAX_FILE_BYTES = 1 << 30
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptText:
    """A prompt before it is tokenized.

    name: where it comes from, for messages and results. task: a built-in task or the user's label.
    answers: what a right answer holds, each of them. answer_prefix: how the answer begins; it is
    part of the prompt.
    """

    text: str
    name: str
    task: str = ""
    answers: tuple[str, ...] = ()
    answer_prefix: str = ""

    def sha256(self, chat_template: bool) -> str:
        """Identity of what the model is asked, in hexadecimal.

        Hashed: `chat` or `text`, a newline, the text in UTF-8, and for an answer prefix a NUL and
        the prefix. The name and the task are no part of it.
        """
        digest = hashlib.sha256(b"chat\n" if chat_template else b"text\n")
        digest.update(self.text.encode("utf-8", "surrogatepass"))
        if self.answer_prefix:
            digest.update(b"\0" + self.answer_prefix.encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadPrompts:
    """prompts in the order given; problems: what --keep-going left out, one error each."""

    prompts: tuple[PromptText, ...]
    problems: tuple[SpError, ...] = field(default=())


def read_prompts(paths: Sequence[str], *, keep_going: bool = False) -> ReadPrompts:
    """Read `.jsonl` and `.txt` files, folders of them (sorted by name) and `-` (standard input).

    A text file is one prompt; a JSON line is an object with `prompt` or `text`, and maybe `task`,
    `id` and `answer_prefix`. A byte order mark is dropped and CRLF becomes LF.

    Raises UsageError naming file, and line or byte offset, at the first problem; with keep_going
    problems are collected, and only no prompt at all raises.
    """
    prompts: list[PromptText] = []
    problems: list[SpError] = []
    for found in iter_prompts(paths):
        if isinstance(found, PromptText):
            prompts.append(found)
        elif keep_going:
            problems.append(found)
        else:
            raise found
    if not prompts:
        raise problems[0] if problems else UsageError("no prompts were given")
    return ReadPrompts(prompts=tuple(prompts), problems=tuple(problems))


def iter_prompts(paths: Sequence[str]) -> Iterator[PromptText | UsageError]:
    """Like `read_prompts`, one file in memory at a time; a problem is yielded in its place."""
    for path in paths:
        try:
            files = _files(path)
        except UsageError as error:
            yield error
            continue
        for file in files:
            try:
                parts = _file_parts(file)
            except UsageError as error:
                yield error
                continue
            for part in parts:
                try:
                    yield _prompt(part)
                except UsageError as error:
                    yield error


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """One prompt's raw form: `name` says where it is, `is_json` that it is a JSON line."""

    name: str
    text: str
    is_json: bool


def _files(path: str) -> list[str]:
    if path == STDIN:
        return [STDIN]
    place = Path(path)
    if place.is_dir():
        found = sorted(str(entry) for entry in place.iterdir() if entry.suffix in _SUFFIXES)
        if not found:
            raise UsageError(f"{path}: holds no .txt or .jsonl file", hint="give another folder")
        return found
    if not place.exists():
        raise UsageError(f"{path}: no such file", hint="check the path of the prompt file")
    if place.suffix not in _SUFFIXES:
        raise UsageError(f"{path}: unknown kind of prompt file", hint="use .txt, .jsonl or -")
    return [path]


def _file_parts(path: str) -> list[_Part]:
    text = _decode(_read(path), path)
    if not path.endswith(".jsonl"):
        return [_Part(name=path, text=text, is_json=False)]
    lines = enumerate(text.split("\n"), start=1)
    return [
        _Part(name=f"{path}:{number}", text=line, is_json=True) for number, line in lines if line
    ]


def _read(path: str) -> bytes:
    try:
        if path == STDIN:
            data = sys.stdin.buffer.read(_MAX_FILE_BYTES + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise UsageError(f"{path}: larger than {_MAX_FILE_BYTES} bytes", hint="split the file")
    return data


def _decode(data: bytes, path: str) -> str:
    offset = data.find(b"\0")
    if offset >= 0:
        raise UsageError(
            f"{path}: not a text file: NUL at byte {offset}", hint="prompts are UTF-8 text"
        )
    start = len(_BOM) if data.startswith(_BOM) else 0
    try:
        text = data[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: not UTF-8 at byte {start + error.start}", hint="convert it to UTF-8"
        ) from error
    text = text.replace("\r\n", "\n")
    if not text.strip():
        raise UsageError(f"{path}: the file is empty", hint="give it a prompt, or leave it out")
    return text


def _prompt(part: _Part) -> PromptText:
    if not part.is_json:
        return PromptText(text=part.text, name=part.name)
    try:
        row = json.loads(part.text)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{part.name}: broken JSON: {error}", hint="one JSON object a line"
        ) from error
    if not isinstance(row, dict):
        raise UsageError(f"{part.name}: not a JSON object", hint='such as {"prompt": "..."}')
    text = row.get("prompt", row.get("text"))
    if not isinstance(text, str) or not text.strip():
        raise UsageError(
            f"{part.name}: no text under `prompt` or `text`", hint='such as {"prompt": "..."}'
        )
    task, name = row.get("task", ""), row.get("id", part.name)
    prefix = row.get("answer_prefix", "")
    if not all(isinstance(value, str) for value in (task, prefix)) or not isinstance(
        name, (str, int)
    ):
        raise UsageError(
            f"{part.name}: `task`, `id` and `answer_prefix` must be text", hint="leave them out"
        )
    return PromptText(text=text, name=str(name), task=task, answer_prefix=prefix)


def encode(
    prompt: PromptText, tokenizer: Any, *, chat_template: bool, max_tokens: int | None = None
) -> tuple[int, ...]:
    """Token ids of a prompt, with the answer prefix as the beginning of the answer.

    chat_template: the text becomes one user turn. max_tokens: the model's context length.
    Raises UsageError for a tokenizer without a chat template, an empty result, and a prompt that
    is longer than the context.
    """
    if chat_template:
        rendered = _render(prompt.text, tokenizer) + prompt.answer_prefix
        ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    else:
        separator = "\n" if prompt.answer_prefix else ""
        ids = tokenizer(prompt.text + separator + prompt.answer_prefix)["input_ids"]
    if not ids:
        raise UsageError(f"{prompt.name}: the prompt has no tokens")
    if max_tokens is not None and len(ids) > max_tokens:
        raise UsageError(
            f"{prompt.name}: {len(ids)} tokens, more than the model's context of {max_tokens}",
            hint="shorten the prompt (or --length); nothing is truncated silently",
        )
    return tuple(ids)


def has_chat_template(tokenizer: Any) -> bool:
    """Whether the tokenizer can make a chat turn of a prompt."""
    return bool(getattr(tokenizer, "chat_template", None))


def _render(text: str, tokenizer: Any) -> str:
    if not has_chat_template(tokenizer):
        raise UsageError(
            "the model's tokenizer has no chat template", hint="use --no-chat-template"
        )
    rendered: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    return rendered
