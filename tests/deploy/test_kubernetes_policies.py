"""What the manifests promise, held against the rendered overlays; and that each policy notices when it is broken."""

import copy
import inspect
import operator
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from deploy.k8s.rendering import OVERLAYS
from tests.deploy import networks, operations, pods
from tests.deploy.manifests import Manifests

Policy = Callable[[Manifests], Iterator[str]]

#: Where to break something (kind, name, and the way to the place), and the value put there.
Breach = tuple[str, Any]

_GONE: Any = object()
_POD = "spec template spec"
_BOX = f"{_POD} containers 0"
_GATEWAY, _REVIEWER, _NOTIFIER = (f"Deployment imprimatur-{name}" for name in ("gateway", "reviewer", "notifier"))
_LABELS = "spec template metadata labels"
_COMPONENT = "app.kubernetes.io/component"
_SCALED = "ScaledObject imprimatur-reviewer spec"
_DOWN = f"{_SCALED} advanced horizontalPodAutoscalerConfig behavior scaleDown"
_TRIGGER = f"{_SCALED} triggers 0 metadata"
_DUE = "sum(max by (type, priority) (imprimatur_due_jobs{}))"
_RUNNING = 'sum(max by (type, priority) (imprimatur_jobs{state="running"}))'
_POLICY = "NetworkPolicy"
_NOTIFIER_LEAVES = f"{_POLICY} allow-notifier-to-webhooks spec egress 0"
_POSTGRES = "Cluster imprimatur-postgres spec"
_RABBIT = "RabbitmqCluster imprimatur-rabbitmq spec"
_RABBIT_POD = f"{_RABBIT} override statefulSet spec template spec"
_BROKER_ASKED = "PodMonitor imprimatur-rabbitmq spec podMetricsEndpoints"
_NOT_OURS = {"matchExpressions": [{"key": "app.kubernetes.io/part-of", "operator": "NotIn", "values": ["imprimatur"]}]}
_SETTINGS = "ConfigMap imprimatur-settings-* data"

#: What holds in every overlay, each with what must offend it.
EVERYWHERE: dict[Policy, list[Breach]] = {
    pods.the_namespace_enforces_the_restricted_standard: [
        ("Namespace imprimatur metadata labels pod-security.kubernetes.io/enforce", "baseline"),
        ("Service imprimatur-gateway metadata namespace", "default"),
    ],
    pods.pods_keep_to_the_restricted_standard: [
        (f"{_GATEWAY} {_POD} securityContext runAsNonRoot", _GONE),
        (f"{_GATEWAY} {_POD} securityContext runAsUser", 0),
        (f"{_REVIEWER} {_POD} securityContext seccompProfile", {"type": "Unconfined"}),
        (f"{_REVIEWER} {_POD} hostNetwork", True),
        (f"{_REVIEWER} {_POD} volumes", [{"name": "x", "hostPath": {"path": "/"}}]),
        (f"{_NOTIFIER} {_BOX} securityContext allowPrivilegeEscalation", True),
        (f"{_NOTIFIER} {_BOX} securityContext capabilities add", ["NET_RAW"]),
        (f"Job imprimatur-migrate {_BOX} securityContext readOnlyRootFilesystem", False),
    ],
    pods.our_pods_are_the_user_of_the_image: [
        (f"Job imprimatur-migrate {_POD} securityContext runAsUser", 1000),
    ],
    pods.nobody_has_a_token_for_the_cluster: [
        (f"{_REVIEWER} {_POD} automountServiceAccountToken", _GONE),
        ("ServiceAccount imprimatur-gateway automountServiceAccountToken", True),
        (f"{_REVIEWER} {_POD} serviceAccountName", "imprimatur-gateway"),
    ],
    pods.services_of_the_namespace_leak_into_no_environment: [
        (f"{_GATEWAY} {_POD} enableServiceLinks", _GONE),
    ],
    pods.probes_ask_the_right_question: [
        (f"{_GATEWAY} {_BOX} livenessProbe", {"grpc": {"port": 7443}}),
        (f"{_NOTIFIER} {_BOX} livenessProbe httpGet path", "/readyz"),
        (f"{_REVIEWER} {_BOX} livenessProbe failureThreshold", 1),
        (f"{_REVIEWER} {_BOX} startupProbe failureThreshold", 3),
        (f"{_NOTIFIER} {_BOX} startupProbe failureThreshold", 60),
        (f"{_GATEWAY} {_BOX} readinessProbe", {"grpc": {"port": 7443}}),  # beside TLS
        (f"{_NOTIFIER} {_BOX} readinessProbe", _GONE),
    ],
    pods.pods_have_the_time_to_drain: [
        (f"{_REVIEWER} {_POD} terminationGracePeriodSeconds", 150),
        (f"{_NOTIFIER} {_POD} terminationGracePeriodSeconds", 20),
        (f"{_GATEWAY} {_BOX} env IMPRIMATUR_DRAIN_SECONDS value", "60"),
        (f"{_GATEWAY} {_BOX} lifecycle", _GONE),
        (f"{_REVIEWER} {_BOX} env IMPRIMATUR_DRAIN_SECONDS value", "20"),
    ],
    pods.resources_are_named_and_make_sense: [
        (f"{_GATEWAY} {_BOX} resources limits memory", _GONE),
        (f"{_GATEWAY} {_BOX} resources requests cpu", "3"),
        (f"{_REVIEWER} {_BOX} resources limits memory", "1Gi"),
    ],
    pods.a_gateway_has_memory_for_its_bounds_together: [
        (f"{_GATEWAY} {_BOX} resources limits memory", "1536Mi"),
        (f"{_SETTINGS} IMPRIMATUR_STREAMS", "40000"),
    ],
    pods.secrets_are_only_referred_to: [
        (f"{_GATEWAY} {_BOX} env IMPRIMATUR_VAULT_KEY", {"name": "IMPRIMATUR_VAULT_KEY", "value": "x"}),
        (f"{_SETTINGS} IMPRIMATUR_LLM_API_KEY", "sk-x"),
    ],
    pods.every_variable_is_a_setting_that_its_service_can_read: [
        (f"{_SETTINGS} IMPRIMATUR_LOG_LEVLE", "info"),
        (f"{_SETTINGS} IMPRIMATUR_LOG_LEVEL", "loud"),
        (f"{_REVIEWER} {_BOX} env IMPRIMATUR_REVIEWER_SLOTS name", "IMPRIMATUR_SLOTS"),
        (f"{_REVIEWER} {_BOX} env IMPRIMATUR_REVIEWER_SLOTS name", "IMPRIMATUR_WEBHOOK_CONCURRENCY"),
        (f"{_REVIEWER} {_BOX} env IMPRIMATUR_REVIEWER_SLOTS value", "0"),
        (f"{_NOTIFIER} {_BOX} env IMPRIMATUR_VAULT_KEY", _GONE),
        (f"{_NOTIFIER} {_BOX} env IMPRIMATUR_BROKER_URL", _GONE),
        (f"{_NOTIFIER} {_BOX} env 0 name", "IMPRIMATUR_BROKER_URL"),
    ],
    pods.services_agree_on_what_they_must_share: [
        (f"{_NOTIFIER} {_BOX} env 0", {"name": "IMPRIMATUR_ALLOW_HTTP", "value": "true"}),
    ],
    pods.ports_are_those_of_the_settings: [
        (f"{_NOTIFIER} {_BOX} ports 0 containerPort", 9102),
    ],
    pods.images_have_the_name_and_version_of_this_tree: [
        (f"{_NOTIFIER} {_BOX} image", "imprimatur:0.0.9"),
        (f"{_NOTIFIER} {_BOX} image", "imprimatur:latest"),
    ],
    pods.each_workload_runs_its_own_command: [
        (f"{_NOTIFIER} {_BOX} args", ["reviewer"]),
    ],
    operations.selectors_take_the_pods_they_mean: [
        (f"{_NOTIFIER} {_LABELS} {_COMPONENT}", "gateway"),
        (f"Service imprimatur-gateway spec selector {_COMPONENT}", "reviewer"),
    ],
    operations.clients_can_see_every_gateway: [
        ("Service imprimatur-gateway spec clusterIP", _GONE),
        ("Service imprimatur-gateway-balanced spec ports 0 targetPort", "http"),
        (f"{_GATEWAY} {_BOX} env IMPRIMATUR_GRPC_MAX_CONNECTION_AGE_SECONDS value", "0"),
    ],
    operations.a_rollout_takes_no_pod_away_before_another_is_ready: [
        (f"{_GATEWAY} spec strategy rollingUpdate maxUnavailable", 1),
    ],
    operations.the_migration_reaches_the_services_database: [
        (f"Job imprimatur-migrate {_BOX} env 0 valueFrom secretKeyRef name", "imprimatur-database"),
        (f"Job imprimatur-migrate {_POD} restartPolicy", "OnFailure"),
    ],
    operations.the_broker_logs_to_the_console_alone: [
        (f"{_RABBIT} rabbitmq additionalConfig", "log.console = true"),
    ],
}
#: What production promises besides.
IN_PRODUCTION: dict[Policy, list[Breach]] = {
    operations.every_service_outlives_the_loss_of_a_node: [
        (f"{_NOTIFIER} spec replicas", 1),
        (f"{_SCALED} minReplicaCount", 1),
        ("PodDisruptionBudget imprimatur-gateway spec maxUnavailable", 0),
        (f"PodDisruptionBudget imprimatur-gateway spec selector matchLabels {_COMPONENT}", "reviewer"),
        (f"{_REVIEWER} {_POD} topologySpreadConstraints", _GONE),
        (f"{_REVIEWER} {_POD} topologySpreadConstraints 0 matchLabelKeys", ["pod-template-hash"]),
    ],
    operations.autoscalers_own_the_number_of_pods: [
        (f"{_REVIEWER} spec replicas", 3),
        (f"{_SCALED} scaleTargetRef name", "imprimatur-notifier"),
    ],
    operations.reviewers_follow_the_work_and_leave_one_by_one: [
        (f"{_TRIGGER} query", f"sum(imprimatur_due_jobs) + {_RUNNING}"),
        (f"{_TRIGGER} query", f"{_DUE} + sum(max by (type, priority) (imprimatur_jobs))"),  # what is not due, too
        (f"{_TRIGGER} query", _DUE),
        (f"{_TRIGGER} query", _RUNNING),
        (f"{_TRIGGER} threshold", "65"),
        (f"{_TRIGGER} ignoreNullValues", _GONE),
        (f"{_SCALED} fallback", _GONE),
        (f"{_SCALED} fallback behavior", "currentReplicasIfHigher"),
        (f"{_DOWN} policies 0 value", 4),
        (f"{_DOWN} policies 0 periodSeconds", 60),
        (f"{_DOWN} stabilizationWindowSeconds", 0),
    ],
    operations.prometheus_finds_every_service: [
        ("PodMonitor imprimatur spec selector matchExpressions 0 values", ["gateway"]),
        ("PodMonitor imprimatur spec podMetricsEndpoints 0 port", "metrics"),
        ("PodMonitor imprimatur spec podMetricsEndpoints 0 relabelings 0 replacement", "$1"),
    ],
    operations.prometheus_asks_the_broker_what_dashboards_show: [
        (f"{_BROKER_ASKED} 1 path", "/metrics"),
        (f"{_BROKER_ASKED} 1 params family", ["queue_coarse_metrics"]),
        (f"{_BROKER_ASKED} 1 relabelings 0 replacement", "rabbitmq"),  # two series named `up` would be one
        (f"{_BROKER_ASKED} 0 relabelings", []),
        (f"{_BROKER_ASKED} 1", _GONE),
        (f"{_BROKER_ASKED} 1 port", "management"),
    ],
    operations.the_certificate_is_where_the_gateway_looks_and_has_its_names: [
        (f"{_GATEWAY} {_POD} volumes 0 secret secretName", "imprimatur-tls"),
        (f"{_GATEWAY} {_BOX} volumeMounts 0 mountPath", "/tls"),
        (f"{_GATEWAY} {_POD} securityContext fsGroup", _GONE),
        ("Certificate imprimatur-gateway spec dnsNames", ["imprimatur-gateway"]),
    ],
    operations.the_database_has_connections_for_all: [
        (f"{_SCALED} maxReplicaCount", 40),
        (f"{_POSTGRES} postgresql parameters max_connections", "320"),  # without those that leave
        (f"{_REVIEWER} {_BOX} env IMPRIMATUR_DATABASE_POOL_SIZE value", "10"),
    ],
    operations.the_stores_lose_nothing_with_a_node: [
        (f"{_POSTGRES} instances", 2),
        (f"{_POSTGRES} postgresql synchronous", _GONE),
        (f"{_POSTGRES} affinity podAntiAffinityType", "preferred"),
        (f"{_RABBIT} replicas", 2),
        (f"{_RABBIT} resources requests memory", "1Gi"),
    ],
    operations.the_stores_secrets_are_the_operators: [
        (f"{_REVIEWER} {_BOX} env IMPRIMATUR_BROKER_URL valueFrom secretKeyRef name", "imprimatur-broker"),
    ],
    operations.the_brokers_pods_keep_to_the_restricted_standard: [
        (f"{_RABBIT_POD} securityContext runAsNonRoot", _GONE),
        (f"{_RABBIT_POD} initContainers", []),
    ],
    operations.nothing_of_the_trial_is_in_production: [
        (f"{_SETTINGS} IMPRIMATUR_ALLOW_HTTP", "true"),
    ],
    networks.everything_is_denied_that_is_not_listed: [
        (f"{_POLICY} deny-all spec policyTypes", ["Ingress"]),
        (f"{_POLICY} deny-all spec egress", [{}]),
        (f"{_POLICY} allow-dns spec egress 0 to", _GONE),
    ],
    networks.only_notifier_and_reviewer_leave_the_cluster: [
        (f"{_POLICY} allow-notifier-to-webhooks spec podSelector", {}),
        (f"{_POLICY} allow-reviewer-to-provider spec egress 0 to", []),
        (f"{_POLICY} allow-reviewer-to-provider spec egress 0 ports 0", {"port": 1, "endPort": 65535}),
    ],
    networks.the_stores_alone_reach_the_api_server: [
        (f"{_POLICY} allow-around-postgresql spec egress", []),
        (f"{_POLICY} allow-around-rabbitmq spec egress 1 ports", [{"port": 443, "protocol": "TCP"}]),
        (f"{_POLICY} allow-around-rabbitmq spec podSelector", {}),
        (f"{_POLICY} allow-around-postgresql spec podSelector", _NOT_OURS),
        (f"{_POLICY} allow-notifier-to-webhooks spec egress 0 to 0 ipBlock except 1", "192.0.2.0/24"),
    ],
    networks.nobody_who_leaves_reaches_what_is_not_public: [
        (f"{_NOTIFIER_LEAVES} to 0 ipBlock except 5", "10.0.0.0/8"),  # was the link-local range
        (f"{_NOTIFIER_LEAVES} to 1 ipBlock cidr", "::/0"),
    ],
    networks.exceptions_lie_inside_what_they_are_taken_from: [
        (f"{_NOTIFIER_LEAVES} to 1 ipBlock except 0", "fc00::/7"),
    ],
    networks.everybody_can_ask_for_names: [
        (f"{_POLICY} allow-dns spec egress 0 ports 0 protocol", "TCP"),
        (f"{_POLICY} allow-dns spec podSelector", {"matchLabels": {"app.kubernetes.io/part-of": "imprimatur"}}),
    ],
    networks.services_reach_what_they_need_and_no_more: [
        (f"{_POLICY} allow-services-to-rabbitmq spec podSelector matchExpressions", []),
        (f"{_POLICY} allow-services-to-postgresql spec egress 0 ports 0 port", 5433),
    ],
    networks.nobody_else_is_let_in: [
        (f"{_POLICY} allow-around-postgresql spec ingress 0 from 0 podSelector", {}),
        (f"{_POLICY} allow-clients-to-gateway spec ingress 0 from 0 namespaceSelector", {}),
    ],
    networks.the_gateway_is_reached_from_labelled_namespaces: [
        (f"{_POLICY} allow-clients-to-gateway spec ingress 0 ports 0 port", 443),
    ],
    networks.prometheus_reaches_every_service: [
        (f"{_POLICY} allow-prometheus-to-services spec ingress 0 ports 2 port", 9104),
    ],
    networks.the_collector_is_reached_where_traces_go: [
        (f"{_SETTINGS} IMPRIMATUR_OTLP_ENDPOINT", "http://opentelemetry-collector.monitoring.svc:4318"),
    ],
}
BREACHES = [(policy, *breach) for policy, breaches in (EVERYWHERE | IN_PRODUCTION).items() for breach in breaches]


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("policy", EVERYWHERE, ids=operator.attrgetter("__name__"))
def test_everywhere(policy: Policy, overlay: str) -> None:
    assert [*policy(Manifests.of(overlay))] == []


@pytest.mark.parametrize("policy", IN_PRODUCTION, ids=operator.attrgetter("__name__"))
def test_in_production(policy: Policy) -> None:
    assert [*policy(Manifests.of("production"))] == []


@pytest.mark.parametrize(
    ("policy", "where", "value"), BREACHES, ids=[f"{policy.__name__}-{where}" for policy, where, _ in BREACHES]
)
def test_a_breach_is_noticed(policy: Policy, where: str, value: Any) -> None:
    assert [*policy(_broken(Manifests.of("production"), where, value))]


def test_every_policy_is_shown_to_notice_a_breach() -> None:
    assert all((EVERYWHERE | IN_PRODUCTION).values())
    written = {
        one for module in (pods, networks, operations) for name, one in vars(module).items() if _is_policy(module, name)
    }
    assert written == {*EVERYWHERE, *IN_PRODUCTION}


def _is_policy(module: ModuleType, name: str) -> bool:
    found = getattr(module, name)
    return inspect.isfunction(found) and found.__module__ == module.__name__ and not name.startswith("_")


def _broken(these: Manifests, where: str, value: Any) -> Manifests:
    kind, name, *path, last = where.split()
    these = Manifests(these.overlay, copy.deepcopy(these.objects))
    place: Any = these.find(kind, name)
    for step in path:
        place = place[_key(place, step)]
    key = _key(place, last)
    assert key not in place or isinstance(place, list) or place[key] != value, "that is no change"
    if value is _GONE:
        del place[key]
    else:
        place[key] = value
    return these


def _key(place: Any, step: str) -> Any:
    """A step into an object by name, into a list by number or by the name of the item."""
    if not isinstance(place, list):
        return step
    return int(step) if step.isdigit() else [item["name"] for item in place].index(step)
