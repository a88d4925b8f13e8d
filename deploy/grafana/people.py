"""The people: how much waits for them, since when, and what they decide."""

from deploy.grafana.panels import OURS, Dashboard, Number, Panel, Query, Row

_WAITING = f'imprimatur_jobs{{{OURS}, state="awaiting_review"}}'
_DECIDED = f"imprimatur_human_decisions_total{{{OURS}}}"

NOW = Row(
    title="Now",
    panels=(
        Number(
            title="Waiting",
            description="Jobs that wait for a person.",
            unit="short",
            queries=(Query(expr=f"sum(max by (namespace, type, priority) ({_WAITING}))"),),
            runbook="ImprimaturHumanQueueAgeing",
        ),
        Number(
            title="Oldest",
            description="How long the longest-waiting job has been with the people.",
            unit="s",
            queries=(Query(expr=f"max(imprimatur_oldest_pending_review_age_seconds{{{OURS}}})"),),
            steps=((14400, "orange"), (86400, "red")),
            runbook="ImprimaturHumanQueueAgeing",
        ),
        Number(
            title="Overdue",
            description="Jobs that wait for a person past their due time; they come first in the queue.",
            unit="short",
            queries=(Query(expr=f"sum(max by (namespace, priority) (imprimatur_reviews_overdue{{{OURS}}}))"),),
            steps=((1, "orange"),),
            runbook="ImprimaturHumanQueueAgeing",
        ),
        Number(
            title="Held now",
            description="Jobs that wait for a person and that somebody has claimed.",
            unit="short",
            queries=(Query(expr=f"sum(max by (namespace, priority) (imprimatur_reviews_claimed{{{OURS}}}))"),),
        ),
        Number(
            title="Decided",
            description="By people, in the time shown.",
            unit="short",
            queries=(Query(expr=f"sum(increase({_DECIDED}[$__range]))"),),
        ),
        Number(
            title="Against the machine's advice",
            description="Of the decisions by people in the time shown, those that override the AI.",
            unit="percentunit",
            queries=(
                Query(
                    expr="sum(increase(imprimatur_human_decisions_total"
                    f'{{{OURS}, overrides_ai="true"}}[$__range])) / sum(increase({_DECIDED}[$__range]))'
                ),
            ),
        ),
    ),
)

QUEUE = Row(
    title="Queue",
    panels=(
        Panel(
            title="Waiting, by priority",
            description="The list that `imprimatur review list` shows, over all tenants.",
            unit="short",
            queries=(
                Query(
                    expr=f"sum by (type, priority) (max by (namespace, type, priority) ({_WAITING}))",
                    legend="{{type}} {{priority}}",
                ),
            ),
            stacked=True,
            runbook="ImprimaturHumanQueueAgeing",
        ),
        Panel(
            title="Coming and going",
            description="Jobs a second that go to people, and that people decide; the queue grows by the difference.",
            unit="ops",
            queries=(
                Query(
                    expr="sum(rate(imprimatur_jobs_finished_total"
                    f'{{{OURS}, state="awaiting_review"}}[$__rate_interval]))',
                    legend="coming",
                ),
                Query(expr=f"sum(rate({_DECIDED}[$__rate_interval]))", legend="decided"),
            ),
        ),
    ),
)

WHY = Row(
    title="Why, and what then",
    panels=(
        Panel(
            title="Why they come",
            description="The row of the decision table; engine_error can be sent back with `imprimatur review again`.",
            unit="ops",
            queries=(
                Query(
                    expr="sum by (policy_triggered)"
                    f' (rate(imprimatur_ai_decisions_total{{{OURS}, decision="pending"}}[$__rate_interval]))',
                    legend="{{policy_triggered}}",
                ),
            ),
            stacked=True,
            runbook="ImprimaturReviewsFailing",
        ),
        Panel(
            title="Agreement with the machine",
            description="Decisions by how they stand to the AI's advice.",
            unit="ops",
            queries=(
                Query(
                    expr=f"sum by (agreement) (rate(imprimatur_human_agreement_total{{{OURS}}}[$__rate_interval]))",
                    legend="{{agreement}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            title="What they decide",
            description="By decision, and whether it overrides the AI.",
            unit="ops",
            queries=(
                Query(
                    expr=f"sum by (decision, overrides_ai) (rate({_DECIDED}[$__rate_interval]))",
                    legend="{{decision}}, overrides: {{overrides_ai}}",
                ),
            ),
            stacked=True,
        ),
    ),
)

DASHBOARD = Dashboard(
    name="people",
    title="Imprimatur: people",
    description="What waits for people, since when, and what they decide.",
    rows=(NOW, QUEUE, WHY),
)
