"""attach(): the real engine on tiny models, from the operating point to the report."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sp_runtime.errors import ProfileMismatchError, UnsupportedError, UsageError
from sp_runtime.fingerprint import fingerprint_config
from sp_runtime.integrations.transformers import attach, resolve_point
from sp_runtime.integrations.transformers_session import SESSION_ATTRIBUTE
from sp_runtime.operating_point import OperatingPoint, default_point
from sp_runtime.profile import (
    Calibration,
    Cluster,
    ClusterEvidence,
    HeadPlan,
    NamedPoint,
    Plan,
    Producer,
    Profile,
    PromptRecord,
    full_attention_heads,
)

FULL_FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "phi3", "glm4"]
EVERY_BLOCK = OperatingPoint(method="vertical_slash", gamma=1.0, min_tokens=1)
SPARSE = OperatingPoint(method="streaming", sink=64, window=64, min_tokens=1)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def make_profile():
    """make_profile(model): layer 0's first head lends to every head of the later full layers."""

    def make(model) -> Profile:
        identity = fingerprint_config(model.config)
        heads = full_attention_heads(identity)
        lender = heads[0]
        plans = [
            HeadPlan(
                layer=head.layer,
                head=head.head,
                assignment="dense" if head.layer == lender.layer else "borrow",
                gamma=1.0,
                lender=None if head.layer == lender.layer else lender,
                recall=1.0,
                cost=1.0,
            )
            for head in heads
        ]
        evidence = ClusterEvidence(
            jaccard_mean=0.5,
            jaccard_core_mean=0.5,
            recall_mean=0.9,
            recall_p10=0.9,
            lender_density=0.5,
            vertical_slash_density=0.6,
            saving=0.1,
            reason="a test",
        )
        base = OperatingPoint(min_tokens=64)
        return Profile(
            producer=Producer(name="test", version="0"),
            model=identity,
            model_name="tiny",
            calibration=Calibration(
                prompts=(PromptRecord(sha256="0" * 64, tokens=100),),
                gamma=0.9,
                block_size=64,
                dtype="float32",
                seed=0,
                chat_template=False,
                sample_stride=8,
            ),
            clusters=(
                Cluster(id=0, members=heads, anchor=lender, enabled=True, evidence=evidence),
            ),
            plan=Plan(recall_floor=0.9, heads=tuple(plans)),
            points=(
                NamedPoint(name="default", point=base),
                NamedPoint(name="quick", point=SPARSE),
            ),
        )

    return make


def branches(totals) -> dict[str, int]:
    return {branch.name: branch.count for branch in totals.branches}


def assert_close(ours, dense):
    torch.testing.assert_close(ours, dense, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("family", [*FULL_FAMILIES, "gemma3"])
def test_every_block_on_equals_dense(family, make_model, make_tokens):
    model, ids = make_model(family), make_tokens(201)
    dense = model(ids).logits
    with attach(model, point=EVERY_BLOCK, block_size=64) as report:
        ours = model(ids).logits
    assert_close(ours, dense)
    summary = report.summary()
    assert [forward.path for forward in summary.forwards] == ["sparse"]
    assert summary.totals.density == 1.0


def test_an_audit_tells_what_the_masks_keep(make_model, make_tokens):
    model, ids = make_model("llama"), make_tokens(300)
    with attach(model, point=SPARSE, block_size=64):
        plain = model(ids).logits
    with attach(model, point=SPARSE, block_size=64, audit=1.0) as report:
        assert torch.equal(model(ids).logits, plain)
    heads = model.config.num_hidden_layers * model.config.num_attention_heads
    assert len(report.audits) == heads
    assert all(0 < audit.recall <= 1 for audit in report.audits)
    assert {audit.branch for audit in report.audits} == {"streaming"}
    with attach(model, point=EVERY_BLOCK, block_size=64, audit=0.5) as report:
        model(ids)
    assert 0 < len(report.audits) < heads
    assert all(audit.recall == pytest.approx(1, abs=1e-5) for audit in report.audits)
    with (
        pytest.raises(UsageError, match="audit 2"),
        attach(model, point=SPARSE, block_size=64, audit=2),
    ):
        pass


@pytest.mark.parametrize("method", ["vertical_slash", "flexprefill", "sampled"])
@pytest.mark.parametrize("chunk", [300, 60, 64])
def test_chunks_with_every_block_on_equal_dense(method, chunk, make_model, make_tokens):
    from transformers import DynamicCache

    model, ids = make_model("llama"), make_tokens(300)
    dense = model(ids).logits
    point = dataclasses.replace(EVERY_BLOCK, method=method)
    cache, parts = DynamicCache(config=model.config), []
    with attach(model, point=point, block_size=64) as report:
        for part in ids.split(chunk, dim=1):
            parts.append(model(part, past_key_values=cache).logits)
    assert_close(torch.cat(parts, dim=1), dense)
    forwards = report.summary().forwards
    assert len(forwards) == -(-300 // chunk)
    assert {forward.path for forward in forwards} == {"sparse"}
    assert forwards[-1].kv_len == 300


def test_sparse_prefill_differs_and_the_report_says_how(make_model, make_tokens):
    model, ids = make_model("llama"), make_tokens(300)
    dense = model(ids).logits
    with attach(model, point=SPARSE, block_size=64) as report:
        sparse = model(ids).logits
    assert (sparse - dense).abs().max() > 1e-3
    (forward,) = report.summary().forwards
    assert [layer.layer for layer in forward.layers] == [0, 1]
    assert forward.totals.density < 1
    assert branches(forward.totals) == {"streaming": 8}
    assert_close(model(ids).logits, dense)


def test_batch_of_two(make_model, make_tokens):
    model, ids = make_model("qwen3"), make_tokens(200, batch=2)
    with attach(model, point=SPARSE, block_size=64):
        both = model(ids).logits
        each = torch.cat([model(row[None]).logits for row in ids])
    assert_close(both, each)


def test_generate_prefills_sparsely_and_decodes_densely(make_model, make_tokens):
    model, ids = make_model("llama"), make_tokens(150)
    options = {"max_new_tokens": 5, "do_sample": False}
    dense = model.generate(ids, **options)
    with attach(model, point=EVERY_BLOCK, block_size=64) as report:
        ours = model.generate(ids, **options)
    assert ours.tolist() == dense.tolist()
    summary = report.summary()
    assert [forward.path for forward in summary.forwards] == ["sparse"] + ["dense"] * 4
    assert [(dense.reason, dense.forwards) for dense in summary.dense] == [("decode", 4)]


def test_short_prompts_are_dense_and_say_so(make_model, make_tokens):
    model, ids = make_model("llama"), make_tokens(100)
    dense = model(ids).logits
    with attach(model, method="streaming", block_size=64) as report:
        ours = model(ids).logits
    assert_close(ours, dense)
    (forward,) = report.summary().forwards
    assert (forward.path, forward.reason) == ("dense", "short: 100 < min_tokens 1024")


def test_gemma3_reports_native_layers_once(make_model, make_tokens):
    model = make_model("gemma3")
    with attach(model, point=SPARSE, block_size=64) as report:
        model(make_tokens(200))
        model(make_tokens(210))
    summary = report.summary()
    reason = "sliding window of 80 tokens"
    assert [(it.layer, it.reason) for it in summary.native_layers] == [(0, reason), (2, reason)]
    assert [layer.layer for layer in summary.forwards[1].layers] == [1, 3]


def test_two_models_at_once(make_model, make_tokens):
    llama, qwen, ids = make_model("llama"), make_model("qwen3"), make_tokens(130)
    with (
        attach(llama, point=SPARSE, block_size=64) as first,
        attach(qwen, point=EVERY_BLOCK, block_size=64) as second,
    ):
        llama(ids)
        qwen(ids)
    assert branches(first.summary().totals) == {"streaming": 8}
    assert branches(second.summary().totals) == {"vertical_slash": 8}


def test_nested_attach_is_refused(make_model):
    model = make_model("llama")
    with (
        attach(model, method="dense"),
        pytest.raises(UsageError, match="already attached"),
        attach(model, method="dense"),
    ):
        pass
    assert model.config._attn_implementation == "sdpa"


def test_nothing_is_left_after_an_exception(make_model, make_tokens):
    model, ids = make_model("llama"), make_tokens(130)
    dense, before = model(ids).logits, sorted(model.state_dict())
    attributes = [sorted(module.__dict__) for module in model.modules()]

    def fail():
        with attach(model, point=SPARSE, block_size=64):
            model(ids)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(model(ids).logits, dense)
    assert sorted(model.state_dict()) == before
    assert [sorted(module.__dict__) for module in model.modules()] == attributes
    assert not any(SESSION_ATTRIBUTE in module.__dict__ for module in model.modules())


class TestProfile:
    @pytest.mark.parametrize("rule", ["plan", "paper", "release"])
    def test_share_runs_and_counts_every_head(self, rule, make_model, make_tokens, make_profile):
        model = make_model("llama")
        with attach(model, make_profile(model), rule=rule) as report:
            logits = model(make_tokens(300)).logits
        assert torch.isfinite(logits).all()
        (forward,) = report.summary().forwards
        assert forward.path == "sparse"
        assert sum(branches(forward.totals).values()) == 8

    def test_a_plan_that_borrows_everything_equals_dense(
        self, make_model, make_tokens, make_profile
    ):
        """Lent at gamma 1 every block is on."""
        model, ids = make_model("llama"), make_tokens(300)
        dense = model(ids).logits
        with attach(model, make_profile(model)) as report:
            ours = model(ids).logits
        assert_close(ours, dense)
        assert branches(report.summary().totals)["shared"] == 4

    def test_sliding_layers_of_the_profile_stay_native(self, make_model, make_tokens, make_profile):
        """Even where the window holds the prompt: the profile has no heads for them."""
        model, ids = make_model("gemma3"), make_tokens(75)
        dense = model(ids).logits
        with attach(model, make_profile(model)) as report:
            ours = model(ids).logits
        assert_close(ours, dense)
        summary = report.summary()
        assert [layer.layer for layer in summary.forwards[0].layers] == [1, 3]
        assert {it.reason for it in summary.native_layers} == {
            "not a full-attention layer of the profile"
        }

    def test_of_another_model_is_refused_untouched(self, make_model, make_profile):
        profile = make_profile(make_model("llama"))
        other = make_model("llama", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
        with (
            pytest.raises(ProfileMismatchError, match=r"rope_theta.:500000.*differs"),
            attach(other, profile),
        ):
            pass
        assert other.config._attn_implementation == "sdpa"

    def test_mismatch_is_told_before_anything_else(self, make_model, make_profile):
        profile = make_profile(make_model("llama"))
        with pytest.raises(ProfileMismatchError), attach(make_model("gemma2"), profile, point="?"):
            pass

    def test_other_weights(self, make_model, make_profile):
        model = make_model("llama")
        profile = make_profile(model)
        identity = dataclasses.replace(profile.model, weights_sha256="a" * 64)
        profile = dataclasses.replace(profile, model=identity)
        with attach(model, profile):
            pass
        with (
            pytest.raises(ProfileMismatchError, match="weights_sha256"),
            attach(model, profile, weights_sha256="b" * 64),
        ):
            pass
        with attach(model, profile, weights_sha256="b" * 64, allow_weights_mismatch=True):
            pass

    def test_another_block_size_is_refused(self, make_model, make_profile):
        model = make_model("llama")
        with (
            pytest.raises(UsageError, match="block size 64"),
            attach(model, make_profile(model), block_size=128),
        ):
            pass


class TestRefusals:
    def test_share_needs_a_profile(self, make_model):
        model = make_model("llama")
        with pytest.raises(UsageError, match="needs a profile"), attach(model):
            pass
        assert model.config._attn_implementation == "sdpa"

    def test_softcap(self, make_model):
        with (
            pytest.raises(UnsupportedError, match="softcap"),
            attach(make_model("gemma2"), method="streaming"),
        ):
            pass

    def test_padding_inside_restores(self, make_model, make_tokens):
        model, ids = make_model("llama"), make_tokens(100, batch=2)
        mask = torch.ones_like(ids)
        mask[1, :10] = 0
        with pytest.raises(UnsupportedError, match="padding"), attach(model, method="streaming"):
            model(ids, attention_mask=mask)
        assert model.config._attn_implementation == "sdpa"

    def test_named_kernels_never_fall_back(self, make_model):
        with (
            pytest.raises(UnsupportedError, match="triton"),
            attach(make_model("llama"), method="streaming", kernels="triton"),
        ):
            pass


class TestResolvePoint:
    def test_published_constants_without_a_profile(self):
        assert resolve_point(None) == default_point("share")
        assert resolve_point(None, method="streaming").method == "streaming"
        assert resolve_point(None, rule="release").tau == 0.5

    def test_points_of_a_profile(self, make_model, make_profile):
        profile = make_profile(make_model("llama"))
        assert resolve_point(profile) == OperatingPoint(min_tokens=64)
        assert resolve_point(profile, point="quick") == SPARSE
        assert resolve_point(profile, point=EVERY_BLOCK) == EVERY_BLOCK
        with pytest.raises(UsageError, match="no operating point 'slow'"):
            resolve_point(profile, point="slow")

    def test_explicit_choices_replace_the_point(self, make_model, make_profile):
        profile = make_profile(make_model("llama"))
        chosen = resolve_point(profile, method="flexprefill")
        assert chosen == OperatingPoint(method="flexprefill", gamma=0.95, min_tokens=64)
        chosen = resolve_point(profile, method="share:release:gamma=0.8")
        assert chosen == OperatingPoint(rule="release", tau=0.5, gamma=0.8, min_tokens=64)
        assert resolve_point(profile, method="share", rule="release").tau == 0.5
        assert resolve_point(None, method="share", rule="release").rule == "release"
        chosen = resolve_point(profile, rule="release")
        assert chosen == OperatingPoint(rule="release", tau=0.5, min_tokens=64)
        own = OperatingPoint(rule="release", tau=0.3)
        assert resolve_point(None, rule="release", point=own).tau == 0.3

    def test_a_rule_belongs_to_share(self):
        for method in ("streaming", "share:paper", "plan"):
            with pytest.raises(UsageError, match="rule release does not go with method"):
                resolve_point(None, method=method, rule="release")

    def test_bad_names(self):
        with pytest.raises(UsageError, match="unknown method 'fast'"):
            resolve_point(None, method="fast")
        with pytest.raises(UsageError, match="unknown rule 'thumb'"):
            resolve_point(None, rule="thumb")
        with pytest.raises(UsageError, match="no profile to look it up in"):
            resolve_point(None, point="quick")
