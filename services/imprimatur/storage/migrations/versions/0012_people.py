"""The human queue: its order, tokens of holds, what can be looked for, appeals, and a record that only grows"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from imprimatur.storage.clock import Instant
from imprimatur.storage.migrations import online

revision = "0012"
down_revision = "0011"

_DOCUMENT = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
_WAITS = "state = 'awaiting_review'"
_AGREEMENT = (
    "CASE WHEN ai_recommendation NOT IN ('approve', 'reject') THEN 'no_advice'"
    " WHEN overrides_ai THEN 'overrode' ELSE 'agreed' END"
)


def upgrade() -> None:
    """Apply."""
    online.add_column("jobs", sa.Column("hold_token", sa.Uuid))
    online.add_column("jobs", sa.Column("categories", _DOCUMENT))
    online.add_column("jobs", sa.Column("appeal", _DOCUMENT))
    # The queue's order is that of this column now: what a process of the version before last referred has none yet.
    online.back_fill("jobs", "awaiting_since", "updated_at", where=_WAITS)
    online.create_index("ix_jobs_waiting", "jobs", ["tenant_id", "priority", "awaiting_since", "id"], where=_WAITS)
    online.create_index("ix_jobs_held", "jobs", ["held_until"], where=f"{_WAITS} AND held_until IS NOT NULL")
    online.create_index("ix_jobs_appeal_of", "jobs", ["appeal_of"], where="appeal_of IS NOT NULL")
    online.create_index(
        "uq_jobs_open_appeal",
        "jobs",
        ["appeal_of"],
        where="appeal_of IS NOT NULL AND state IN ('queued', 'running', 'awaiting_review')",
        unique=True,
    )
    online.drop_index("ix_jobs_awaiting", "jobs")
    _describe_decisions()
    _keep_a_record()


def _describe_decisions() -> None:
    online.add_column("human_decisions", sa.Column("agreement", sa.Text))
    online.add_column("human_decisions", sa.Column("categories", _DOCUMENT))
    online.add_column("human_decisions", sa.Column("awaiting_since", Instant))
    online.add_column("human_decisions", sa.Column("appeal_of", sa.Uuid))
    online.add_column("human_decisions", sa.Column("person_known", sa.Boolean))
    online.back_fill("human_decisions", "agreement", _AGREEMENT, where="ai_recommendation IS NOT NULL")
    online.create_index("ix_human_decisions_tenant_id_decided_at", "human_decisions", ["tenant_id", "decided_at"])


def _keep_a_record() -> None:
    tenant = sa.ForeignKey("tenants.id", name="fk_audit_entries_tenant_id")
    online.create_table(
        "audit_entries",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("tenant_id", sa.Uuid, tenant, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("job_id", sa.Uuid, nullable=False),
        sa.Column("subject_id", sa.Text, nullable=False),
        sa.Column("submitted_by", sa.Text, nullable=False),
        sa.Column("person", sa.Text, nullable=False),
        sa.Column("key_id", sa.Uuid),
        sa.Column("key_name", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("details", _DOCUMENT, nullable=False),
    )
    online.create_index("ix_audit_entries_tenant_id_id", "audit_entries", ["tenant_id", "id"])
    online.create_index("ix_audit_entries_job_id_id", "audit_entries", ["job_id", "id"])
    online.create_index("ix_audit_entries_tenant_id_person_id", "audit_entries", ["tenant_id", "person", "id"])
    _refuse_changes()


def _refuse_changes() -> None:
    """By triggers, which hold for the tables' owner too, where revoked rights would not."""
    if op.get_context().dialect.name != "postgresql":
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER IF NOT EXISTS audit_entries_no_{change.lower()} BEFORE {change} ON audit_entries"
                " BEGIN SELECT RAISE(ABORT, 'audit entries are never changed nor removed'); END"
            )
        return
    op.execute(
        "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'audit entries are never changed nor removed'; END $$"
    )
    for name, changes in (("rows", "UPDATE OR DELETE"), ("table", "TRUNCATE")):
        each = "ROW" if name == "rows" else "STATEMENT"
        op.execute(f"DROP TRIGGER IF EXISTS audit_entries_keep_{name} ON audit_entries")
        op.execute(
            f"CREATE TRIGGER audit_entries_keep_{name} BEFORE {changes} ON audit_entries"
            f" FOR EACH {each} EXECUTE FUNCTION refuse_change()"
        )
