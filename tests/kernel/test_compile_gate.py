"""Every kernel and configuration compiles for its architectures without a GPU.

Shared memory and registers must fit the architecture, and no register may spill.
"""

from __future__ import annotations

from functools import partial

import pytest

pytest.importorskip("triton")

# Bytes that ptxas spills although registers are free: a word stored and loaded again.
KNOWN_SPILLS = {("sm89", "block_sparse_kernel", "d256-block64-float32"): 16}
KERNELS = {
    "block_sparse_kernel",
    "block_mass_kernel",
    "slot_lse_kernel",
    "last_lse_kernel",
    "estimate_kernel",
}


@pytest.fixture
def compiled(reported):
    return partial(reported, "compile_run.py")


def check(lines: list[dict], kernels: set[str] = KERNELS) -> None:
    assert {line["kernel"] for line in lines} >= kernels
    bad = [
        line
        for line in lines
        if line["spilled"] > KNOWN_SPILLS.get((line["arch"], line["kernel"], line["shape"]), 0)
        or line["shared"] > line["limit"]
        or line["registers"] * line["threads"] > 65536
    ]
    assert not bad, "\n".join(map(str, bad))


@pytest.mark.slow
@pytest.mark.parametrize("dim", ["64", "128", "256"])
@pytest.mark.parametrize("arch", ["sm80", "sm89", "sm90"])
def test_half_precision_configurations_compile(arch, dim, compiled):
    check(compiled(arch, dim))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm80", "sm89", "sm90"])
def test_float32_configurations_compile(arch, compiled):
    check(compiled(arch, "64", "128", "256", "--float"))


@pytest.mark.slow
def test_pointer_configurations_compile_for_hopper(compiled):
    """Keys that no descriptor can address run the pointer configurations on sm_90 too."""
    check(compiled("sm90", "64", "128", "256", "--pointers"))


@pytest.mark.slow
def test_warp_specialised_kernels_compile(compiled):
    lines = compiled("sm90", "64", "128", "--hopper")
    check(lines, {"hopper_kernel", "hopper_mass_kernel"})
    assert len(lines) == 8
    for line in lines:
        assert line["threads"] == 384  # two consumers, one padded producer
        # Products run asynchronously, and no barrier joins the two consumers: each computes
        # exponentials while the products of the other run.
        assert not line["serialised"]
        assert line["widest"] == 128
        if line["kernel"] == "hopper_mass_kernel":
            # Three of the four exponential sections of a consumer (the last block's first half and
            # both halves of the steady loop) also run during its own products; the last half of
            # all has no product left to hide behind.
            assert line["exp2"] == 512
            assert line["inside"] >= 320
        else:
            # The overlap is left to the other consumer: ptxas raises the wait for P V above the
            # exponentials, and keeping them below it with a branch was slower.
            assert line["exp2"] >= 256
