"""What calibration costs beside a dense forward: time and device memory, on random weights.

    python benchmarks/calibration_cost.py --tokens 32768 --layers 32

The model has the shape of Llama-3.1-8B (32 query heads, 8 KV heads, head_dim 128, hidden 4096);
calibration is the recording forward of one prompt, everything but the tokenizer and the disk.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import transformers
import triton

from sp_profile.candidates import MaskSettings, default_candidates
from sp_profile.record import RecordingHandler, RecordSettings
from sp_runtime.integrations.transformers import attention_session
from sp_runtime.kernels.select import select_kernels
from sp_runtime.profile import PromptRecord


def build_model(layers: int, tokens: int) -> torch.nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=max(tokens, 131072),
        vocab_size=128256,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.eval().requires_grad_(False)


def measure(run: Callable[[], object], repeats: int) -> tuple[list[float], int]:
    """Seconds of each repeat after one warm-up, and the peak device memory above the start."""
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds, torch.cuda.max_memory_allocated() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    model = build_model(args.layers, args.tokens)
    ids = torch.randint(0, 128000, (1, args.tokens), device="cuda")
    handler = RecordingHandler(
        RecordSettings(
            block_size=args.block_size,
            gamma=0.9,
            sample_stride=8,
            candidates=default_candidates(),
            mask_settings=MaskSettings(),
            layers=tuple(range(args.layers)),
            num_heads=32,
        ),
        select_kernels("triton", torch.device("cuda")).kernels,
    )
    prompt = PromptRecord(sha256="0" * 64, tokens=args.tokens, task="")

    @torch.inference_mode()
    def dense() -> None:
        model.model(ids, use_cache=False)

    @torch.inference_mode()
    def calibrate() -> None:
        with attention_session(model, handler, name="sp_calibration_cost"):
            model.model(ids, use_cache=False)
        handler.shard(prompt)

    dense_s, dense_bytes = measure(dense, args.repeats)
    calibrate_s, calibrate_bytes = measure(calibrate, args.repeats)
    ratio = statistics.median(calibrate_s) / statistics.median(dense_s)
    report = {
        "schema": "sp.bench.calibration_cost",
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "transformers": transformers.__version__,
        "tokens": args.tokens,
        "layers": args.layers,
        "dense_seconds": [round(s, 4) for s in dense_s],
        "calibrate_seconds": [round(s, 4) for s in calibrate_s],
        "time_ratio": round(ratio, 3),
        "dense_peak_mib": dense_bytes >> 20,
        "calibrate_peak_mib": calibrate_bytes >> 20,
        "extra_mib": (calibrate_bytes - dense_bytes) >> 20,
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
