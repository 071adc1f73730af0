"""Ten tasks of InfiniteBench (arXiv 2402.13718), those that sparse-attention papers report.

The prompts are quoted from InfiniteBench (github.com/OpenBMB/InfiniteBench, src/prompt.py, the
templates for base models, MIT), in the wording that MInference and FlexPrefill run. What a
template ends with after the question is the answer prefix, so that it opens the answer in a chat.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType

from sp_profile.prompts import PromptText, encode
from sp_profile.scoring.metrics import MetricName
from sp_profile.tasks.cell import Cell
from sp_profile.tasks.eval_prompt import EvalPrompt
from sp_profile.tasks.infinitebench_file import Example, data_file, read_examples
from sp_profile.tasks.middle import cut_middle
from sp_runtime.errors import UsageError

_PREFIX = "infinitebench_"
_LETTERS = "ABCD"
_HASH_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class _Spec:
    """template: of the user's turn, with {context}, {input}, {target} and {a} to {d}.

    new_tokens: as InfiniteBench generates (src/eval_utils.py).
    """

    template: str
    metric: MetricName
    new_tokens: int
    answer_prefix: str = ""
    options: bool = False


_SPECS = MappingProxyType(
    {
        "longbook_sum_eng": _Spec(
            template="Summarize the book below.\n\n{context}\n",
            answer_prefix="Summary:",
            metric="rouge_lsum",
            new_tokens=1200,
        ),
        "longbook_qa_eng": _Spec(
            template="Read the book and answer the question. Be very concise in your answer.\n\n"
            "{context}\n\nQuestion: {input}",
            answer_prefix="Answer:",
            metric="qa_f1",
            new_tokens=40,
        ),
        "longbook_choice_eng": _Spec(
            template="Read the book and answer the question.\n\n{context}\n\nQuestion: {input}\n"
            "A. {a}\nB. {b}\nC. {c}\nD. {d}\n",
            answer_prefix="The letter of the correct answer is",
            metric="choice",
            new_tokens=40,
            options=True,
        ),
        "longdialogue_qa_eng": _Spec(
            template="Below is a dialogue script where one random occurrence of a character name "
            'is replaced with "$$MASK$$", and you should try to guess who that character is.\n\n'
            "{context}\n",
            answer_prefix="The name that has been replaced with $$MASK$$ is likely",
            metric="name_match",
            new_tokens=40,
        ),
        "longbook_qa_chn": _Spec(
            template="\u9605\u8bfb\u4ee5\u4e0b\u4e66\u7c4d\u7136\u540e\u56de\u7b54\u95ee\u9898"
            "\u3002\n\n{context}\n\n\u95ee\u9898\uff1a{input}",
            answer_prefix="\u7b54\u6848\uff1a",
            metric="qa_f1_zh",
            new_tokens=40,
        ),
        "code_debug": _Spec(
            template="Following is a Python code where exactly one of the functions/methods has a "
            "deliberate error that makes it crash.\n\n{context}\n\nOptions:\nA. {a}\nB. {b}\n"
            "C. {c}\nD. {d}\n",
            answer_prefix="The correct option is:",
            metric="code_choice",
            new_tokens=5,
            options=True,
        ),
        "math_find": _Spec(
            template="What is {target} in the following list?\n\n{context}\n\n{input}",
            metric="first_number",
            new_tokens=3,
        ),
        "passkey": _Spec(
            template="There is an important info hidden inside a lot of irrelevant text. Find it "
            "and memorize it. I will quiz you about the important information.\n\n{context}\n\n"
            "{input}\n",
            answer_prefix="The pass key is",
            metric="first_integer",
            new_tokens=6,
        ),
        "number_string": _Spec(
            template="There is an important info hidden inside a lot of irrelevant text. Find it. "
            "I will quiz you about the important information there.\n\n{context}\n\n{input}\n",
            answer_prefix="The sequence of digits is",
            metric="first_integer",
            new_tokens=12,
        ),
        "kv_retrieval": _Spec(
            template="Extract the value corresponding to the specified key in the JSON object "
            "below.\n\n{context}\n\n{input}",
            metric="word_match",
            new_tokens=50,
        ),
    }
)
INFINITEBENCH_TASKS = tuple(f"{_PREFIX}{name}" for name in _SPECS)


def infinitebench_prompts(cell: Cell) -> Iterator[EvalPrompt]:
    """The first examples of the published file, cut in the middle to the cell's length.

    Shorter examples keep their length. Raises UsageError for a missing or broken file.
    """
    name = cell.task.removeprefix(_PREFIX)
    spec = _SPECS[name]
    path = data_file(cell.data.infinitebench, name, cell.task)
    origin = _sha256(path)
    index = -1
    examples = read_examples(path, with_options=spec.options)
    for index, example in enumerate(islice(examples, cell.samples)):
        yield _prompt(cell, index, spec, example, origin)
    if index < 0:
        raise UsageError(f"{path}: holds no example", hint=f"task {cell.task} reads it")


def _prompt(cell: Cell, index: int, spec: _Spec, example: Example, origin: str) -> EvalPrompt:
    letters = dict(zip("abcd", example.options, strict=False))
    target = _target(example) if "{target}" in spec.template else ""

    def whole(context: str) -> PromptText:
        text = spec.template.format(context=context, input=example.input, target=target, **letters)
        return PromptText(
            text=text,
            name=cell.name(index),
            task=cell.task,
            answers=_answers(example) if spec.options else example.answers,
            answer_prefix=spec.answer_prefix,
        )

    text, ids = cut_middle(
        example.context,
        whole,
        lambda prompt: encode(prompt, cell.tokenizer, chat_template=cell.chat_template),
        cell.length,
    )
    return cell.prompt(
        index,
        text,
        ids,
        metric=spec.metric,
        max_new_tokens=spec.new_tokens,
        origin=origin,
        choices=example.options or None,
    )


def _answers(example: Example) -> tuple[str, str]:
    """(text, letter) of the right option."""
    answer = example.answers[0]
    if answer in example.options:
        return answer, _LETTERS[example.options.index(answer)]
    letters = [each for each in example.answers if each in _LETTERS]
    if not letters:
        raise UsageError(f"{example.where}.answer: is none of the options")
    return example.options[_LETTERS.index(letters[0])], letters[0]


def _target(example: Example) -> str:
    """`the largest number` of a Math.Find question that begins `The largest number of`."""
    found = re.search(r"The .+ of", example.input)
    if found is None:
        raise UsageError(f"{example.where}.input: does not say which number is meant")
    return found.group().lower().removesuffix(" of")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()
