"""`sp-profile show` as people and scripts see it: a pipe, a terminal, few columns, no colours."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sp_cli.output import Output
from sp_cli.show_tables import print_clusters

from sp_profile.figures.palette import ASSIGNMENT_LETTERS
from sp_runtime.profile import (
    HeadPlan,
    NamedPlan,
    Plan,
    load_profile,
    profile_to_json,
    with_profile_id,
)

Command = Callable[..., Any]
ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "profiles" / "smollm2-135m-32k"
GOLDEN = ROOT / "tests" / "golden" / "profile-1.0"  # layers 0, 2 and 3 of full attention
IMPORTED = ROOT / "tests" / "golden" / "profile-1.0-imported"
HALF = "\u2580"


def on_terminal(*arguments: str | Path, columns: int, **variables: str) -> str:
    """What the command writes to a terminal of so many columns."""
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "COLORTERM", "CI")
    }
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("sp-profile")), "show", *map(str, arguments)],
        stdin=secondary,
        stdout=secondary,
        stderr=secondary,
        env={**environment, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", **variables},
    )
    os.close(secondary)
    data = b""
    while True:
        try:
            part = os.read(primary, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        data += part
    os.close(primary)
    assert process.wait(60) == 0, data.decode()
    return data.decode().replace("\r\n", "\n")


def without_escapes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_a_pipe_gets_a_digit_and_a_letter_a_head(command: Command) -> None:
    done = command("sp-profile", "show", SHIPPED)
    assert done.code == 0, done.err
    assert "\x1b" not in done.out
    assert HALF not in done.out
    profile = load_profile(SHIPPED)
    heads = {layer: [] for layer in profile.model.full_layers}
    for head in profile.plan.heads:
        heads[head.layer].append(head)
    rows = re.findall(r"^ *(\d+) ((?:[.#\d] ){9}) (\d\.\d\d)   ((?:\w ?){9})$", done.out, re.M)
    assert [int(row[0]) for row in rows] == list(profile.model.full_layers)
    for layer, digits, mean, letters in rows:
        of_layer = heads[int(layer)]
        for shown, head in zip(digits.split(), of_layer, strict=True):
            low, high = {".": (0, 0.05), "#": (0.95, 9)}.get(shown, (0, 0))
            if shown.isdigit():
                low, high = int(shown) / 10 - 0.05, int(shown) / 10 + 0.05
            assert low <= head.cost <= high
        assert abs(float(mean) - sum(head.cost for head in of_layer) / 9) < 0.0051
        assert letters.split() == [ASSIGNMENT_LETTERS[head.assignment] for head in of_layer]


def test_a_colour_terminal_gets_half_blocks_of_two_layers(command: Command) -> None:
    seen = on_terminal(SHIPPED, columns=80, COLORTERM="truecolor")
    assert "\x1b[38;2;" in seen
    plain = without_escapes(seen)
    rows = [line for line in plain.splitlines() if HALF in line]
    assert len(rows) == 15
    assert all(line.count(HALF) == 2 * 9 * 3 for line in rows)
    assert max(map(len, plain.splitlines())) <= 80
    assert "38;2;" not in on_terminal(SHIPPED, columns=80)  # 256 colours


@pytest.mark.parametrize("columns", [60, 56])
def test_narrow_terminals(columns: int) -> None:
    seen = on_terminal(SHIPPED, columns=columns)
    assert HALF in seen
    # rich writes to the last column, whose line break the terminal would add.
    assert max(map(len, without_escapes(seen).splitlines())) <= columns + 1


def test_no_color_is_respected_on_a_terminal() -> None:
    seen = on_terminal(SHIPPED, columns=80, NO_COLOR="1", COLORTERM="truecolor")
    assert not re.search(r"\x1b\[[0-9;]*[34]8;", seen)
    assert HALF not in seen
    assert "digits: tenths" in seen


def test_no_heatmap_leaves_the_rest(command: Command) -> None:
    whole = command("sp-profile", "show", SHIPPED).out
    bare = command("sp-profile", "show", SHIPPED, "--no-heatmap")
    assert bare.code == 0
    assert "digits" not in bare.out
    assert set(bare.out.splitlines()) < set(whole.splitlines())
    assert "operating points" in bare.out


def test_density_comes_from_the_table_of_heads(command: Command, tmp_path: Path) -> None:
    done = command("sp-profile", "show", SHIPPED, "--heatmap", "density")
    assert done.code == 0, done.err
    assert "density: blocks of the head's own mask" in done.out
    assert re.search("^density +assignment$", done.out, re.M)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "profile.json").write_bytes((SHIPPED / "profile.json").read_bytes())
    assert command("sp-profile", "show", alone).code == 0
    missing = command("sp-profile", "show", alone, "--heatmap", "density")
    assert missing.code in (2, 4)
    assert "heads.parquet" in missing.error_line()


def test_layers_list_their_heads(command: Command) -> None:
    done = command("sp-profile", "show", GOLDEN, "--layer", "2", "--layer", "0")
    assert done.code == 0, done.err
    assert "operating points" not in done.out
    assert done.out.index("layer 2: 4 heads") < done.out.index("layer 0: 4 heads")
    plan = {head.ref: head for head in load_profile(GOLDEN).plan.heads}
    for layer, part in ((2, done.out.split("layer 0")[0]), (0, done.out.split("layer 0")[1])):
        for head in range(4):
            (row,) = re.findall(rf"^ +{head} +.*$", part, re.M)
            found = plan[layer, head]
            assert f" {found.assignment}" in row
            assert f" {found.recall:.3f} " in row
            if found.lender is not None:
                assert f"from {found.lender.layer}.{found.lender.head}" in row
    lending = re.findall(r"^ +0 .*dense.* yes ", done.out, re.M)
    assert len(lending) == 1  # head 0.0 lends


@pytest.mark.parametrize(
    ("layer", "says"),
    [("4", "the model has 4 layers, 0 to 3"), ("1", "sliding-window layer")],
)
def test_a_layer_that_is_not_there_is_refused(command: Command, layer: str, says: str) -> None:
    done = command("sp-profile", "show", GOLDEN, "--layer", layer)
    assert done.code == 2
    assert says in done.error_line()


def test_an_imported_profile_has_no_maps(command: Command) -> None:
    done = command("sp-profile", "show", IMPORTED)
    assert done.code == 0, done.err
    assert "no plan" in done.out
    assert "digits" not in done.out
    refused = command("sp-profile", "show", IMPORTED, "--layer", "0")
    assert refused.code == 2
    assert "no plan" in refused.error_line()


def test_further_plans_are_listed_and_can_be_shown(command: Command, tmp_path: Path) -> None:
    profile = load_profile(GOLDEN)
    dense = tuple(
        HeadPlan(layer=h.layer, head=h.head, assignment="dense", gamma=1.0, recall=1.0, cost=1.0)
        for h in profile.plan.heads
    )
    safe = NamedPlan(name="safe", plan=Plan(recall_floor=0.9, target_recall=0.99, heads=dense))
    several = with_profile_id(dataclasses.replace(profile, plans=(safe,), files=()))
    (tmp_path / "profile.json").write_text(profile_to_json(several))
    own = command("sp-profile", "show", tmp_path)
    assert own.code == 0, own.err
    assert re.search(r"^safe +a mean recall of 0.99 +12 +1.000 +1.000", own.out, re.M)
    assert "plan for a recall of at least 0.9" in own.out
    assert re.search(r"^ *0 [.\d#] ", own.out, re.M)
    other = command("sp-profile", "show", tmp_path, "--plan", "safe")
    assert "plan for a mean recall of 0.99" in other.out
    assert re.findall(r"^ *[023] # # # #  1.00   D D D D$", other.out, re.M)
    refused = command("sp-profile", "show", tmp_path, "--plan", "fast")
    assert refused.code == 2
    assert "no plan 'fast'" in refused.error_line()


def test_many_clusters_are_shown_by_rank(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    (first, *_) = load_profile(GOLDEN).clusters
    clusters = tuple(
        dataclasses.replace(first, id=n, enabled=n == 29, members=first.members[: 1 + n % 3])
        for n in range(30)
    )
    profile = dataclasses.replace(load_profile(GOLDEN), clusters=clusters)
    for every, expected in ((True, 30), (False, 20)):
        print_clusters(Output(json_mode=False), profile, every=every)
        shown = re.findall(r"^ *(\d+) +(\d) +", capsys.readouterr().out, re.M)
        assert len(shown) == expected
        assert ("29", "3") in shown  # the enabled one
        assert [int(number) for number, _ in shown] == sorted(int(number) for number, _ in shown)
        if not every:
            assert {int(size) for _, size in shown} == {2, 3}


def test_json_is_the_profile_whatever_else_is_asked_for(command: Command) -> None:
    plain = command("sp-profile", "show", SHIPPED, "--json").document()
    assert plain["schema"] == "sp.show"
    assert plain["profile"] == json.loads((SHIPPED / "profile.json").read_text())
    options = ("--layer", "2", "--no-heatmap", "--all-clusters")
    assert command("sp-profile", "show", SHIPPED, "--json", *options).document() == plain
