"""Profiles that say nothing about the model, as controls of one that does.

    python benchmarks/control_profiles.py PROFILE OUT [--other PROFILE] [--seed N]

OUT/random: random clusters of the sizes of PROFILE's, all enabled. OUT/lenders: the named plans of
PROFILE, every borrower with a random lender out of those that may lend to it. OUT/other: the named
plans of another profile of the same shape, such as of the model before it was adapted.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from pathlib import Path

from sp_profile.artefact import write_profile
from sp_runtime.errors import ProfileMismatchError
from sp_runtime.profile import Cluster, HeadPlan, HeadRef, NamedPlan, Plan, Profile, load_profile


def random_clusters(profile: Profile, generator: random.Random) -> Profile:
    """Clusters of equal sizes of heads drawn without replacement, all enabled; their evidence is of
    the clusters that they stand for."""
    heads = [head.ref for head in profile.plan.heads]
    generator.shuffle(heads)
    clusters, start = [], 0
    for cluster in profile.clusters:
        members = tuple(sorted(heads[start : start + len(cluster.members)]))
        start += len(members)
        clusters.append(_control(cluster, members, generator))
    return replace(profile, clusters=tuple(clusters))


def random_lenders(plan: Plan, generator: random.Random) -> Plan:
    """The plan with every borrower's lender drawn from those that have borrowers and may lend to
    it: dense heads of earlier layers, sampled ones of its own layer too."""
    by_ref = {head.ref: head for head in plan.heads}
    lenders = [by_ref[ref] for ref in sorted({h.lender for h in plan.heads if h.lender})]

    def drawn(head: HeadPlan) -> HeadPlan:
        if head.lender is None:
            return head
        able = [
            one.ref
            for one in lenders
            if one.layer < head.layer or (one.layer == head.layer and one.assignment == "sampled")
        ]
        return replace(head, lender=generator.choice(able))

    return replace(plan, heads=tuple(drawn(head) for head in plan.heads))


def foreign_plans(profile: Profile, other: Profile) -> Profile:
    """The profile with the other's named plans, at its own operating points."""
    ours, theirs = profile.model, other.model
    if (ours.num_layers, ours.num_heads) != (theirs.num_layers, theirs.num_heads):
        raise ProfileMismatchError("the other profile is of a model of another shape")
    found = {named.name: named.plan for named in other.plans}
    return replace(
        profile,
        plans=tuple(
            replace(named, plan=found.get(named.name, other.plan)) for named in profile.plans
        ),
    )


def _control(cluster: Cluster, members: tuple[HeadRef, ...], generator: random.Random) -> Cluster:
    # Only a head with a member in a later layer has anybody to lend to.
    able = [head for head in members if head.layer < members[-1].layer]
    anchor = generator.choice(able) if able else None
    evidence = replace(cluster.evidence, reason="control: members drawn at random")
    return replace(cluster, members=members, anchor=anchor, enabled=True, evidence=evidence)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("profile", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    profile = load_profile(given.profile)
    generator = random.Random(given.seed)
    plans = tuple(
        NamedPlan(name=named.name, plan=random_lenders(named.plan, generator))
        for named in profile.plans
    )
    controls = {
        "random": random_clusters(profile, generator),
        "lenders": replace(profile, plans=plans),
    }
    if given.other is not None:
        controls["other"] = foreign_plans(profile, load_profile(given.other))
    given.target.mkdir(parents=True, exist_ok=True)
    for name, control in controls.items():
        # The tables repeat clusters and plan, so they stay behind.
        write_profile(given.target / name, control, overwrite=True)
        print(given.target / name)


if __name__ == "__main__":
    main()
