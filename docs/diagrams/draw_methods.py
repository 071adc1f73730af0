"""Draws what each method computes: one prompt, the same queries and keys for every method.

    python docs/diagrams/draw_methods.py --profile PROFILE [--head 9.6] PROMPT.txt

One exact forward of the model; every method then decides on the queries and keys of each layer.
Writes methods.svg (the masks of one head, with the figures of that head) and methods.md (density,
estimation and recall over all heads) beside this file. PROFILE is a profile of smollm2-135m that
holds the windows of `sp-profile search moa`. The search of MInference is left out: its largest
shape covers a prompt of this length whole.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import torch
from torch import Tensor

from sp_profile.models import load_config, load_model, load_tokenizer, resolve_model
from sp_profile.prompts import encode, read_prompts
from sp_runtime.block_index import BlockGrid, BlockIndex
from sp_runtime.integrations.transformers import ForwardCall, attention_session, resolve_point
from sp_runtime.kernels.base import Kernels
from sp_runtime.kernels.select import select_kernels
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.patterns.base import LayerInputs, Pattern
from sp_runtime.patterns.masks import forced_blocks
from sp_runtime.patterns.registry import make_pattern_factory
from sp_runtime.profile import Profile, load_profile

MODEL = "smollm2-135m"
# Windows and counts are cut to the prompt, and settings lie where the densities are alike.
METHODS = (
    "dense",
    "plan",
    "plan:drift=0.2",
    "share:paper:delta=1.01",
    "share:release",
    "vertical_slash",
    "flexprefill:gamma=0.9",
    "sampled",
    "xattention:tau=0.85:stride=8",
    "moa",
    "streaming:sink=64:window=256",
    "lm_infinite:sink=64:window=320",
    "infllm:sink=64:window=128:top_k=192",
    "hip:top_k=384",
)
# Everything; what the picture shows already: vertical-slash on this prompt, the shape of streaming.
NOT_DRAWN = ("dense", "plan:drift", "share:paper", "lm_infinite")
CELL, COLUMNS, GAP = 6, 4, 26
SHADES = 8


@dataclass
class Seen:
    """What one method decided. All float lists: one tensor [H] a layer, over causal blocks."""

    pattern: Pattern
    mask: Tensor | None = None
    density: list[Tensor] = field(default_factory=list)
    cost: list[Tensor] = field(default_factory=list)
    recall: list[Tensor] = field(default_factory=list)


class Observer:
    """An attention handler: exact attention, and what every method would have computed."""

    def __init__(self, profile: Profile, kernels: Kernels, head: tuple[int, int]) -> None:
        self._profile, self._kernels, self._head = profile, kernels, head
        self._grid: BlockGrid | None = None
        (plan,) = (each for each in profile.plan.heads if (each.layer, each.head) == head)
        if plan.lender is None:
            raise SystemExit("the head borrows from nobody: choose another one")
        self.lender = (plan.lender.layer, plan.lender.head)
        self.mass: dict[tuple[int, int], Tensor] = {}
        self.seen: dict[str, Seen] = {}

    def begin(self, call: ForwardCall) -> None:
        size = self._profile.calibration.block_size
        self._grid = BlockGrid(q_len=call.q_len, kv_len=call.kv_len, block_size=size)
        for spec in METHODS:
            factory = make_pattern_factory(self._point(spec), self._profile)
            self.seen[spec] = Seen(pattern=factory())

    def _point(self, spec: str) -> OperatingPoint:
        return resolve_point(self._profile, method=spec)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        grid = self._grid
        assert grid is not None
        inputs = LayerInputs(layer=layer, q=q, k=k, grid=grid, scale=scale, kernels=self._kernels)
        output, lse = self._kernels.attention(
            q, k, v, BlockIndex.full(1, q.shape[1], grid, q.device), scale=scale
        )
        heads = torch.arange(q.shape[1])[None]
        mass = self._kernels.block_mass(q, k, lse, heads, grid, scale=scale)[0]  # [H, R, C]
        self.mass |= {at: mass[at[1]] for at in (self._head, self.lender) if at[0] == layer}
        for seen in self.seen.values():
            self._decide(seen, inputs, mass)
        return output

    def _decide(self, seen: Seen, inputs: LayerInputs, mass: Tensor) -> None:
        decision = seen.pattern.decide(inputs)
        causal = inputs.grid.causal_mask()
        on = torch.where(
            decision.dense[0, :, None, None], causal, decision.head_masks()[0] & causal
        )
        on = on | forced_blocks(inputs.grid, on.device)
        asked = decision.mass_heads
        given = None if asked is None else mass[asked.clamp(min=0)[0]][None]
        seen.pattern.remember(inputs, decision, given)
        blocks = inputs.grid.num_causal_blocks
        seen.density.append(on.sum((1, 2)) / blocks)
        seen.cost.append(decision.cost[0] / blocks)
        seen.recall.append((mass * on).sum((1, 2)) / inputs.grid.num_rows)
        if inputs.layer == self._head[0]:
            seen.mask = on[self._head[1]]


def runs(row: list[int]) -> list[tuple[int, int, int]]:
    """(first, length, value) of the runs of equal non-zero values."""
    found, start = [], 0
    for place in range(1, len(row) + 1):
        if place == len(row) or row[place] != row[start]:
            if row[start]:
                found.append((start, place - start, row[start]))
            start = place
    return found


def panel(levels: Tensor, x: int, y: int) -> list[str]:
    """One path a shade; levels: integers [R, C], 0 for off."""
    paths: dict[int, str] = {}
    for number, row in enumerate(levels.tolist()):
        for first, length, level in runs(row):
            move = f"M{x + first * CELL} {y + number * CELL}h{length * CELL}v{CELL}"
            paths[level] = paths.get(level, "") + f"{move}h-{length * CELL}z"
    return [
        f'<path class="on" fill-opacity="{level / SHADES:g}" d="{path}"/>'
        for level, path in sorted(paths.items())
    ]


def shades(mass: Tensor) -> Tensor:
    """Integers 0 to SHADES of a mass in [0, 1]; the root shows small ones, too small ones are 0."""
    return (mass.sqrt() * SHADES).round().int()


def draw(observer: Observer, head: tuple[int, int]) -> str:
    layer, number = head
    side = observer.mass[head].shape[0]
    panels = [
        (f"head {layer}.{number}", "its attention mass", shades(observer.mass[head])),
        (
            "head {}.{}".format(*observer.lender),
            "its lender's",
            shades(observer.mass[observer.lender]),
        ),
    ]
    for spec, seen in observer.seen.items():
        if spec.startswith(NOT_DRAWN):
            continue
        assert seen.mask is not None
        density, recall = seen.density[layer][number], seen.recall[layer][number]
        figures = f"blocks {density:.2f}, keeps {recall:.2f}"
        panels.append((spec.partition(":")[0] + _rule(spec), figures, seen.mask.int() * SHADES))
    step = side * CELL + GAP
    height = (len(panels) + COLUMNS - 1) // COLUMNS * (step + 34)
    lines = [
        f'<svg class="sp-diagram" viewBox="0 0 {COLUMNS * step - GAP} {height}" '
        f'width="{COLUMNS * step - GAP}" role="img" '
        f'aria-label="Block masks of layer {layer}, head {number} under each method">'
    ]
    for place, (title, figures, levels) in enumerate(panels):
        x, y = place % COLUMNS * step, place // COLUMNS * (step + 34)
        lines.append(f'<text x="{x}" y="{y + 14}">{escape(title)}</text>')
        lines.append(f'<text class="soft" x="{x}" y="{y + 31}">{escape(figures)}</text>')
        stairs = f"h{CELL}v{CELL}" * side
        lines.append(f'<path class="cell" d="M{x} {y + 40}{stairs}H{x}z"/>')
        lines += panel(levels, x, y + 40)
    return "\n".join([*lines, "</svg>", ""])


def _rule(spec: str) -> str:
    part = spec.split(":")[1:2]
    return f":{part[0]}" if part and "=" not in part[0] else ""


def table(observer: Observer) -> str:
    lines = [
        "| method | density | estimation | mean recall | recall of the worst tenth |",
        "|---|--:|--:|--:|--:|",
    ]
    for spec, seen in observer.seen.items():
        density, cost = torch.cat(seen.density).mean(), torch.cat(seen.cost).mean()
        recall = torch.cat(seen.recall)
        lines.append(
            f"| `{spec}` | {density:.3f} | {cost:.3f} | {recall.mean():.3f} "
            f"| {recall.quantile(0.1):.3f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt", help="a .txt file")
    parser.add_argument("--profile", required=True)
    parser.add_argument("--head", default="9.6", help="LAYER.HEAD that is drawn")
    options = parser.parse_args()
    layer, number = map(int, options.head.split("."))
    source = resolve_model(MODEL)
    loaded = load_config(source)
    model = load_model(source, "float32", torch.device("cpu"), config=loaded.config)
    tokenizer = load_tokenizer(source)
    (prompt,) = read_prompts([options.prompt]).prompts
    ids = torch.tensor([encode(prompt, tokenizer, chat_template=True)])
    kernels = select_kernels("reference", "cpu").kernels
    observer = Observer(load_profile(options.profile), kernels, (layer, number))
    with torch.inference_mode(), attention_session(model, observer, name="sp_draw_methods"):
        model.model(ids, use_cache=False)
    folder = Path(__file__).parent
    (folder / "methods.svg").write_text(draw(observer, (layer, number)), "utf-8")
    (folder / "methods.md").write_text(table(observer), "utf-8")


if __name__ == "__main__":
    main()
