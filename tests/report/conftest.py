"""A calibrated, clustered and evaluated tiny model, and data of any size made up without one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from sp_profile.calibrate import calibrate
from sp_profile.calibration_config import CalibrationConfig
from sp_profile.cluster import ClusterConfig, build_profile
from sp_profile.eval.request import EvalRequest
from sp_profile.eval.results import make_summary, store_results
from sp_profile.eval.runner import evaluate
from sp_profile.report.data import load_report_data
from sp_profile.report.data_similarity import dendrogram
from sp_profile.report.data_types import GalleryPrompt, ReportData
from sp_profile.thumbnail import as_squares
from sp_runtime.profile import HeadRef, PromptRecord

NASTY = "<script>window.pwned = 1</script>"

torch.set_num_threads(1)


@dataclasses.dataclass(frozen=True)
class Measured:
    """Folders of one tiny model: everything a report can be made from."""

    model: Path
    prompts: Path
    run: Path
    profile: Path
    evaluation: Path


@pytest.fixture(scope="session")
def measured(
    helper: Callable[[str], ModuleType], tmp_path_factory: pytest.TempPathFactory
) -> Measured:
    """A random Llama of 2 layers and 4 heads on four prompts of two tasks, one of which is
    hostile."""
    root = tmp_path_factory.mktemp("report")
    model = helper("tiny_models").save_model(root / "model")
    prompts = root / "prompts.jsonl"
    texts = [(f"{n * step % 1009} " for n in range(count)) for step, count in ((3, 300), (7, 340))]
    lines = [{"text": "".join(text) + NASTY, "task": NASTY} for text in texts]
    lines += [{"text": f"{line['text']} and again", "task": "own"} for line in lines]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    calibrate(
        CalibrationConfig(
            model=str(model), prompts=(str(prompts),), block_size=64, min_budget=128, device="cpu"
        ),
        root / "run",
    )
    build_profile(
        root / "run",
        root / "profile",
        ClusterConfig(distance=0.9, min_cluster_size=2, min_tokens=256),
    )
    evaluate(
        EvalRequest(
            model=str(model),
            profiles=(("", root / "profile"),),
            methods="vertical_slash:gamma={0.5,0.9}:min_budget=64:min_tokens=256,share",
            tasks="niah_single_1",
            lengths=(512,),
            samples=1,
            device="cpu",
        ),
        root / "eval",
        lambda what, done, total: None,
    )
    store_results(root / "eval", make_summary(root / "eval"))
    return Measured(
        model=model,
        prompts=prompts,
        run=root / "run",
        profile=root / "profile",
        evaluation=root / "eval",
    )


@pytest.fixture(scope="session")
def data(measured: Measured) -> ReportData:
    return load_report_data(measured.profile, measured.run, measured.evaluation)


@pytest.fixture
def make_data(examples: ModuleType) -> Callable[..., ReportData]:
    """make_data(layers, heads): a profile of that size with pictures that do not compress."""

    def make(layers: int, heads: int, seed: int = 0) -> ReportData:
        rng = np.random.default_rng(seed)
        base = examples.make_profile()
        model = dataclasses.replace(
            base.model,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=heads,
            layer_types=("full_attention",) * layers,
        )
        refs = [HeadRef(layer, head) for layer in range(layers) for head in range(heads)]
        plan = [
            examples.plan_of(*ref, "vertical_slash", recall=rng.random(), cost=rng.random())
            for ref in refs
        ]
        cluster = dataclasses.replace(base.clusters[0], members=tuple(refs[::2]), anchor=refs[0])
        profile = dataclasses.replace(
            base,
            model=model,
            plan=dataclasses.replace(base.plan, heads=tuple(plan)),
            clusters=(cluster,),
        )
        columns = examples.similarity(profile, seed)
        count = len(refs)

        def pictures() -> np.ndarray:
            return as_squares(rng.integers(0, 256, (count, 528), dtype=np.uint8))

        def ratios() -> np.ndarray:
            return rng.random(count).astype(np.float32)

        gallery = tuple(
            GalleryPrompt(
                prompt=PromptRecord(sha256=f"{n:064x}", tokens=4096 << n, task="json_kv"),
                side=32,
                masks=pictures(),
                mass=pictures(),
                density=ratios(),
                jaccard_anchor=ratios(),
                recall_anchor=ratios(),
            )
            for n in range(3)
        )
        return ReportData(
            profile=profile,
            heads=tuple(examples.head_rows(profile)),
            similarity=columns,
            dendrogram=dendrogram(columns, count),
            gallery=gallery,
            spread=(),
            curves=None,
            evaluation=None,
            has_run=True,
        )

    return make
