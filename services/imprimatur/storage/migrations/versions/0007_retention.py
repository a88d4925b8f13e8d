"""Let finished jobs go: human decisions outlive them, and what only live work needs is indexed for live rows alone"""

import hashlib

import sqlalchemy as sa
from alembic import op

from imprimatur.storage.clock import Instant

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Apply."""
    _make_cleanup()
    _let_decisions_outlive_jobs()
    _index_live_rows_alone()
    with op.batch_alter_table("webhook_attempts") as attempts:  # by its delivery: one index less for each attempt
        attempts.drop_constraint("pk_webhook_attempts", type_="primary")
        attempts.create_primary_key("pk_webhook_attempts", ["delivery_id", "id"])
        attempts.drop_index("ix_webhook_attempts_delivery_id")


def _make_cleanup() -> None:
    op.create_table(
        "cleanup",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("holder", sa.Uuid),
        sa.Column("held_until", Instant),
        sa.Column("succeeded_at", Instant),
        sa.Column("forgotten_until", Instant),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_cleanup")),
    )


def _let_decisions_outlive_jobs() -> None:
    with op.batch_alter_table("human_decisions") as decisions:
        decisions.drop_constraint("fk_human_decisions_job_id", type_="foreignkey")
        decisions.add_column(sa.Column("job_type", sa.Text))
        decisions.add_column(sa.Column("subject_id", sa.Text))
        decisions.add_column(sa.Column("input_hash", sa.LargeBinary))
        decisions.add_column(sa.Column("submitted_by", sa.Text))
        decisions.add_column(sa.Column("policy_triggered", sa.Text))
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
    for found in connection.execute(sa.select(decisions.c.id, decisions.c.job_id)).all():
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
    op.drop_index("ix_jobs_tenant_id_finished_at", "jobs")
    for name, table, columns, condition in (
        ("ix_jobs_finished", "jobs", ["tenant_id", "finished_at"], "finished_at IS NOT NULL"),
        ("ix_jobs_unfinished", "jobs", ["tenant_id", "id"], "state IN ('queued', 'running', 'awaiting_review')"),
        ("ix_attempts_failed", "attempts", ["finished_at"], "error_code IS NOT NULL"),
    ):
        where = sa.text(condition)
        op.create_index(name, table, columns, postgresql_where=where, sqlite_where=where)
