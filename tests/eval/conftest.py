"""A tiny model folder, and evaluations made up without a model."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sp_profile.eval.cells import Cell, CellResult, Environment, PromptRow, PromptTiming
from sp_profile.eval.config import EvalConfig
from sp_profile.eval.folder import Evaluation
from sp_profile.eval.methods import DENSE, MethodPlan, expand_methods
from sp_runtime.fingerprint import ModelFingerprint

HERE = Path(__file__)
FINGERPRINT = ModelFingerprint(
    architecture="Llama",
    model_type="llama",
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    layer_types=("full_attention", "full_attention"),
    rope="{}",
    max_position_embeddings=4096,
    config_sha256="0" * 64,
    weights_sha256="1" * 64,
)


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 2 layers and 4 heads with a byte-level tokenizer; context 4096."""
    module = _load("eval_tiny_models", HERE.parents[1] / "tiny_models.py")
    folder: Path = module.save_model(tmp_path_factory.mktemp("model") / "tiny")
    return folder


@pytest.fixture(scope="session")
def make_config() -> Callable[..., EvalConfig]:
    """make_config(methods="...", samples=4, **fields): a configuration without a model."""

    def make(methods: str = "vertical_slash", samples: int = 4, **fields: Any) -> EvalConfig:
        values: dict[str, Any] = {
            "model": "tiny",
            "revision": None,
            "trust_remote_code": False,
            "fingerprint": FINGERPRINT,
            "profiles": (),
            "dtype": "float32",
            "kernels": "auto",
            "block_size": 64,
            "seed": 0,
            "chat_template": False,
            "include_text": False,
            "data": (),
            "methods": expand_methods(methods, samples=samples, profile_points={}),
            "tasks": ("vt",),
            "lengths": (1024,),
        }
        return EvalConfig(**{**values, **fields})

    return make


Scores = Mapping[str, Sequence[float]]


@pytest.fixture(scope="session")
def make_cell() -> Callable[..., CellResult]:
    """make_cell(method, scores, density): one finished cell of made-up rows."""

    def make(
        method: MethodPlan,
        scores: Sequence[float],
        density: float,
        *,
        task: str = "vt",
        length: int = 1024,
        estimation: float = 0.0,
        metric: str = "string_match_all",
        ttft: float | None = None,
        prompts: str = "p",
    ) -> CellResult:
        timing = None if ttft is None else PromptTiming(ttft=ttft, attention=ttft / 2, index=None)
        return CellResult(
            id=Cell(method=method, task=task, length=length).id,
            method=method.label,
            task=task,
            length=length,
            metric=metric,
            environment=Environment(device="cpu", kernels="reference", processes=1, versions=()),
            warmup_runs=0,
            untimed="",
            rows=tuple(
                PromptRow(
                    index=number,
                    prompt_sha256=f"{prompts}{task}{length}-{number}",
                    score=score,
                    density=density,
                    estimation=estimation,
                    path="dense" if method.label == DENSE else "sparse",
                    new_tokens=1,
                    timing=timing,
                    text=None,
                )
                for number, score in enumerate(scores)
            ),
        )

    return make


@pytest.fixture(scope="session")
def make_evaluation() -> Callable[..., Evaluation]:
    """make_evaluation(config, cells): as if read from a folder."""

    def make(config: EvalConfig, cells: Sequence[CellResult]) -> Evaluation:
        return Evaluation(path=Path("eval"), config=config, cells=tuple(cells), failed=())

    return make
