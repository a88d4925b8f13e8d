"""Policies about staying up, scaling, being watched, and the servers beside us. As in `pods`."""

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import yaml

from tests.deploy.manifests import COMPONENT, SERVICES, Manifests, amount, labels, named, only_container, pod, selects

#: PostgreSQL's own, the operator's, the exporter's, and a person's.
_CONNECTIONS_OF_OTHERS = 20
_PROMETHEUS = Path(__file__).parents[2] / "deploy" / "prometheus" / "prometheus.yml"


def _least_and_most(these: Manifests, service: str) -> tuple[int, int]:
    """How many pods there may be."""
    for one in these.of_kind("HorizontalPodAutoscaler"):
        if one["spec"]["scaleTargetRef"]["name"] == f"imprimatur-{service}":
            return one["spec"]["minReplicas"], one["spec"]["maxReplicas"]
    for one in these.of_kind("ScaledObject"):
        if one["spec"]["scaleTargetRef"]["name"] == f"imprimatur-{service}":
            return one["spec"]["minReplicaCount"], one["spec"]["maxReplicaCount"]
    replicas = these.service(service)["spec"]["replicas"]
    return replicas, replicas


# --- everywhere ------------------------------------------------------------------------------------------


def selectors_take_the_pods_they_mean(these: Manifests) -> Iterator[str]:
    pods = {labels(one)[COMPONENT]: labels(one) for one in these.workloads()}
    for workload in these.workloads():
        if "selector" in workload["spec"] and not selects(workload["spec"]["selector"], labels(workload)):
            yield f"{named(workload)} does not select its own pods"
    for service in these.of_kind("Service"):
        taken = [name for name, those in pods.items() if those.items() >= service["spec"]["selector"].items()]
        if taken != [service["metadata"]["labels"][COMPONENT]]:
            yield f"{named(service)} takes {taken}"


def clients_can_see_every_gateway(these: Manifests) -> Iterator[str]:
    service = these.find("Service", "imprimatur-gateway")
    if service["spec"].get("clusterIP") != "None":
        yield "the gateway's name resolves to one address"
    ports = {one["name"]: one["containerPort"] for one in only_container(these.service("gateway"))["ports"]}
    for one in (service, these.find("Service", "imprimatur-gateway-balanced")):
        if [(port["port"], ports.get(port["targetPort"])) for port in one["spec"]["ports"]] != [(7443, 7443)]:
            yield f"{named(one)} does not lead to the gRPC port"
    if not 60 <= these.setting("gateway", "grpc_max_connection_age_seconds") <= 3600:
        yield "clients that hold one connection for ever never find new gateways"


def a_rollout_takes_no_pod_away_before_another_is_ready(these: Manifests) -> Iterator[str]:
    for service in SERVICES:
        if these.service(service)["spec"]["strategy"]["rollingUpdate"] != {"maxUnavailable": 0, "maxSurge": 1}:
            yield f"{service} is fewer during a rollout"


def the_migration_reaches_the_services_database(these: Manifests) -> Iterator[str]:
    job = these.find("Job", "imprimatur-migrate")
    urls = [
        entry["valueFrom"]
        for workload in (job, *map(these.service, SERVICES))
        for entry in only_container(workload)["env"]
        if entry["name"] == "IMPRIMATUR_DATABASE_URL"
    ]
    if any(url != urls[0] for url in urls) or len(urls) != len(SERVICES) + 1:
        yield f"not one database: {urls}"
    if pod(job)["restartPolicy"] != "Never" or not job["spec"]["backoffLimit"]:
        yield "the migration is not tried again while the database starts"


def the_broker_logs_to_the_console_alone(these: Manifests) -> Iterator[str]:
    for one in these.of_kind("RabbitmqCluster"):
        config = {"".join(line.split()) for line in one["spec"]["rabbitmq"]["additionalConfig"].splitlines()}
        if not {"log.console=true", "log.file=false"} <= config:
            yield f"{named(one)} logs into a file system that is read-only"
    for one in these.of_kind("StatefulSet"):
        if labels(one)[COMPONENT] == "rabbitmq" and these.environment(one).get("RABBITMQ_LOGS") != "-":
            yield f"{named(one)} logs into a file system that is read-only"


# --- production ------------------------------------------------------------------------------------------


def every_service_outlives_the_loss_of_a_node(these: Manifests) -> Iterator[str]:
    for service in SERVICES:
        least, _ = _least_and_most(these, service)
        if least < 2:
            yield f"{service} may be alone"
        budgets = [
            one["spec"]
            for one in these.of_kind("PodDisruptionBudget")
            if selects(one["spec"]["selector"], labels(these.service(service)))
        ]
        if [(one.get("maxUnavailable"), one.get("unhealthyPodEvictionPolicy")) for one in budgets] != [
            (1, "AlwaysAllow")
        ]:
            yield f"{service} has no budget of one: {budgets}"
        spread = pod(these.service(service)).get("topologySpreadConstraints", [])
        keys = {one["topologyKey"] for one in spread if selects(one["labelSelector"], labels(these.service(service)))}
        if keys != {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}:
            yield f"{service} is spread over {keys}"
        if any(COMPONENT not in one["matchLabelKeys"] for one in spread):
            yield f"{service} counts other services' pods as its own"


def autoscalers_own_the_number_of_pods(these: Manifests) -> Iterator[str]:
    scaled = [*these.of_kind("HorizontalPodAutoscaler"), *these.of_kind("ScaledObject")]
    targets = sorted(one["spec"]["scaleTargetRef"]["name"] for one in scaled)
    if targets != ["imprimatur-gateway", "imprimatur-reviewer"]:
        yield f"scaled: {targets}"
    for target in targets:
        if "replicas" in these.find("Deployment", target)["spec"]:
            yield f"each apply sets the number of {target} back"


def reviewers_follow_the_work_and_leave_one_by_one(these: Manifests) -> Iterator[str]:
    spec = these.find("ScaledObject", "imprimatur-reviewer")["spec"]
    [trigger] = spec["triggers"]
    terms = {"".join(term.split()) for term in trigger["metadata"]["query"].split("+")}
    if any(not term.startswith("sum(maxby(type,priority)(") for term in terms):
        yield "what every gateway tells alike is counted once for each"
    counted = {re.sub(r'namespace="imprimatur",?', "", term.rpartition("(")[2].rstrip(")")) for term in terms}
    if counted != {"imprimatur_due_jobs{}", 'imprimatur_jobs{state="running"}'}:
        yield f"not the jobs that are due and those that run are counted, but {counted}"
    if not 0 < float(trigger["metadata"]["threshold"]) <= these.setting("reviewer", "reviewer_slots"):
        yield "more is asked of a reviewer than it has slots"
    if trigger["metricType"] != "AverageValue" or trigger["metadata"].get("ignoreNullValues") != "false":
        yield "no figure counts as no work"
    if spec.get("fallback", {}).get("behavior") != "currentReplicas":
        yield "reviewers leave, or come, when nobody can count the work"
    down = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    pace = [(one["type"], one["value"]) for one in down["policies"]]
    if pace != [("Pods", 1)] or down["stabilizationWindowSeconds"] < 300:
        yield "reviewers leave in a hurry"
    if any(one["periodSeconds"] < these.setting("reviewer", "drain_seconds") for one in down["policies"]):
        yield "the next reviewer leaves before the last has finished"


def prometheus_finds_every_service(these: Manifests) -> Iterator[str]:
    monitor = these.find("PodMonitor", "imprimatur")["spec"]
    found = {labels(one)[COMPONENT] for one in these.workloads() if selects(monitor["selector"], labels(one))}
    if found != {*SERVICES}:
        yield f"scraped are {found}"
    [endpoint] = monitor["podMetricsEndpoints"]
    if (endpoint["port"], endpoint["path"]) != ("http", "/metrics"):
        yield "it asks elsewhere"
    [relabelling] = endpoint["relabelings"]
    if (relabelling["targetLabel"], relabelling["replacement"]) != ("job", "imprimatur-$1"):
        yield "the alerts know other jobs"


def prometheus_asks_the_broker_what_dashboards_show(these: Manifests) -> Iterator[str]:
    """As the configuration does that the dashboards are tested with."""
    wanted = {
        (one["job_name"], one.get("metrics_path", "/metrics"), str(one.get("params", {})))
        for one in yaml.safe_load(_PROMETHEUS.read_text(encoding="utf-8"))["scrape_configs"]
        if one["job_name"].startswith("rabbitmq")
    }
    endpoints = these.find("PodMonitor", "imprimatur-rabbitmq")["spec"]["podMetricsEndpoints"]
    found = {
        (relabelling["replacement"], one["path"], str(one.get("params", {})))
        for one in endpoints
        for relabelling in one["relabelings"]
        if relabelling["targetLabel"] == "job"
    }
    if found != wanted or any(one["port"] != "prometheus" for one in endpoints):
        yield f"asked is {found}, not {wanted}"


def the_certificate_is_where_the_gateway_looks_and_has_its_names(these: Manifests) -> Iterator[str]:
    spec, workload = these.find("Certificate", "imprimatur-gateway")["spec"], these.service("gateway")
    told = these.environment(workload)
    mounts = {one["name"]: one["mountPath"] for one in only_container(workload).get("volumeMounts", [])}
    [volume] = [one for one in pod(workload).get("volumes", []) if "secret" in one] or [{"secret": {}, "name": ""}]
    if volume["secret"].get("secretName") != spec["secretName"]:
        yield "another secret is mounted"
    for name, file in {"CERTIFICATE": "tls.crt", "PRIVATE_KEY": "tls.key"}.items():
        if told.get(f"IMPRIMATUR_TLS_{name}") != f"{mounts.get(volume['name'])}/{file}":
            yield f"{file} is not where the gateway looks"
    if pod(workload)["securityContext"].get("fsGroup") != pod(workload)["securityContext"]["runAsUser"]:
        yield "the gateway may not read its key"
    space = these.of_kind("Namespace")[0]["metadata"]["name"]
    for service in these.of_kind("Service"):
        if f"{service['metadata']['name']}.{space}.svc.cluster.local" not in spec["dnsNames"]:
            yield f"the certificate does not know {service['metadata']['name']}"


def the_database_has_connections_for_all(these: Manifests) -> Iterator[str]:
    needed = _CONNECTIONS_OF_OTHERS + 1  # the migration
    for service in SERVICES:
        _, most = _least_and_most(these, service)
        of_one = these.setting(service, "database_pool_size") + (service == "reviewer")  # its leases have their own
        # A Deployment does not count pods that leave, and these leave more slowly than their successors start: at the
        # end of a rollout there may be as many of them as there are new ones.
        needed += 2 * most * of_one
    offered = int(these.find("Cluster", "*")["spec"]["postgresql"]["parameters"]["max_connections"])
    if offered < needed:
        yield f"{needed} connections may be wanted, {offered} are there"


def the_stores_lose_nothing_with_a_node(these: Manifests) -> Iterator[str]:
    database = these.find("Cluster", "imprimatur-postgres")["spec"]
    if database["instances"] < 3 or database["affinity"].get("podAntiAffinityType") != "required":
        yield "PostgreSQL may lie on one node"
    if database["postgresql"].get("synchronous", {}).get("dataDurability") != "required":
        yield "a failover may lose accepted jobs"
    broker = these.find("RabbitmqCluster", "imprimatur-rabbitmq")["spec"]
    if broker["replicas"] != 3 or "pause_minority" not in broker["rabbitmq"]["additionalConfig"]:
        yield "RabbitMQ may split"
    for kind, resources in (("PostgreSQL", database["resources"]), ("RabbitMQ", broker["resources"])):
        if amount(resources["requests"]["memory"]) != amount(resources["limits"]["memory"]):
            yield f"{kind} may be ended for want of memory"


def the_stores_secrets_are_the_operators(these: Manifests) -> Iterator[str]:
    wanted = {
        "IMPRIMATUR_DATABASE_URL": {"name": "imprimatur-postgres-app", "key": "uri"},
        "IMPRIMATUR_BROKER_URL": {"name": "imprimatur-rabbitmq-default-user", "key": "connection_string"},
    }
    for workload in these.workloads():
        for entry in only_container(workload)["env"]:
            if entry["name"] in wanted and entry["valueFrom"]["secretKeyRef"] != wanted[entry["name"]]:
                yield f"{named(workload)} takes {entry['name']} from elsewhere"


def the_brokers_pods_keep_to_the_restricted_standard(these: Manifests) -> Iterator[str]:
    spec = these.find("RabbitmqCluster", "*")["spec"]["override"]["statefulSet"]["spec"]["template"]["spec"]
    if not spec["securityContext"].get("runAsNonRoot") or "seccompProfile" not in spec["securityContext"]:
        yield "RabbitMQ's pods are not let in"
    containers = {one["name"]: one["securityContext"] for one in spec["containers"] + spec["initContainers"]}
    for name in ("rabbitmq", "setup-container"):
        found = containers.get(name, {})
        if found.get("allowPrivilegeEscalation") is not False or found.get("capabilities") != {"drop": ["ALL"]}:
            yield f"RabbitMQ's {name} is not let in"


def nothing_of_the_trial_is_in_production(these: Manifests) -> Iterator[str]:
    yield from (f"{named(one)} is for trying out" for one in these.of_kind("StatefulSet"))
    for service in ("gateway", "notifier"):
        told = these.environment(these.service(service))
        for name in told:
            if fnmatch(name, "IMPRIMATUR_ALLOW_*") and told[name] != "false":
                yield f"{service}: {name}={told[name]}"
