"""Built-in tasks: exact length, determinism, disjoint splits, answers that are in the text."""

from __future__ import annotations

import json
import random
import re
from collections import Counter

import pytest

from sp_profile.prompts import PromptText, encode
from sp_profile.tasks import TASKS, make_prompt
from sp_profile.tasks.stories import sentence
from sp_profile.words import ADJECTIVES, NOUNS
from sp_runtime.errors import UsageError


@pytest.fixture(scope="module")
def tokenizer(helper):
    return helper("tiny_models").make_tokenizer()


EXPECTED_HASHES = {
    "niah_noise": "91fb9740803c",
    "niah_prose": "4e72cab73e94",
    "niah_multikey": "398904a617f7",
    "niah_multivalue": "1d08d3c36d67",
    "json_kv": "2cf461791c2b",
    "variable_tracking": "fe9fea75b3d2",
    "common_words": "e1b2b07ce3a4",
}


class WordTokenizer:
    """One token a word, whatever the word: every length is reachable."""

    chat_template = None

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": list(range(len(text.split())))}


def test_words_are_common_ascii_words_without_repetition():
    words = ADJECTIVES + NOUNS
    assert len(set(words)) == len(words) == 150
    assert all(re.fullmatch("[a-z]+", word) for word in words)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("tokens", [128, 129, 130, 131, 500, 1024])
def test_length_is_exact_with_a_word_tokenizer(task, tokens):
    prompt = make_prompt(task, tokens, WordTokenizer(), chat_template=False)
    assert len(encode(prompt, WordTokenizer(), chat_template=False)) == tokens


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("tokens", [700, 1024, 2048])
def test_length_is_within_the_documented_tolerance_of_a_crude_tokenizer(tokenizer, task, tokens):
    prompt = make_prompt(task, tokens, tokenizer, chat_template=True)
    assert tokens - 8 <= len(encode(prompt, tokenizer, chat_template=True)) <= tokens


@pytest.mark.parametrize("task", TASKS)
def test_same_arguments_same_prompt_and_any_other_argument_another(task):
    def make(**changes):
        arguments = {"tokens": 400, "seed": 0, "index": 0, "split": "calibration"} | changes
        return make_prompt(task, tokenizer=WordTokenizer(), chat_template=False, **arguments)

    assert make() == make()
    texts = {make(**c).text for c in ({}, {"seed": 1}, {"index": 1}, {"split": "heldout"})}
    assert len(texts) == 4


def test_first_prompt_stays_what_it_is():
    """Profiles name prompts by their hash, so a changed wording must be noticed."""
    prompts = {t: make_prompt(t, 256, WordTokenizer(), chat_template=False) for t in TASKS}
    assert {t: p.sha256(False)[:12] for t, p in prompts.items()} == EXPECTED_HASHES


def test_needles_of_the_two_splits_share_no_key():
    def keys(split):
        found = set()
        for index in range(5):
            prompt = make_prompt(
                "niah_multikey", 900, WordTokenizer(), chat_template=False, index=index, split=split
            )
            found |= set(re.findall(r"numbers for (\S+) is", prompt.text))
        return found

    assert len(keys("calibration")) > 100
    assert not keys("calibration") & keys("heldout")


def make(task: str) -> PromptText:
    return make_prompt(task, 600, WordTokenizer(), chat_template=False, seed=3)


@pytest.mark.parametrize("task", ["niah_noise", "niah_prose", "niah_multikey"])
def test_needle_answers_the_question_once(task):
    prompt = make(task)
    key = re.search(r"magic number for (\S+) mentioned", prompt.answer_prefix).group(1)
    needle = f"One of the special magic numbers for {key} is: {prompt.answers[0]}."
    assert prompt.text.count(needle) == 1
    assert prompt.text.count(key) == 2  # the needle and the question
    assert prompt.text.endswith(f"for {key} mentioned in the provided text?")


def test_every_value_of_the_key_is_in_the_prose_once():
    prompt = make("niah_multivalue")
    key = re.search(r"magic numbers for (\S+) mentioned", prompt.answer_prefix).group(1)
    assert re.findall(rf"magic numbers for {key} is: (\d+)\.", prompt.text) == list(prompt.answers)
    assert len(set(prompt.answers)) == 4


def test_the_common_words_are_those_asked_for():
    prompt = make("common_words")
    listed = re.findall(r"\d+\. (\S+)", prompt.text)
    assert [int(n) for n in re.findall(r"(\d+)\. \S+-", prompt.text)] == [
        *range(1, len(listed) + 1)
    ]
    counts = Counter(listed)
    assert {word for word, _ in counts.most_common(10)} == set(prompt.answers)
    assert {counts[word] for word in set(counts) - set(prompt.answers)} == {1}


def test_prose_repeats_no_sentence_soon_and_ends_every_one():
    sentences = [sentence(rng) for rng in [random.Random(7)] for _ in range(500)]
    assert len(set(sentences)) > 495
    assert all(re.fullmatch(r"[A-Z][^.?!]+\.", text) for text in sentences)
    assert all(4 <= len(text.split()) <= 40 for text in sentences)


def test_json_is_valid_and_holds_the_answer():
    prompt = make("json_kv")
    body = json.loads(re.search(r"\{.*\}", prompt.text).group())
    key = re.search(r'Key: "(\S+)"$', prompt.text).group(1)
    assert len(body) > 5
    assert body[key] == prompt.answers[0]
    assert prompt.answer_prefix == 'The value associated with the specified key is: "'


def test_variables_form_one_chain_from_the_value():
    prompt = make("variable_tracking")
    steps = re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", prompt.text)
    value = re.search(r"assigned the value (\d+) in", prompt.text).group(1)
    assert [name for name, _ in steps] == list(prompt.answers)
    assert [source for _, source in steps] == [value, *prompt.answers[:-1]]


def test_too_short_and_unknown_are_refused():
    with pytest.raises(UsageError, match="takes at least"):
        make_prompt("json_kv", 5, WordTokenizer(), chat_template=False)
    with pytest.raises(UsageError, match="unknown task"):
        make_prompt("poetry", 500, WordTokenizer(), chat_template=False)
    with pytest.raises(UsageError, match="unknown split"):
        make_prompt("json_kv", 500, WordTokenizer(), chat_template=False, split="test")
