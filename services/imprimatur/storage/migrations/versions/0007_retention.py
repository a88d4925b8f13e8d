"""Let finished jobs go: human decisions outlive them, and what only live work needs is indexed for live rows alone"""

import hashlib

import sqlalchemy as sa
from alembic import op

from imprimatur.storage.clock import Instant
from imprimatur.storage.migrations import online

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Apply."""
    _make_cleanup()
    _let_decisions_outlive_jobs()
    _index_live_rows_alone()
    online.replace_primary_key("webhook_attempts", ["delivery_id", "id"])  # by its delivery: one index less for each
    online.drop_index("ix_webhook_attempts_delivery_id", "webhook_attempts")


def _make_cleanup() -> None:
    online.create_table(
        "cleanup",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("holder", sa.Uuid),
        sa.Column("held_until", Instant),
        sa.Column("succeeded_at", Instant),
        sa.Column("forgotten_until", Instant),
    )


def _let_decisions_outlive_jobs() -> None:
    online.drop_foreign_key("human_decisions", "job_id")
    for name, kind in (
        ("job_type", sa.Text()),
        ("subject_id", sa.Text()),
        ("input_hash", sa.LargeBinary()),
        ("submitted_by", sa.Text()),
        ("policy_triggered", sa.Text()),
    ):
        online.add_column("human_decisions", sa.Column(name, kind))
    _describe_decisions(op.get_bind())


def _describe_decisions(connection: sa.Connection) -> None:
    """One by one: a task may be megabytes."""
    decisions = sa.table(
        "human_decisions",
        *(sa.column("id", sa.Uuid), sa.column("job_id", sa.Uuid), sa.column("job_type"), sa.column("subject_id")),
        *(sa.column("input_hash", sa.LargeBinary), sa.column("submitted_by"), sa.column("policy_triggered")),
    )
    jobs = sa.table(
        "jobs",
        *(sa.column("id", sa.Uuid), sa.column("type"), sa.column("subject_id"), sa.column("input", sa.LargeBinary)),
        *(sa.column("user_id"), sa.column("policy_triggered")),
    )
    undescribed = sa.select(decisions.c.id, decisions.c.job_id).where(decisions.c.job_type.is_(None))
    for found in connection.execute(undescribed).all():
        job = connection.execute(sa.select(jobs).where(jobs.c.id == found.job_id)).one()
        connection.execute(
            sa.update(decisions)
            .where(decisions.c.id == found.id)
            .values(
                job_type=job.type,
                subject_id=job.subject_id,
                input_hash=hashlib.sha256(job.input).digest(),
                submitted_by=job.user_id,
                policy_triggered=job.policy_triggered,
            )
        )


def _index_live_rows_alone() -> None:
    for name, table, columns, condition in (
        ("ix_jobs_finished", "jobs", ["tenant_id", "finished_at"], "finished_at IS NOT NULL"),
        ("ix_jobs_unfinished", "jobs", ["tenant_id", "id"], "state IN ('queued', 'running', 'awaiting_review')"),
        ("ix_attempts_failed", "attempts", ["finished_at"], "error_code IS NOT NULL"),
    ):
        online.create_index(name, table, columns, where=condition)
    online.drop_index("ix_jobs_tenant_id_finished_at", "jobs")
    online.drop_index("ix_jobs_tenant_id_created_at", "jobs")  # ids are as old as their jobs
