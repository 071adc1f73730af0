"""What a calibration would take, found before it is run: time, disk and memory."""

from __future__ import annotations

import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sp_profile.calibrate import Calibration, prepare
from sp_profile.calibration_config import CalibrationConfig
from sp_profile.record import RecordingHandler
from sp_profile.run_config import RunConfig
from sp_profile.run_folder import CALIBRATION
from sp_profile.run_group import RunGroup
from sp_profile.shard import ShardSizes, unpacked_bytes
from sp_profile.timing import synchronize
from sp_profile.work_folder import finished_units
from sp_runtime.block_index import BlockGrid
from sp_runtime.integrations.transformers import attention_session

_PROBES = (512, 1024)  # tokens of the measured forwards, shorter where every prompt is
_ZIP_BYTES = 4096  # names, npy headers and the directory of a shard's archive
_SLICE_BYTES = 7 << 24  # of unpacked masks in `record`: bits, shifted bits, bools and floats
_SCORE_BYTES = 4 << 20  # of two batches of tiles in the reference kernels
_ACCUMULATOR = 4  # bytes of the float32 that masses and estimates are kept in


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryNeed:
    """Bytes on the device at the peak, for the longest prompt.

    weights: of the model in the run's dtype, exact. activations: of one forward, apart from what is
    recorded. recording: masses, masks and what comes of them. See `memory_need`.
    """

    weights: int
    activations: int
    recording: int

    @property
    def total(self) -> int:
        return self.weights + self.activations + self.recording


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRun:
    """What is left to do in a folder and what it takes. Sizes in bytes, times in seconds.

    resumed: prompts that the folder already holds. tokens: of the prompts that are left.
    disk: most that their shards take; compressed, they are smaller.
    seconds: for one process of `processes`; None where nothing is left or the memory does not
        suffice for the measurement. probes: tokens of the forwards that were measured for it.
    memory_free, disk_free: what was found.
    """

    run: RunConfig
    resumed: int
    prompts: int
    tokens: int
    longest: int
    disk: int
    disk_free: int
    memory: MemoryNeed
    memory_free: int
    seconds: float | None
    probes: tuple[int, ...]
    processes: int

    @property
    def missing(self) -> tuple[str, ...]:
        """What does not suffice, in words; empty if the run fits."""
        found = []
        if self.prompts and self.memory.total > self.memory_free:
            found.append(
                f"{self.memory.total} bytes of memory are needed on {self.run.device}, "
                f"{self.memory_free} are free"
            )
        if self.disk > self.disk_free:
            found.append(f"{self.disk} bytes of disk are needed, {self.disk_free} are free")
        return tuple(found)


def dry_run(
    config: CalibrationConfig, output: str | Path, *, group: RunGroup | None = None
) -> DryRun:
    """What `calibrate` with the same arguments would take; nothing is written.

    The time is that of two forwards with recording, of 512 and 1024 tokens, on the same device,
    continued as a * n + b * n^2; the model is loaded for them if it fits.
    Raises as `calibrate`, FolderLockedError and disk errors excepted.
    """
    group = group or RunGroup()
    prepared = prepare(config, group)
    run = prepared.run
    finished = finished_units(Path(output), CALIBRATION, run)
    left = [prompt for prompt in run.prompts if prompt.sha256 not in finished]
    heads = len(run.fingerprint.full_layers) * run.fingerprint.num_heads
    longest = max((prompt.tokens for prompt in left), default=0)
    sizes = ShardSizes(
        heads=heads,
        candidates=len(run.candidates),
        lent=len(run.lending),
        oracles=len(run.oracle_gammas),
    )
    disk = sum(unpacked_bytes(prompt.tokens, run.block_size, sizes) + _ZIP_BYTES for prompt in left)
    memory = memory_need(prepared.loaded.config, run, max(longest, 1))
    memory_free = free_memory(prepared.device)
    probes = tuple(sorted({min(tokens, longest) for tokens in _PROBES}))
    fits = memory.total <= memory_free
    seconds = None
    if left and fits:
        seconds = _estimate(prepared, probes, [prompt.tokens for prompt in left])
        seconds /= min(group.world_size, len(left))
    return DryRun(
        run=run,
        resumed=len(finished),
        prompts=len(left),
        tokens=sum(prompt.tokens for prompt in left),
        longest=longest,
        disk=disk,
        disk_free=free_disk(Path(output)),
        memory=memory,
        memory_free=memory_free,
        seconds=seconds,
        probes=probes if seconds is not None else (),
        processes=group.world_size,
    )


def memory_need(config: Any, run: RunConfig, tokens: int) -> MemoryNeed:
    """The peak for a prompt of N `tokens`; no weights are loaded.

    With e bytes an element of the dtype, H heads of D over K KV heads, d and f the hidden and the
    intermediate size, C block columns, T causal blocks, L recorded heads in all, c candidates, M
    further masks that are lent and G oracle gammas:
    activations  N e (6 d + max(3 f, 2 (H + K) D)): residual, norms and the wider half of a layer;
    recording    32 H N for the log-sum-exp, the estimates and copies of them, 16 H N D for the
                 kernels' float32 copies of q, k, v and the output, 40 H C^2 for masses, their
                 sorting and masks, (3 + M) L T / 8 for packed masks, (12 + 6 M) L^2 + 4 L C +
                 8 L (c + G) for results, 112 MiB of slices at the most, and 4 MiB for batches of
                 scores.
    The factors are bounds: tests hold them against what the reference kernels allocate on a CPU.
    """
    e = torch.finfo(getattr(torch, run.dtype)).bits // 8
    text = config.get_text_config()
    shape = run.fingerprint
    heads, kv_heads, dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
    hidden = text.hidden_size
    wide = getattr(text, "intermediate_size", None) or 4 * hidden
    grid = BlockGrid(q_len=tokens, kv_len=tokens, block_size=run.block_size)
    blocks, cols = grid.num_causal_blocks, grid.num_cols
    recorded = len(shape.full_layers) * heads
    return MemoryNeed(
        weights=_weight_bytes(config, run),
        activations=tokens * e * (6 * hidden + max(3 * wide, 2 * (heads + kv_heads) * dim)),
        recording=(
            8 * heads * tokens * _ACCUMULATOR
            + 4 * tokens * dim * heads * _ACCUMULATOR
            + 40 * heads * cols * cols
            + (3 + len(run.lending)) * recorded * math.ceil(blocks / 8)
            + (12 + 6 * len(run.lending)) * recorded * recorded
            + 4 * recorded * (cols + 2 * (len(run.candidates) + len(run.oracle_gammas)))
            + min(_SLICE_BYTES, 7 * recorded * blocks)
            + _SCORE_BYTES
        ),
    )


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device, or to this process where it is the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        cgroup = Path("/sys/fs/cgroup")
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            used = int((cgroup / "memory.current").read_text(encoding="ascii"))
            free.append(max(0, int(limit) - used))
    except OSError:  # not Linux, or no limit
        pass
    return min(free)


def free_disk(path: Path) -> int:
    """Bytes that are free where `path` is or would be made."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _weight_bytes(config: Any, run: RunConfig) -> int:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, run.dtype), trust_remote_code=run.trust_remote_code
        )
    tensors = (*model.parameters(), *model.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _estimate(prepared: Calibration, probes: tuple[int, ...], lengths: list[int]) -> float:
    """Seconds for prompts of these lengths, one after another."""
    model = prepared.load_model()
    handler = RecordingHandler(prepared.record_settings(), prepared.kernels)
    layers = frozenset(prepared.run.fingerprint.full_layers)
    seconds = []
    with attention_session(model, handler, name="sp_recording", layers=layers):
        for tokens in (probes[0], *probes):  # the first one warms up, and compiles
            seconds.append(_forward_seconds(prepared, model, tokens))
    linear, square = fit(probes, seconds[1:])
    return sum(linear * tokens + square * tokens**2 for tokens in lengths)


def _forward_seconds(prepared: Calibration, model: Any, tokens: int) -> float:
    vocabulary = prepared.loaded.config.get_text_config().vocab_size
    ids = torch.arange(tokens, device=prepared.device)[None] % vocabulary
    synchronize(prepared.device)
    start = time.perf_counter()
    with torch.inference_mode():
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
    synchronize(prepared.device)
    return time.perf_counter() - start


def fit(tokens: tuple[int, ...], seconds: list[float]) -> tuple[float, float]:
    """(a, b), not negative, with a * n + b * n^2 through one or two measurements."""
    if len(tokens) == 1:
        return 0.0, seconds[0] / tokens[0] ** 2  # the prompts are no longer than the probe
    (n, m), (s, t) = tokens, seconds
    square = max(0.0, (t / m - s / n) / (m - n))
    return max(0.0, t / m - square * m), square
