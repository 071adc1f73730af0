"""Loading configs, tokenizers and models; what is wrong with a file is named before it is used."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sp_profile import gguf_weights
from sp_profile.gguf_file import GgufHeader, read_header
from sp_profile.model_files import (
    check_json,
    identify_safetensors,
    safetensors_files,
    sha256_file,
)
from sp_profile.model_source import ModelSource, resolve_model
from sp_runtime.errors import (
    CorruptArtefactError,
    ResourceError,
    UnsupportedError,
    UsageError,
)
from sp_runtime.fingerprint import ModelFingerprint, fingerprint_config
from sp_runtime.hub import hub_errors, hub_library

__all__ = [
    "DTYPES",
    "LoadedConfig",
    "ModelSource",
    "load_config",
    "load_model",
    "load_tokenizer",
    "resolve_device",
    "resolve_model",
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CONFIG_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]


class LoadedConfig(NamedTuple):
    """A model's transformers config, and its identity; no weights are loaded."""

    config: Any
    fingerprint: ModelFingerprint


def load_config(
    source: ModelSource, *, identify_weights: bool = True, trust_remote_code: bool = False
) -> LoadedConfig:
    """Read the config and fingerprint the model.

    identify_weights: hash the weight files too (seconds a large model; a hub id is downloaded).
    Raises UsageError (no such model), CorruptArtefactError, UnsupportedError.
    """
    if source.kind == "gguf":
        header = read_header(_path(source))
        config = _gguf_config(header)
        identity = sha256_file(header.path) if identify_weights else None
    else:
        folder = _folder(source, weights=identify_weights, code=trust_remote_code)
        config = _folder_config(folder, trust_remote_code)
        identity = identify_safetensors(folder) if identify_weights else None
    return LoadedConfig(config, fingerprint_config(config, identity))


def load_tokenizer(source: ModelSource, *, trust_remote_code: bool = False) -> Any:
    """The model's tokenizer; raises as `load_config`, and UsageError where there is none."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if source.kind == "gguf":
        path = _path(source)
        # AutoTokenizer would first parse the whole vocabulary in Python for the config.
        quick = read_header(path).architecture in gguf_weights.ARCHITECTURES
        cls = PreTrainedTokenizerFast if quick else AutoTokenizer
        with _quiet(), _corrupt_if((ValueError, KeyError, IndexError), path):
            return cls.from_pretrained(str(path.parent), gguf_file=path.name)
    folder = _folder(source, weights=False, code=trust_remote_code)
    check_json(folder, "tokenizer.json", "tokenizer_config.json")
    with _quiet():
        try:
            return AutoTokenizer.from_pretrained(
                str(folder), trust_remote_code=trust_remote_code, local_files_only=True
            )
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{source.label}: no usable tokenizer: {_first_line(error)}",
                hint="the folder needs the tokenizer's files beside the weights",
            ) from error


def load_model(
    source: ModelSource,
    dtype: str,
    device: torch.device,
    *,
    config: Any = None,
    trust_remote_code: bool = False,
) -> Any:
    """The causal language model in eval mode with SDPA attention, without gradients.

    dtype: a key of DTYPES. config: from `load_config`, to save reading it again.
    Raises UsageError, CorruptArtefactError, UnsupportedError, ResourceError (memory).
    """
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}", hint=f"use one of {', '.join(DTYPES)}")
    try:
        with _quiet():
            if source.kind == "gguf":
                model = _gguf_model(read_header(_path(source)), config, DTYPES[dtype])
            else:
                folder = _folder(source, weights=True, code=trust_remote_code)
                model = _folder_model(folder, DTYPES[dtype], trust_remote_code)
        return model.to(device).eval().requires_grad_(False)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ResourceError(
            f"{source.label}: not enough memory on {device} for its weights in {dtype}",
            hint="use a smaller dtype or a larger device",
        ) from error


def resolve_device(name: str | None) -> torch.device:
    """`cpu`, `cuda`, `cuda:N`, or `auto` or None: CUDA if there is one; UsageError otherwise."""
    if name in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}", hint="use auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r} is not supported", hint="use auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        if not torch.backends.cuda.is_built():
            why = f"torch {torch.__version__} is built without CUDA"
        else:
            why = f"torch sees {torch.cuda.device_count()} GPUs"
        hint = "use --device cpu; `sp-run env` says what there is"
        raise UsageError(f"there is no device {name}: {why}", hint=hint)
    return device


def _gguf_config(header: GgufHeader) -> Any:
    from transformers import AutoConfig

    tensors = {tensor.name for tensor in header.tensors}
    if header.architecture == "llama" and "rope_freqs.weight" in tensors:
        raise UnsupportedError(
            f"{header.path}: its rope scaling is not read from GGUF files by transformers",
            hint="use the model's safetensors folder instead",
        )
    # transformers takes many seconds to parse a vocabulary in Python, so it gets a copy of the
    # metadata without one.
    with tempfile.TemporaryDirectory(prefix="sp-profile-") as folder:
        Path(folder, "model.gguf").write_bytes(header.without_vocabulary())
        with _quiet(), _corrupt_if((ValueError, KeyError, IndexError, TypeError), header.path):
            config = AutoConfig.from_pretrained(folder, gguf_file="model.gguf")
    embedding = next((t for t in header.tensors if t.name == "token_embd.weight"), None)
    if embedding is not None and config.get_text_config().vocab_size != embedding.shape[0]:
        config.get_text_config().vocab_size = embedding.shape[0]
    return config


def _gguf_model(header: GgufHeader, config: Any, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    config = _gguf_config(header) if config is None else config
    if gguf_weights.is_covered(header):
        return gguf_weights.load_llama(header, config, dtype)
    # A bar that transformers draws whatever its own settings say; standard error is ours.
    with contextlib.redirect_stderr(io.StringIO()):
        return AutoModelForCausalLM.from_pretrained(
            str(header.path.parent),
            gguf_file=header.path.name,
            config=config,
            dtype=dtype,
            attn_implementation="sdpa",
        )


def _folder_config(folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} holds no config.json", hint="give a transformers model folder")
    check_json(folder, "config.json")
    with _quiet():
        try:
            return AutoConfig.from_pretrained(
                str(folder), trust_remote_code=trust_remote_code, local_files_only=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise UnsupportedError(
                f"{folder}: transformers cannot read its config: {_first_line(error)}",
                hint="a newer transformers, or --trust-remote-code if you have read its code",
            ) from error


def _folder_model(folder: Path, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    from transformers import AutoModelForCausalLM

    safetensors_files(folder)
    model, report = AutoModelForCausalLM.from_pretrained(
        str(folder),
        dtype=dtype,
        attn_implementation="sdpa",
        trust_remote_code=trust_remote_code,
        local_files_only=True,
        use_safetensors=True,  # pickled weights could run code
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that they are reported here
    )
    gguf_weights.require_all_loaded(report, folder, ("missing_keys", "mismatched_keys"))
    return model


def _folder(source: ModelSource, *, weights: bool, code: bool) -> Path:
    """The local folder, downloaded from the hub where need be (HF_HUB_OFFLINE is honoured)."""
    if source.kind == "folder":
        return _path(source)
    library = hub_library()
    patterns = _CONFIG_FILES + ["*.safetensors"] * weights + ["*.py"] * code
    place = source.place
    try:
        with hub_errors(place):
            return Path(
                library.snapshot_download(
                    place.repo, revision=place.revision, allow_patterns=patterns
                )
            )
    except UsageError as error:
        raise UsageError(
            f"model {source.label!r} cannot be fetched: {error.message}",
            hint=source.install_hint or error.hint,
        ) from error


def _path(source: ModelSource) -> Path:
    assert source.path is not None
    return source.path


@contextlib.contextmanager
def _corrupt_if(kinds: tuple[type[Exception], ...], path: Path) -> Iterator[None]:
    """Name the file in what a parser raises over its content."""
    try:
        yield
    except kinds as error:
        raise CorruptArtefactError(f"{path}: cannot be read: {_first_line(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Neither bars nor warnings of transformers, whose settings are put back."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
