"""Policies, and what they decide, as tables for people. Pure, as `tables`."""

import json
from collections.abc import Iterable

from rich.console import RenderableType
from rich.table import Table

from cli.output import plain
from cli.tables import coloured, facts, sections, table, when, word
from imprimatur.v1.creative_pb2 import Category, Decision, PolicyTrigger
from imprimatur.v1.policy_service_pb2 import (
    CategoryList,
    CriterionEffect,
    DiffPolicyVersionsResponse,
    PolicyActivation,
    PolicyMode,
    PolicyVersion,
    PreviewPolicyResponse,
    RedecidePendingResponse,
)

_UNKNOWN = "cannot be said"


def versions(found: Iterable[PolicyVersion]) -> Table:
    """One line a version."""
    made = table("VERSION", "LIVE", "MODE", "CREATED", "BY", "LAST LIVE SINCE", "NOTE")
    for one in found:
        made.add_row(
            str(one.version),
            plain("live" if one.live else "", "green"),
            plain(_mode(one.policy.mode)),
            when(one.create_time),
            plain(one.created_by),
            when(one.last_activation.time) or "never",
            plain(one.note),
        )
    return made


def activations(record: Iterable[PolicyActivation]) -> Table:
    """One line an activation."""
    made = table("TIME", "FROM", "TO", "BY", "KEY", "NOTE")
    for one in record:
        made.add_row(
            when(one.time),
            str(one.from_version or ""),
            str(one.to_version),
            plain(one.activated_by),
            plain(one.key_name),
            plain(one.note),
        )
    return made


def version_in_full(one: PolicyVersion) -> RenderableType:
    """All that a version says."""
    policy, last = one.policy, one.last_activation
    head = facts(
        [
            ("version", f"{one.version}{' (live)' if one.live else ''}"),
            ("created", f"{when(one.create_time)} {_by(one.created_by, one.key_name)}".strip()),
            ("note", one.note),
            (
                "last activated",
                f"{when(last.time)} {_by(last.activated_by, last.key_name)}".strip()
                if one.HasField("last_activation")
                else "never",
            ),
            ("mode", _mode(policy.mode)),
            ("approve from", policy.auto_approve_threshold),
            ("reject up to", policy.auto_reject_threshold),
            ("possible from", policy.detect_min),
            ("certain from", policy.block_min),
            ("to people", _categories(policy.always_human)),
            ("blocked", _categories(policy.blocked)),
            ("model", policy.model),
            ("equal creatives", "examined once" if policy.reuse_evidence else "examined each"),
        ]
    )
    if not policy.criteria:
        return head
    criteria = table("CRITERION", "EFFECT", "RULE")
    for criterion in policy.criteria:
        criteria.add_row(plain(criterion.name), word(CriterionEffect, criterion.effect), plain(criterion.text))
    return sections(head, criteria)


def changes(answer: DiffPolicyVersionsResponse) -> Table:
    """One line a setting; of lists, what came and what went."""
    made = table("SETTING", f"VERSION {answer.from_version}", f"VERSION {answer.to_version}")
    for change in answer.changes:
        before, after = _value(change.before), _value(change.after)
        if isinstance(before, list) and isinstance(after, list):
            gone = ", ".join(str(item) for item in before if item not in after)
            came = ", ".join(str(item) for item in after if item not in before)
            made.add_row(
                plain(change.field),
                plain(f"- {gone}" if gone else "", "red"),
                plain(f"+ {came}" if came else "", "green"),
            )
        else:
            made.add_row(plain(change.field), plain(_shown(before)), plain(_shown(after)))
    return made


def preview(answer: PreviewPolicyResponse) -> RenderableType:
    """How many went from where to where, and those that differ."""
    after = sorted({one.after for one in answer.counts}, key=lambda decision: decision or 99)
    counted = {(one.before, one.after): one.count for one in answer.counts}
    matrix = table("DECIDED THEN", *(_decision(decision).upper() for decision in after))
    for before in sorted({one.before for one in answer.counts}):
        matrix.add_row(coloured(_decision(before)), *(str(counted.get((before, now), "")) for now in after))
    if not answer.differing:
        return matrix
    differing = table("JOB", "SUBJECT", "SCORE", "THEN", "BY THIS POLICY", "BY A PERSON", "WHY")
    for one in answer.differing:
        differing.add_row(
            plain(one.job_id),
            plain(one.subject_id),
            f"{one.approval_score:.2f}" if one.HasField("approval_score") else "",
            plain(_with_trigger(one.before, one.before_triggered)),
            plain(_with_trigger(one.after, one.after_triggered)),
            coloured(word(Decision, one.by_person)),
            plain(one.reason),
        )
    return sections(matrix, differing)


def redecided(answer: RedecidePendingResponse) -> RenderableType:
    """How many were decided in which way, and which."""
    counts = table("DECISION", "ROW", "JOBS")
    for one in answer.counts:
        counts.add_row(
            coloured(_decision(one.decision)), plain(word(PolicyTrigger, one.policy_triggered)), str(one.count)
        )
    if not answer.redecided:
        return counts
    jobs = table("JOB", "SUBJECT", "DECISION", "ROW")
    for job in answer.redecided:
        jobs.add_row(
            plain(job.job_id),
            plain(job.subject_id),
            coloured(_decision(job.decision)),
            plain(word(PolicyTrigger, job.policy_triggered)),
        )
    return sections(counts, jobs)


def _by(person: str, key_name: str) -> str:
    return person if key_name in ("", person) else f"{person} (key {key_name})"


def _mode(mode: int) -> str:
    return word(PolicyMode, mode).replace("_", "-")


def _decision(decision: int) -> str:
    return word(Decision, decision) or _UNKNOWN


def _with_trigger(decision: int, trigger: int) -> str:
    return f"{_decision(decision)} ({word(PolicyTrigger, trigger)})" if trigger else _decision(decision)


def _categories(found: CategoryList) -> str:
    return ", ".join(word(Category, category) for category in found.categories) or "none"


def _value(text: str) -> object:
    """A value of a newer server that is no JSON is shown as it is."""
    try:
        return json.loads(text) if text else ""
    except ValueError:
        return text


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return f"{value.get('effect', '')}: {value.get('text', '')}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
