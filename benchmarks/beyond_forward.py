"""What pseudo keys for the blocks left out (see beyond.py) bring where errors pass through layers.

    python benchmarks/beyond_forward.py MODEL OUT.json [--length 4096] [--task niah_prose ...]
        [--block-size 64] [--gamma 0.8 ...]

Every layer computes the blocks of each head's own sampled mask, stride 16, with and without the
pseudo keys. Written: density, and the Kullback-Leibler divergence in nats from the next-token
distribution of dense attention, mean over every eighth position. On the CPU, in float32.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from beyond_core import CORRECTED, GAMMAS, SOURCES, attend_row, forced_gamma_masks, source_masses
from torch import Tensor

from sp_profile.models import load_model, load_tokenizer, resolve_model
from sp_profile.prompts import encode, has_chat_template
from sp_profile.tasks import TASKS, make_prompt
from sp_runtime.integrations.transformers import ForwardCall, attention_session

EVERY = 8


class Sparse:
    """An `AttentionHandler`: dense attention at gamma 1, else sampled masks, maybe with keys."""

    def __init__(self, size: int, gamma: float, *, keys: bool) -> None:
        self._size, self._gamma, self._keys = size, gamma, keys
        self._densities: list[float] = []

    @property
    def density(self) -> float:
        """Blocks computed over causal blocks, mean over layers and heads."""
        return sum(self._densities) / len(self._densities)

    def begin(self, call: ForwardCall) -> None:
        assert call.q_offset == 0, "prompts come in one piece"
        self._densities = []

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        if self._gamma == 1:
            self._densities.append(1.0)
            return F.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scale, enable_gqa=True
            )
        groups = (q[0] * scale).split(q.shape[1] // k.shape[1])
        parts = [
            sparse_output(*group, size=self._size, gamma=self._gamma, keys=self._keys)
            for group in zip(groups, k[0], v[0], strict=True)
        ]
        self._densities.append(sum(density for _, density in parts) / len(parts))
        return torch.cat([out for out, _ in parts])[None]


def sparse_output(
    q: Tensor, k: Tensor, v: Tensor, *, size: int, gamma: float, keys: bool
) -> tuple[Tensor, float]:
    """Output [G, N, D] of q [G, N, D], scaled, under sampled masks of k, v [N, D]; its density."""
    length, out, blocks = q.shape[1], torch.empty_like(q), 0.0
    rows = -(-length // size)
    for row in range(rows):
        start, stop = row * size, min(length, (row + 1) * size)
        at = attend_row(q[:, start:stop], k[:stop], v[:stop], size, 1)
        mass = source_masses(at.shares, [torch.ones(row + 1)] * 2)[SOURCES.index(CORRECTED[1])]
        masks = forced_gamma_masks(mass[:, None])[GAMMAS.index(gamma)].float()
        out[:, start:stop] = (at.with_keys(masks) if keys else at.outputs(masks))[:, 0]
        blocks += masks.sum().item()
    return out, blocks / (len(q) * rows * (rows + 1) / 2)


def next_tokens(model: torch.nn.Module, ids: tuple[int, ...], handler: Sparse) -> Tensor:
    """Log-probabilities [positions, vocabulary] of the next token."""
    kept = torch.arange(EVERY - 1, len(ids), EVERY)
    with attention_session(model, handler, name="sp_beyond"), torch.inference_mode():
        done = model(input_ids=torch.tensor([ids]), use_cache=False, logits_to_keep=kept)
        return done.logits[0].log_softmax(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--task", choices=TASKS, action="append", help="default: every one")
    parser.add_argument("--block-size", type=int, default=64, choices=(64, 128))
    parser.add_argument("--gamma", type=float, choices=GAMMAS, action="append", help="0.8, 0.9")
    chosen = parser.parse_args()
    source = resolve_model(chosen.model)
    tokenizer, chat = load_tokenizer(source), has_chat_template(load_tokenizer(source))
    model = load_model(source, "float32", torch.device("cpu"))
    rows = []
    for task in chosen.task or TASKS:
        prompt = make_prompt(task, chosen.length, tokenizer, chat_template=chat)
        ids = encode(prompt, tokenizer, chat_template=chat)
        dense = next_tokens(model, ids, Sparse(chosen.block_size, 1, keys=False))
        for gamma in chosen.gamma or (0.8, 0.9):
            for keys in (False, True):
                handler = Sparse(chosen.block_size, gamma, keys=keys)
                found = next_tokens(model, ids, handler)
                divergence = F.kl_div(found, dense, log_target=True, reduction="batchmean").item()
                rows.append({"task": task, "gamma": gamma, "keys": keys})
                rows[-1] |= {"density": round(handler.density, 5), "kl": round(divergence, 6)}
                print(rows[-1], flush=True)
    document = {"length": chosen.length, "block_size": chosen.block_size, "rows": rows}
    chosen.out.write_text(json.dumps(document, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
