"""A literal solver finds the answers of every RULER task in its prompt, and nothing else."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from sp_profile.scoring import score
from sp_profile.tasks import eval_task_groups
from sp_profile.tasks.word_counts import english_words

GROUPS = eval_task_groups()
NEEDLES = [name for name in GROUPS["ruler"] if name.startswith("niah")]
NEEDLE = re.compile(r"One of the special magic (numbers|uuids) for (\S+) is: (\S+)\.(?=\s|$)")
# haystack, kinds of key and value, needles that are meant, questions (synthetic.yaml of RULER)
EXPECTED = {
    "niah_single_1": ("noise", "words", "numbers", 1, 1),
    "niah_single_2": ("essay", "words", "numbers", 1, 1),
    "niah_single_3": ("essay", "words", "uuids", 1, 1),
    "niah_multikey_1": ("essay", "words", "numbers", 4, 1),
    "niah_multikey_2": ("needle", "words", "numbers", None, 1),
    "niah_multikey_3": ("needle", "uuids", "uuids", None, 1),
    "niah_multivalue": ("essay", "words", "numbers", 4, 1),
    "niah_multiquery": ("essay", "words", "numbers", 4, 4),
}
KINDS = {
    "words": r"[a-z]+-[a-z]+(-\d+)?",
    "numbers": r"[1-9]\d{6}",
    "uuids": r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
}


def solve_needles(prompt):
    """Values of the keys of the question, in the order of the text for each key."""
    query = re.search(r"What (?:is|are all) the special magic \w+ for (.+) mentioned", prompt.text)
    keys = query.group(1).replace(", and ", ", ").split(", ")
    return [value for key in keys for _, k, value in NEEDLE.findall(prompt.text) if k == key]


def solve_chain(prompt):
    value = re.search(r"assigned the value (\d+) in", prompt.text).group(1)
    steps = re.findall(r"^VAR (\w+) = (?:VAR )?(\w+)$", prompt.text, re.MULTILINE)
    held = {value}
    for name, source in steps:
        if source in held:
            held.add(name)
    return [name for name, _ in steps if name in held]


def solve_list(prompt):
    listed = prompt.text.rsplit("Memorize the ones", 1)[1]
    counts = Counter(re.findall(r"\d+\. ([a-z-]+)", listed))
    return [word for word, _ in counts.most_common(10)]


def solve_code(prompt):
    coded = prompt.text.split("coded words. ", 1)[1].split("\nQuestion:")[0]
    counts = Counter(word for word in coded.split() if word != "...")
    return [word for word, _ in counts.most_common(3)]


def solve_json(prompt):
    pairs = json.loads(re.search(r"\{.*\}", prompt.text).group())
    return [pairs[re.search(r'Key: "(\S+)"$', prompt.text).group(1)]]


def solver(task):
    special = {"vt": solve_chain, "cwe": solve_list, "fwe": solve_code, "json_kv": solve_json}
    return special.get(task, solve_needles)


@pytest.mark.parametrize("task", [*NEEDLES, "vt", "cwe", "fwe", "json_kv"])
@pytest.mark.parametrize("length", [1100, 4096])
def test_literal_solver_finds_the_answers(smollm, prompts, task, length):
    for prompt in prompts(task, smollm, length, samples=4):
        found = solver(task)(prompt)
        if task == "cwe":
            assert set(found) == set(prompt.answers)
        else:
            assert found == list(prompt.answers)
        assert score(prompt.metric, " ".join(found), prompt) == 1.0
        assert score(prompt.metric, "I do not know.", prompt) == 0.0


@pytest.mark.parametrize("task", NEEDLES)
def test_needles_are_those_of_the_benchmark(smollm, prompts, task):
    haystack, key, value, meant, queries = EXPECTED[task]
    (prompt,) = prompts(task, smollm, 2048)
    needles = NEEDLE.findall(prompt.text)
    assert {kind for kind, _, _ in needles} == {value}
    assert all(re.fullmatch(KINDS[key], k) and re.fullmatch(KINDS[value], v) for _, k, v in needles)
    assert len(needles) == meant if meant else len(needles) > 20
    distinct = {k for _, k, _ in needles}
    assert len(distinct) == (1 if task == "niah_multivalue" else len(needles))
    assert ("The grass is green." in prompt.text) == (haystack == "noise")
    single = len(prompt.answers) == 1
    start = f"{'A' if single else 'Some'} special magic {value[:-1] if single else value} "
    assert prompt.text.startswith(start + ("is" if single else "are") + " hidden within")
    assert prompt.answer_prefix.startswith(f"The special magic {value[:-1] if single else value} ")
    assert prompt.answer_prefix.endswith(f"provided text {'is' if single else 'are'}")
    assert len(prompt.answers) == (4 if task == "niah_multivalue" else queries)


def test_prose_is_that_of_the_file_in_order(smollm, prompts, tmp_path):
    text = " ".join(f"Sentence number {n} is {'very ' * (n % 5)}short." for n in range(400))
    path = tmp_path / "essay.txt"
    path.write_text(text)
    (prompt,) = prompts("niah_single_2", smollm, 1500, essay=path)
    body = NEEDLE.sub("", prompt.text.split("\n")[-2])
    numbers = [int(n) for n in re.findall(r"Sentence number (\d+)", body)]
    assert len(numbers) > 50
    start = numbers[0]
    assert numbers == [(start + n) % 400 for n in range(len(numbers))]


def test_depths_vary(smollm, prompts):
    places = [
        p.text.index("One of the special") / len(p.text)
        for p in prompts("niah_single_1", smollm, 1024, samples=20)
    ]
    assert min(places) < 0.3
    assert max(places) > 0.7


def test_variables_are_one_chain_in_noise(smollm, prompts):
    (prompt,) = prompts("vt", smollm, 1024)
    assert len(set(prompt.answers)) == 5
    assert all(re.fullmatch("[A-Z]{5}", name) for name in prompt.answers)
    value = re.search(r"(\d{5})", prompt.answer_prefix).group(1)
    assert f"VAR {prompt.answers[0]} = {value}\n" in prompt.text
    assert "5 variables are assigned" in prompt.answer_prefix


@pytest.mark.parametrize(("length", "common", "other"), [(2048, 6, 1), (4096, 30, 3)])
def test_common_words_have_the_benchmark_s_counts(smollm, prompts, length, common, other):
    (prompt,) = prompts("cwe", smollm, length)
    listed = prompt.text.rsplit("Memorize the ones", 1)[1]
    entries = re.findall(r"(\d+)\. ([a-z-]+)", listed)
    assert [int(number) for number, _ in entries] == list(range(1, len(entries) + 1))
    counts = Counter(word for _, word in entries)
    assert {counts.pop(word) for word in prompt.answers} == {common}
    assert set(counts.values()) == {other}
    assert prompt.text.count("What are the 10 most common words") == 2  # one of them is solved


def test_words_of_the_list_are_english_and_enough():
    from sp_profile.tasks.task_files import read_task_file

    found = english_words(read_task_file(None, "cwe", "prose_sample.txt").text)
    assert len(found) > 2000
    assert list(found) == sorted(set(found))
    assert {"about", "father", "garden"} <= set(found)
    assert english_words("It's the Word-play: words, Words words.") == ("words",)


def test_list_longer_than_the_vocabulary(words, prompts):
    """Beyond the words of the sample come pairs, still each of them three times."""
    (prompt,) = prompts("cwe", words, 40_000)
    listed = prompt.text.rsplit("Memorize the ones", 1)[1]
    counts = Counter(re.findall(r"\d+\. ([a-z-]+)", listed))
    assert len(counts) > 5000
    assert set(counts.values()) == {3, 30}


def test_coded_words_follow_the_zeta_distribution(words, prompts):
    (prompt,) = prompts("fwe", words, 4000)
    coded = prompt.text.split("coded words. ", 1)[1].split("\nQuestion:")[0]
    counts = [count for _, count in Counter(coded.split()).most_common(6)]
    total = counts[1] * 4
    for rank, count in enumerate(counts[1:], start=2):
        assert count == pytest.approx(total / rank**2, rel=0.05, abs=1.5)


@pytest.mark.parametrize("task", ["qa_1", "qa_2"])
def test_answers_of_questions_are_in_the_documents(smollm, prompts, task):
    made = prompts(task, smollm, 3000, samples=12)
    queries = [prompt.text.rsplit("Question: ", 1)[1] for prompt in made]
    assert len(set(queries)) == 12
    places = []
    for prompt in made:
        context = prompt.text.split("given documents.\n\n", 1)[1].rsplit("\n\nAnswer the", 1)[0]
        assert any(answer in context for answer in prompt.answers)
        numbers = [int(n) for n in re.findall(r"^Document (\d+):$", context, re.MULTILINE)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) > 10
        documents = re.split(r"\n*Document \d+:\n", context)[1:]
        places.append(next(n for n, d in enumerate(documents) if prompt.answers[0] in d))
    assert len(set(places)) > 3


def test_where_the_documents_end_prose_follows_and_is_named(smollm, prompts, tmp_path):
    essay = tmp_path / "essay.txt"
    essay.write_text("Nothing happened in the quiet village. " * 500)
    (short,) = prompts("qa_1", smollm, 2048, essay=essay)
    (long,) = prompts("qa_1", smollm, 8192, essay=essay)
    assert short.data == "built-in sample"
    name, digest = long.data.split("+")
    assert name == "built-in sample"
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert "Nothing happened in the quiet village." in long.text
    assert len(long.token_ids) == 8192
