"""One calibration prompt's record: masks, recall matrices and candidate costs, as an `.npz` file.

Legend: LH heads of the full-attention layers in (layer, head) order, T causal blocks of the prompt
in row-major order of the lower triangle, K plan candidates, M further masks that are lent, G
thresholds of exact masks.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sp_profile.shard_archive import check_directory, field_error, read_member, size_in_bytes
from sp_profile.thumbnail import num_cells
from sp_runtime.block_index import BlockGrid
from sp_runtime.errors import CorruptArtefactError, SpError
from sp_runtime.profile import PromptRecord
from sp_runtime.strict_json import parse, shown

FORMAT = "sp.shard/1"
MAX_FILE_BYTES = 1 << 30
MAX_UNPACKED_BYTES = 2 << 30
_MAX_META_BYTES = 1 << 16
_META = "meta"
# Members that shards of earlier releases have not, with the size that they bring.
_OPTIONAL: dict[str, str | None] = {
    "mass": None,
    "lent_recall": "num_lent",
    "lent_density": "num_lent",
    "oracle_recall": "num_oracles",
    "oracle_density": "num_oracles",
}
_TOLERANCE = 1e-2  # float32 sums of masses may pass 1 by rounding
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSizes:
    """LH, K, M and G."""

    heads: int
    candidates: int
    lent: int = 0
    oracles: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptShard:
    """What calibration keeps of one prompt; NumPy arrays on the host, never changed.

    heads:            int32 [LH, 2], (layer, head), ascending.
    masks:            uint8 [LH, ceil(T / 8)], the gamma-masks before forcing, packed by
                      `numpy.packbits` (first block in the highest bit, padding bits 0).
    density:          float32 [LH], gamma-mask with the forced blocks on (block 0, the diagonal and
                      the run's local blocks before it), over T.
    recall_exact:     float32 [LH, LH]; [a, b] is the attention mass of head a, averaged over block
                      rows, inside head b's forced gamma-mask; -1 where b's layer comes after a's.
    recall_sampled:   float32 [LH, LH], the same with the masks made from sampled query rows.
    sampled_density:  float32 [LH], density of the forced sampled masks.
    uniform_jsd:      float32 [LH], sqrtJSD (nats) of the last-row estimate a_hat to uniform.
    a_hat_jsd:        float16 [LH, LH], sqrtJSD (nats) between the last-row estimates.
    candidate_cost:   float32 [LH, K], blocks computed and spent on estimation, over T.
    candidate_recall: float32 [LH, K], attention mass inside the candidate's mask, mean over rows.
    mass:             uint8 [LH, S], the exact block mass in small, as `mass_thumbnail` makes it;
                      None in shards of releases that recorded none, as with what follows.
    lent_recall:      float16 [M, LH, LH], as recall_sampled, for the run's further lent masks.
    lent_density:     float32 [M, LH], their density with the forced blocks.
    oracle_recall:    float32 [LH, G], attention mass inside the head's own exact forced mask at
                      each of the run's oracle gammas; oracle_density: its density.
    """

    prompt: PromptRecord
    grid: BlockGrid
    heads: NDArray[np.int32]
    masks: NDArray[np.uint8]
    density: NDArray[np.float32]
    recall_exact: NDArray[np.float32]
    recall_sampled: NDArray[np.float32]
    sampled_density: NDArray[np.float32]
    uniform_jsd: NDArray[np.float32]
    a_hat_jsd: NDArray[np.float16]
    candidate_cost: NDArray[np.float32]
    candidate_recall: NDArray[np.float32]
    mass: NDArray[np.uint8] | None = None
    lent_recall: NDArray[np.float16] | None = None
    lent_density: NDArray[np.float32] | None = None
    oracle_recall: NDArray[np.float32] | None = None
    oracle_density: NDArray[np.float32] | None = None

    @property
    def num_heads(self) -> int:
        """LH."""
        return len(self.heads)

    @property
    def num_blocks(self) -> int:
        """T."""
        return self.grid.num_causal_blocks

    @property
    def num_candidates(self) -> int:
        """K."""
        return self.candidate_cost.shape[1]

    @property
    def num_lent(self) -> int:
        """M; 0 where none were recorded."""
        return 0 if self.lent_density is None else len(self.lent_density)

    @property
    def num_oracles(self) -> int:
        """G; 0 where none were recorded."""
        return 0 if self.oracle_density is None else self.oracle_density.shape[-1]

    @property
    def sizes(self) -> ShardSizes:
        """What the shapes of the arrays follow from, beside the grid."""
        return ShardSizes(
            heads=self.num_heads,
            candidates=self.num_candidates,
            lent=self.num_lent,
            oracles=self.num_oracles,
        )

    def unpack(self, start: int = 0, stop: int | None = None) -> NDArray[np.bool_]:
        """bool [stop - start, T]: the gamma-masks of some heads before forcing."""
        bits = np.unpackbits(self.masks[start:stop], axis=1, count=self.num_blocks)
        return bits.view(np.bool_)


_MEMBERS = frozenset(f"{field.name}.npy" for field in dataclasses.fields(PromptShard)[2:]) | {
    f"{_META}.npy"
}


def unpacked_bytes(tokens: int, block_size: int, sizes: ShardSizes) -> int:
    """Bytes of a shard's arrays before compression."""
    grid = BlockGrid(q_len=tokens, kv_len=tokens, block_size=block_size)
    return sum(size_in_bytes(dtype, shape) for _, dtype, shape in _layout(grid, sizes))


def forced_blocks(grid: BlockGrid, *, local_blocks: int = 0) -> NDArray[np.bool_]:
    """bool [T]: block 0, the diagonal and the blocks just before it of every row, in the order of
    the packed masks."""
    rows, cols = np.tril_indices(grid.num_cols)
    forced: NDArray[np.bool_] = (cols == 0) | (rows - cols <= local_blocks)
    return forced


def shard_to_bytes(shard: PromptShard) -> bytes:
    """The file's bytes; equal shards give equal bytes (with one version of zlib)."""
    validate(shard, "shard")
    meta = {
        "format": FORMAT,
        "prompt_sha256": shard.prompt.sha256,
        "tokens": shard.prompt.tokens,
        "task": shard.prompt.task,
        "block_size": shard.grid.block_size,
        "num_heads": shard.num_heads,
        "num_candidates": shard.num_candidates,
    }
    # Said beside the members, so that a lost one is missed.
    for name, size in _OPTIONAL.items():
        if getattr(shard, name) is not None:
            meta[name] = True
            if size is not None:
                meta[size] = getattr(shard, size)
    encoded = json.dumps(meta, sort_keys=True, separators=(",", ":")).encode("ascii")
    members = [(_META, np.frombuffer(encoded, dtype=np.uint8))]
    for name, _, _ in _layout(shard.grid, shard.sizes):
        if (array := getattr(shard, name)) is not None:
            members.append((name, array))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as archive:
        for name, array in members:
            info = zipfile.ZipInfo(f"{name}.npy", _ZIP_TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def read_shard(path: str | Path) -> PromptShard:
    """Read and validate a shard file.

    Raises CorruptArtefactError naming the file and the field.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise CorruptArtefactError(f"{path}: {size} bytes, more than {MAX_FILE_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise CorruptArtefactError(f"{path}: cannot be read: {error.strerror}") from error
    return shard_from_bytes(data, str(path))


def shard_from_bytes(data: bytes, name: str) -> PromptShard:
    """Parse and validate a shard; `name` stands for the file in messages. Never unpickles."""
    try:
        check_directory(data)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _parse(archive, name)
    # What zipfile raises over damaged bytes: the others are seeks and versions out of range, and
    # RuntimeError an encrypted member.
    except (
        zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError
    ) as error:  # fmt: skip
        raise CorruptArtefactError(f"{name}: damaged shard archive: {shown(str(error))}") from error


def validate(shard: PromptShard, name: str) -> None:
    """Check shapes, dtypes and ranges; raises CorruptArtefactError naming the field."""
    for field, dtype, shape in _layout(shard.grid, shard.sizes):
        array = getattr(shard, field)
        if array is None and field in _OPTIONAL:
            continue
        if array.dtype != dtype or array.shape != shape:
            found = f"{array.dtype}{list(array.shape)}"
            raise field_error(name, field, f"is {found}, expected {np.dtype(dtype)}{list(shape)}")
    for one, other in (("lent_recall", "lent_density"), ("oracle_recall", "oracle_density")):
        if (getattr(shard, one) is None) != (getattr(shard, other) is None):
            raise field_error(name, one, f"comes with {other} or not at all")
    if shard.prompt.tokens != shard.grid.kv_len or shard.grid.q_offset:
        raise field_error(name, "tokens", "does not match the block grid")
    keys = shard.heads[:, 0].astype(np.int64) << 32 | shard.heads[:, 1]
    if (shard.heads < 0).any() or (np.diff(keys) <= 0).any():
        raise field_error(name, "heads", "must be non-negative and ascending")
    padding = -shard.num_blocks % 8
    if padding and (shard.masks[:, -1] & ((1 << padding) - 1)).any():
        raise field_error(name, "masks", "has padding bits set")
    for field in (
        *("density", "sampled_density", "candidate_recall"),
        *("lent_density", "oracle_density", "oracle_recall"),
    ):
        if (array := getattr(shard, field)) is not None:
            _check_range(array, 0, 1, name, field)
    for field in ("uniform_jsd", "a_hat_jsd"):
        _check_range(getattr(shard, field), 0, 1, name, field)
    _check_range(shard.candidate_cost, 0, 1e6, name, "candidate_cost")
    layers = shard.heads[:, 0]
    later = layers[None, :] > layers[:, None]
    for field in ("recall_exact", "recall_sampled", "lent_recall"):
        if (matrix := getattr(shard, field)) is None:
            continue
        if not (matrix[..., later] == -1).all():
            raise field_error(name, field, "must be -1 where the lender's layer comes later")
        _check_range(matrix[..., ~later], 0, 1, name, field)


def _layout(
    grid: BlockGrid, sizes: ShardSizes
) -> tuple[tuple[str, type[np.generic], tuple[int, ...]], ...]:
    packed = -(-grid.num_causal_blocks // 8)
    heads, candidates = sizes.heads, sizes.candidates
    return (
        ("heads", np.int32, (heads, 2)),
        ("masks", np.uint8, (heads, packed)),
        ("density", np.float32, (heads,)),
        ("recall_exact", np.float32, (heads, heads)),
        ("recall_sampled", np.float32, (heads, heads)),
        ("sampled_density", np.float32, (heads,)),
        ("uniform_jsd", np.float32, (heads,)),
        ("a_hat_jsd", np.float16, (heads, heads)),
        ("candidate_cost", np.float32, (heads, candidates)),
        ("candidate_recall", np.float32, (heads, candidates)),
        ("mass", np.uint8, (heads, num_cells(grid.num_rows))),
        ("lent_recall", np.float16, (sizes.lent, heads, heads)),
        ("lent_density", np.float32, (sizes.lent, heads)),
        ("oracle_recall", np.float32, (heads, sizes.oracles)),
        ("oracle_density", np.float32, (heads, sizes.oracles)),
    )


def _parse(archive: zipfile.ZipFile, name: str) -> PromptShard:
    sizes = {info.filename: info.file_size for info in archive.infolist()}
    if any(info.compress_type not in _COMPRESSIONS for info in archive.infolist()):
        raise CorruptArtefactError(f"{name}: a member is neither stored nor deflated")
    if len(sizes) != len(archive.infolist()) or len(sizes) > 64:
        raise CorruptArtefactError(f"{name}: duplicate or too many members")
    unknown = sorted(set(sizes) - _MEMBERS)
    if unknown:
        raise CorruptArtefactError(f"{name}: {shown(unknown[0])} is no part of a shard")
    meta = _parse_meta(read_member(archive, sizes, name, _META, _MAX_META_BYTES), name)
    try:
        tokens = _integer(meta, "tokens", 1, 1 << 26, name)
        block_size = _integer(meta, "block_size", 1, 1 << 16, name)
        grid = BlockGrid(q_len=tokens, kv_len=tokens, block_size=block_size)
    except CorruptArtefactError:
        raise
    except SpError as error:
        raise field_error(name, "block_size", error.message) from error
    layout = _layout(
        grid,
        ShardSizes(
            heads=_integer(meta, "num_heads", 1, 1 << 17, name),
            candidates=_integer(meta, "num_candidates", 0, 1 << 12, name),
            lent=_integer(meta, "num_lent", 0, 1 << 8, name, missing=0),
            oracles=_integer(meta, "num_oracles", 0, 1 << 8, name, missing=0),
        ),
    )
    if sum(size_in_bytes(dtype, shape) for _, dtype, shape in layout) > MAX_UNPACKED_BYTES:
        raise CorruptArtefactError(f"{name}: unpacks to more than {MAX_UNPACKED_BYTES} bytes")
    arrays: dict[str, Any] = {}
    for field, dtype, shape in layout:
        if field in _OPTIONAL and meta.get(field) is not True:
            continue
        # The npy header is at most a few hundred bytes for these small shapes.
        limit = size_in_bytes(dtype, shape) + 4096
        array = read_member(archive, sizes, name, field, limit)
        if array.dtype != dtype or array.shape != shape:
            raise field_error(
                name, field, f"is {array.dtype}{list(array.shape)}, expected {list(shape)}"
            )
        arrays[field] = array
    sha256, task = meta.get("prompt_sha256"), meta.get("task")
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise field_error(name, "prompt_sha256", "is not a SHA-256 in hexadecimal")
    if not isinstance(task, str) or not task.isprintable():
        raise field_error(name, "task", "is not a string of printable characters")
    prompt = PromptRecord(sha256=sha256, tokens=tokens, task=task)
    shard = PromptShard(prompt=prompt, grid=grid, **arrays)
    validate(shard, name)
    return shard


def _parse_meta(array: NDArray[Any], name: str) -> dict[str, object]:
    try:
        meta = parse(array.tobytes(), name)
    except CorruptArtefactError as error:
        raise field_error(name, _META, "is not JSON") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise field_error(name, _META, f"is not of format {FORMAT}")
    return meta


def _integer(
    meta: dict[str, object],
    field: str,
    low: int,
    high: int,
    name: str,
    missing: int | None = None,
) -> int:
    value = meta.get(field, missing)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise field_error(name, field, f"is not an integer in [{low}, {high}]")
    return value


def _check_range(array: NDArray[Any], low: float, high: float, name: str, field: str) -> None:
    values = array.astype(np.float32, copy=False)
    # `not (... all)` and not `any outside`: NaN compares false with everything.
    if not ((values >= low - _TOLERANCE) & (values <= high + _TOLERANCE)).all():
        raise field_error(name, field, f"has values outside [{low:g}, {high:g}]")
