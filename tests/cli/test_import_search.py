"""`sp-profile import` and `search` as subprocesses, and what they write as `prefill` runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sp_profile.artefact import read_heads, read_masks, verify_files
from sp_runtime.profile import load_profile

Command = Callable[..., Any]

PUBLISHED = {
    "clusters": {"0": [[0, 0], [1, 0], [1, 2]], "1": [[0, 1]]},
    "shared_clusters": [0],
}


def test_a_published_file_is_imported_without_weights_shown_and_run(
    command: Command, tiny_model: Path, prompt: Path, tmp_path: Path
) -> None:
    bare, file, target = tmp_path / "tiny", tmp_path / "published.json", tmp_path / "profile"
    bare.mkdir()
    (bare / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    file.write_text(json.dumps(PUBLISHED))
    done = command(
        *("sp-profile", "import", file, "--model", bare, "--block-size", "64"),
        *("-o", target, "--json"),
    )
    assert done.code == 0, done.err
    document = done.document()
    assert document["kind"] == "shareprefill"
    assert document["found"][0] == "2 clusters hold 4 of 8 heads"
    assert "no plan: rule plan is refused" in document["lacks"]
    shown = command("sp-profile", "show", target)
    assert shown.code == 0, shown.err
    assert "no plan: nothing was measured" in shown.out
    assert "shared as published" in shown.out
    ran = command(
        *("sp-run", "prefill", "--model", tiny_model, "--profile", target, prompt, "--json"),
        *("--method", "share:paper:delta=2:tau=2:min_budget=64"),
    )
    assert ran.code == 0, ran.err
    document = ran.document()
    assert (document["method"], document["rule"]) == ("share", "paper")
    assert document["point"]["delta"] == 2
    branches = document["results"][0]["sparsity"]["branches"]
    assert branches["pivot"] == 1
    assert branches["shared"] == 2  # heads 0 and 2 of layer 1 borrow from head 0 of layer 0


def test_searches_add_head_patterns_and_change_nothing_else(
    command: Command, tiny_model: Path, tiny_profile: Path, prompt: Path, tmp_path: Path
) -> None:
    # One of the calibration's own prompts, and one that it never saw.
    texts = ["7 " + " ".join(str(n * 7 % 1009) for n in range(330)), "unseen " * 200]
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    before = (tiny_profile / "profile.json").read_bytes()
    common = ("--model", tiny_model, "--device", "cpu")
    shaped, both = tmp_path / "shaped", tmp_path / "both"
    done = command(
        *("sp-profile", "search", "minference", *common, "--profile", tiny_profile),
        *("--prompts", own, "--top-k", "128", "-o", shaped, "--json"),
    )
    assert done.code == 0, done.err
    document = done.document()
    assert document["schema"] == "sp.search.minference"
    assert document["prompts"] == 1  # the unseen one is left out
    assert sum(pattern["heads"] for pattern in document["patterns"]) == 8
    assert 0 < document["mass"] <= 1.001

    done = command(
        *("sp-profile", "search", "moa", *common, "--profile", shaped / "profile.json"),
        *("--prompts", own, "--density", "0.5", "-o", both),
    )
    assert done.code == 0, done.err
    assert "no choice of these windows keeps more than" in done.out

    assert (tiny_profile / "profile.json").read_bytes() == before
    old, new = load_profile(tiny_profile), load_profile(both)
    assert new.head_patterns is not None
    assert new.head_patterns.moa is not None
    assert new.head_patterns.moa.density == 0.5
    assert new.head_patterns.minference == load_profile(shaped).head_patterns.minference
    assert new.profile_id != old.profile_id
    assert (new.plan, new.clusters, new.points) == (old.plan, old.clusters, old.points)
    verify_files(both, new)
    assert read_heads(both, new).equals(read_heads(tiny_profile, old))
    assert [*read_masks(both, new)] == [*read_masks(tiny_profile, old)]
    shown = command("sp-profile", "show", both)
    assert "patterns of method minference: searched on 1 calibration prompts" in shown.out
    assert "windows of method moa: searched on 1 calibration prompts" in shown.out

    ran = command(
        *("sp-run", "prefill", *common, "--profile", both, prompt),
        *("--method", "minference:min_tokens=1", "--json"),
    )
    assert ran.code == 0, ran.err
    branches = ran.document()["results"][0]["sparsity"]["branches"]
    assert branches["a_shape"] + branches["vertical_slash"] + branches["block_sparse"] == 8


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("vertical_slas", "unknown method 'vertical_slas'"),
        ("streaming:gamma=0.5", "gamma has no effect in method streaming"),
    ],
)
def test_a_mistake_in_a_method_costs_no_time(
    method: str, message: str, command: Command, prompt: Path
) -> None:
    done = command("sp-run", "prefill", "--model", "no-such-model", "--method", method, prompt)
    assert done.code == 2
    assert message in done.error_line()


def test_help_names_the_methods(command: Command) -> None:
    done = command("sp-run", "prefill", "--help")
    assert done.code == 0
    for method in ("xattention", "minference", "lm_infinite", "share:release"):
        assert method in done.out
