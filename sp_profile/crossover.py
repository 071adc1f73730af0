"""From which length sparse attention is faster than dense: read from a file, or measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sp_profile.bench.clock import Clock
from sp_profile.bench.inputs import LayerShape
from sp_profile.bench.layer_bench import SCHEMA, Crossover, LayerBench, crossovers
from sp_profile.bench.methods import Method
from sp_runtime.errors import CorruptArtefactError, UsageError
from sp_runtime.kernels.base import Kernels
from sp_runtime.method_spec import PLAN_ALIAS, method_name, parse_method
from sp_runtime.operating_point import default_point
from sp_runtime.profile import Profile
from sp_runtime.strict_json import parse, read_bytes

_DENSITY = 0.15  # of the planted inputs: what a plan computes of prompts that it pays at
_LENGTHS = (2048, 4096, 8192, 16384, 32768)


def read_crossover(path: Path, profile: Profile) -> int:
    """Tokens from which method plan beat dense attention in a `sp-run bench layer` document.

    Raises UsageError where the layer was another one, plan was not measured or never faster,
    CorruptArtefactError where the file is no such document.
    """
    document = parse(read_bytes(path), str(path))
    shapes = _field(document, "rows", path, lambda row: row["shape"])
    found = _field(
        document,
        "crossovers",
        path,
        lambda each: Crossover(
            method=str(each["method"]), tokens=each["tokens"], estimate=each["estimate"]
        ),
    )
    model = profile.model
    wanted = (model.num_heads, model.num_kv_heads, model.head_dim, profile.calibration.block_size)
    for shape in shapes:
        measured = tuple(shape.get(n) for n in ("heads", "kv_heads", "head_dim", "block_size"))
        if measured != wanted:
            raise UsageError(
                f"{path}: was measured for another layer (heads, KV heads, head_dim, block size): "
                f"{measured}, here {wanted}",
                hint="sp-run bench layer --heads {} --kv-heads {} --head-dim {} --block-size {} "
                "--profile PROFILE".format(*wanted),
            )
    plan = next((each for each in found if _is_plan(each.method)), None)
    if plan is None:
        raise UsageError(f"{path}: method plan was not measured", hint="pass --method plan to it")
    return _tokens(plan, max(shape["length"] for shape in shapes))


def measure_crossover(
    profile: Profile,
    kernels: Kernels,
    device: torch.device,
    *,
    lengths: Sequence[int] = _LENGTHS,
    progress: Callable[[int, int], None],
) -> int:
    """Time the layers of the profile's own plan beside dense attention, on planted inputs.

    lengths: in tokens; those beyond the model's context are left out. Raises UsageError where the
    plan is at none of them faster.
    """
    model = profile.model
    point = dataclasses.replace(profile.point(), min_tokens=1)
    if (point.method, point.rule) != ("share", "plan") or not profile.plan.heads:
        point = dataclasses.replace(default_point("vertical_slash"), min_tokens=1)
    method = Method(label=PLAN_ALIAS, point=point, profile=profile)
    bench = LayerBench(kernels, device, Clock(device), layers=model.full_layers, seed=0)
    rows = []
    fitting = [length for length in lengths if length <= model.max_position_embeddings]
    for number, length in enumerate(fitting):
        progress(number, len(fitting))
        shape = LayerShape(
            length=length,
            heads=model.num_heads,
            kv_heads=model.num_kv_heads,
            head_dim=model.head_dim,
            block_size=profile.calibration.block_size,
            dtype="bfloat16" if device.type == "cuda" else "float32",
        )
        inputs, columns = bench.plant(shape, _DENSITY)
        rows.append(bench.row(shape, inputs, columns, method, bench.dense(inputs)))
    progress(len(fitting), len(fitting))
    return _tokens(crossovers(rows)[0], fitting[-1])


def _tokens(found: Crossover, longest: int) -> int:
    if found.tokens is None:
        raise UsageError(
            f"plan was faster than dense attention at no length up to {longest} tokens",
            hint="measure longer ones: sp-run bench layer --length 65536,131072",
        )
    return found.tokens if found.estimate is None else math.ceil(found.estimate)


def _is_plan(text: str) -> bool:
    try:
        return method_name(parse_method(text)) == "share:plan"
    except UsageError:
        return False


def _field(document: Any, name: str, path: Path, read: Callable[[Any], Any]) -> list[Any]:
    """One list of a layer document, each item read; CorruptArtefactError names it."""
    try:
        if document["schema"] != SCHEMA:
            raise KeyError("schema")
        found = [read(item) for item in document[name]]
        if not found:
            raise KeyError(name)
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptArtefactError(
            f"{path}: {name}: is not what `sp-run bench layer --json` writes",
            hint="sp-run bench layer --profile PROFILE -o bench.json",
        ) from error
    return found
