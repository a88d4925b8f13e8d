"""The reviewers: what the engine does, what comes out, and what was done twice."""

from deploy.grafana.panels import OURS, Dashboard, Panel, Query, Row, quantiles


def _by(label: str, metric: str, matchers: str = "") -> tuple[Query, ...]:
    """A counter's rate by one label."""
    chosen = f"{OURS}, {matchers}" if matchers else OURS
    return (Query(expr=f"sum by ({label}) (rate({metric}{{{chosen}}}[$__rate_interval]))", legend=f"{{{{{label}}}}}"),)


ENGINE = Row(
    title="Engine",
    panels=(
        Panel(
            title="Engine calls",
            description="How long the engine looks at one creative.",
            unit="s",
            queries=quantiles("imprimatur_engine_duration_seconds"),
        ),
        Panel(
            title="Engine calls, 95 %, by engine",
            description="Which engine answers, and how slowly.",
            unit="s",
            queries=(
                Query(
                    expr="histogram_quantile(0.95, sum by (engine, le)"
                    f" (rate(imprimatur_engine_duration_seconds_bucket{{{OURS}}}[$__rate_interval])))",
                    legend="{{engine}}",
                ),
            ),
        ),
        Panel(
            title="Slots in use, by reviewer",
            description="How the work is spread; a reviewer at zero while others are full takes no messages.",
            unit="short",
            queries=(
                Query(
                    expr=f"imprimatur_worker_slots_in_use{{{OURS}}} and imprimatur_worker_slots{{{OURS}}} > 0",
                    legend="{{instance}}",
                ),
            ),
            runbook="ImprimaturCapacityReached",
        ),
    ),
)

ATTEMPTS = Row(
    title="Attempts",
    panels=(
        Panel(
            title="Attempts by outcome",
            description="failed and timed_out are tried again while attempts are left; handed_back is a stop in order.",
            unit="ops",
            queries=_by("outcome", "imprimatur_attempt_duration_seconds_count"),
            stacked=True,
            runbook="ImprimaturAttemptsFailing",
        ),
        Panel(
            title="Attempts by error",
            description="What failed: provider_… and rate_limited are the provider's, unreviewable_input the caller's.",
            unit="ops",
            queries=_by("error_code", "imprimatur_attempt_errors_total"),
            stacked=True,
            runbook="ImprimaturAttemptsFailing",
        ),
        Panel(
            title="Attempts for each job",
            description="1 when nothing is tried twice; the rest is retries, losses and hand-backs.",
            unit="short",
            queries=(
                Query(
                    expr=f"sum(rate(imprimatur_attempt_duration_seconds_count{{{OURS}}}[$__rate_interval]))"
                    f" / sum(rate(imprimatur_jobs_finished_total{{{OURS}}}[$__rate_interval]))",
                    legend="attempts",
                ),
            ),
            steps=((1.5, "orange"),),
        ),
    ),
)

PROVIDERS = Row(
    title="AI providers",
    panels=(
        Panel(
            title="Questions to providers",
            description="Of the llm engine, by outcome: answered, or why not.",
            unit="ops",
            queries=_by("outcome", "imprimatur_provider_calls_total"),
            stacked=True,
            runbook="ImprimaturProviderAway",
        ),
        Panel(
            title="Left alone",
            description="1 while a reviewer asks a provider nothing because it keeps failing.",
            unit="short",
            queries=(
                Query(
                    expr=f'max by (provider) (imprimatur_provider_circuit_state{{{OURS}, circuit="open"}})',
                    legend="{{provider}}",
                ),
            ),
            steps=((1.0, "red"),),
            runbook="ImprimaturProviderAway",
        ),
        Panel(
            title="Postponed",
            description="Attempts handed back unspent: their turn has not come, or the provider is left alone.",
            unit="ops",
            queries=_by("reason", "imprimatur_attempts_postponed_total"),
            stacked=True,
        ),
        Panel(
            title="Equal creatives",
            description="Asked for earlier evidence: hit, miss (an engine looks), wait (another job looks already).",
            unit="ops",
            queries=_by("outcome", "imprimatur_evidence_lookups_total"),
            stacked=True,
        ),
        Panel(
            title="Tokens",
            description="As the providers reported them, a second.",
            unit="ops",
            queries=_by("direction", "imprimatur_provider_tokens_total"),
            stacked=True,
        ),
        Panel(
            title="Cost",
            description="US dollars an hour, as far as prices are known.",
            unit="currencyUSD",
            queries=(
                Query(
                    expr="3600 * sum by (model)"
                    f" (rate(imprimatur_provider_cost_dollars_total{{{OURS}}}[$__rate_interval]))",
                    legend="{{model}}",
                ),
            ),
            stacked=True,
        ),
    ),
)

IMAGES = Row(
    title="Images",
    panels=(
        Panel(
            title="Images looked at",
            description="refused is the caller's image; died and timed_out are ours to look into.",
            unit="ops",
            queries=_by("outcome", "imprimatur_images_decoded_total"),
            stacked=True,
            runbook="ImprimaturAttemptsFailing",
        ),
        Panel(
            title="Bytes of images",
            description="Where they came from: inside the request, uploaded before, or fetched from a URL.",
            unit="Bps",
            queries=_by("source", "imprimatur_image_bytes_total"),
            stacked=True,
        ),
        Panel(
            title="Fetches from URLs",
            description="unavailable is tried again; refused ends the job.",
            unit="ops",
            queries=_by("outcome", "imprimatur_image_fetch_duration_seconds_count"),
            stacked=True,
        ),
        Panel(
            title="Time of a fetch",
            description="How long an image at a URL takes; the longest allowed is 20 s.",
            unit="s",
            queries=quantiles("imprimatur_image_fetch_duration_seconds"),
        ),
    ),
)

OUTCOMES = Row(
    title="What comes out",
    panels=(
        Panel(
            title="Decisions of the machine",
            description="pending goes to a person.",
            unit="ops",
            queries=_by("decision", "imprimatur_ai_decisions_total"),
            stacked=True,
        ),
        Panel(
            title="Rows of the decision table",
            description="Which rule decided; engine_error is no decision but a failure.",
            unit="ops",
            queries=_by("policy_triggered", "imprimatur_ai_decisions_total"),
            stacked=True,
            runbook="ImprimaturReviewsFailing",
        ),
        Panel(
            title="Sent back to the engine",
            description="Jobs that went to people because the engine failed, and that somebody had reviewed again.",
            unit="ops",
            queries=_by("type", "imprimatur_jobs_reviewed_again_total"),
        ),
        Panel(
            title="Decided by a changed policy",
            description="Jobs that waited for people, decided by another policy from what the engine had found.",
            unit="ops",
            queries=_by("decision", "imprimatur_jobs_redecided_total"),
        ),
        Panel(
            title="Policies made live",
            description="Other versions of tenants' policies that were made live through a gateway, by their mode.",
            unit="ops",
            queries=_by("mode", "imprimatur_policy_activations_total"),
        ),
    ),
)

TWICE = Row(
    title="Lost, late and twice",
    panels=(
        Panel(
            title="Jobs that lost their reviewer",
            description="Queued again because their reviewer fell silent for a whole lease.",
            unit="short",
            queries=(
                Query(expr=f"sum(increase(imprimatur_leases_lost_total{{{OURS}}}[$__range]))", legend="lost"),
                Query(
                    expr=f"sum(increase(imprimatur_attempts_apart_total{{{OURS}}}[$__range]))",
                    legend="examined apart, after two losses",
                ),
            ),
            runbook="ImprimaturWorkersLost",
        ),
        Panel(
            title="Results discarded",
            description="Fenced: the job was cancelled or taken over meanwhile. Rare, and harmless.",
            unit="short",
            queries=(
                Query(expr=f"sum(increase(imprimatur_fenced_writes_total{{{OURS}}}[$__range]))", legend="discarded"),
            ),
        ),
        Panel(
            title="Messages",
            description="stale: somebody else had the job already; given_back: no slot was free in time.",
            unit="ops",
            queries=_by("result", "imprimatur_claims_total"),
            stacked=True,
        ),
        Panel(
            title="Put up for claiming",
            description="at_once: by the submit itself; dispatcher: after waiting; again: the message was lost.",
            unit="ops",
            queries=_by("way", "imprimatur_jobs_released_total"),
            stacked=True,
            runbook="ImprimaturJobsNotStarting",
        ),
    ),
)

DASHBOARD = Dashboard(
    name="reviewer",
    title="Imprimatur: reviewers",
    description="Engine times, outcomes, decisions, and what was done twice or lost.",
    rows=(ENGINE, ATTEMPTS, PROVIDERS, IMAGES, OUTCOMES, TWICE),
)
