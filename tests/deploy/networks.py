"""Policies about who reaches whom, worked out from the NetworkPolicies as a cluster would. As in `pods`."""

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

from deploy.k8s.rendering import Manifest
from imprimatur.networks import NOT_PUBLIC
from tests.deploy.manifests import COMPONENT, OURS, SERVICES, Manifests, labels, named, selects

#: What the operators' pods carry, and a pod that nobody thought of.
STORES = {
    "postgresql": {"cnpg.io/cluster": "imprimatur-postgres"},
    "rabbitmq": {"app.kubernetes.io/name": "imprimatur-rabbitmq", COMPONENT: "rabbitmq"},
    "stranger": {"app": "stranger"},
}
_MAY_LEAVE = {"notifier", "reviewer"}
_PUBLIC = ("8.8.8.8", "1.1.1.1", "2606:4700::1111")
_PRIVATE = ("10.96.0.1", "100.64.0.1", "172.20.0.1", "192.168.0.1", "fd00::1")
_PORTS = (4369, 5432, 5672, 7443, 8000, 9101, 9102, 9103, 15672, 25672)
_CLIENT = {"imprimatur-client": "true"}


def everything_is_denied_that_is_not_listed(these: Manifests) -> Iterator[str]:
    if not any(
        one["spec"]["podSelector"] == {}
        and {*one["spec"]["policyTypes"]} == {"Ingress", "Egress"}
        and len(one["spec"]) == 2
        for one in these.of_kind("NetworkPolicy")
    ):
        yield "there is no policy that denies all, both ways, to every pod"
    for one in these.of_kind("NetworkPolicy"):
        for rule in one["spec"].get("egress", []) + one["spec"].get("ingress", []):
            if not rule.get("ports") or not (rule.get("to") or rule.get("from")):
                yield f"{named(one)} has a rule for all peers or all ports"


def only_notifier_and_reviewer_leave_the_cluster(these: Manifests) -> Iterator[str]:
    for name, those in _pods(these).items():
        for address in _PUBLIC:
            leaves = _reaches_address(these, those, address, 443)
            if leaves != (name in _MAY_LEAVE):
                yield f"{name} {'reaches' if leaves else 'does not reach'} {address}"
    if _reaches_address(these, _pods(these)["reviewer"], _PUBLIC[0], 25):
        yield "a reviewer reaches more than HTTPS"


def the_stores_alone_reach_the_api_server(these: Manifests) -> Iterator[str]:
    """Wherever it is among what is not public; no pod of ours, and none that nobody thought of."""
    for name, those in _pods(these).items():
        for address in _PRIVATE:
            for port in (443, 6443):
                reaches = _reaches_address(these, those, address, port)
                if reaches != (name in STORES and name != "stranger"):
                    yield f"{name} {'reaches' if reaches else 'does not reach'} {address}:{port}"


def nobody_who_leaves_reaches_what_is_not_public(these: Manifests) -> Iterator[str]:
    """By the guard's own table, the first and the last address of each network in it."""
    for name in _MAY_LEAVE:
        for text in NOT_PUBLIC:
            for address in (ip_network(text)[0], ip_network(text)[-1]):
                if _reaches_address(these, _pods(these)[name], str(address), 443):
                    yield f"{name} reaches {address} of {text}"


def exceptions_lie_inside_what_they_are_taken_from(these: Manifests) -> Iterator[str]:
    """The API server refuses others."""
    for one in these.of_kind("NetworkPolicy"):
        for rule in one["spec"].get("egress", []):
            for block in (peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer):
                whole = ip_network(block["cidr"])
                for part in map(ip_network, block.get("except", [])):
                    if part.version != whole.version or not part.subnet_of(whole) or part == whole:  # type: ignore[arg-type]  # of one version
                        yield f"{named(one)}: {part} is not inside {whole}"


def everybody_can_ask_for_names(these: Manifests) -> Iterator[str]:
    for name, those in _pods(these).items():
        for protocol in ("UDP", "TCP"):
            if not _reaches_pod(these, those, {"k8s-app": "kube-dns"}, 53, protocol, namespace="kube-system"):
                yield f"{name} cannot look up names by {protocol}"


def services_reach_what_they_need_and_no_more(these: Manifests) -> Iterator[str]:
    pods = _pods(these)
    wanted = {(name, "postgresql", 5432) for name in (*SERVICES, "migrate")}
    wanted |= {(name, "rabbitmq", 5672) for name in SERVICES}
    wanted |= {("postgresql", "postgresql", port) for port in (5432, 8000)}
    wanted |= {("rabbitmq", "rabbitmq", port) for port in (4369, 25672)}
    found = {
        (source, target, port)
        for source in pods
        for target in pods
        for port in _PORTS
        if _reaches_pod(these, pods[source], pods[target], port, "TCP")
        and _lets_in(these, pods[target], pods[source], port)
    }
    yield from (f"{source} cannot reach {target}:{port}" for source, target, port in wanted - found)
    yield from (f"{source} can reach {target}:{port}" for source, target, port in found - wanted)


def nobody_else_is_let_in(these: Manifests) -> Iterator[str]:
    pods, elsewhere = _pods(these), {"kubernetes.io/metadata.name": "elsewhere"}
    for name, those in pods.items():
        for port in _PORTS:
            if _lets_in(these, those, pods["stranger"], port):
                yield f"{name}:{port} lets a stranger in"
            if _lets_in(these, those, {}, port, namespace=elsewhere):
                yield f"{name}:{port} lets other namespaces in"


def the_gateway_is_reached_from_labelled_namespaces(these: Manifests) -> Iterator[str]:
    gateway = _pods(these)["gateway"]
    if not _lets_in(these, gateway, {}, 7443, namespace=_CLIENT):
        yield "clients cannot reach the gateway"
    if _lets_in(these, gateway, {}, 9101, namespace=_CLIENT):
        yield "clients reach the gateway's metrics"


def prometheus_reaches_every_service(these: Manifests) -> Iterator[str]:
    where, who = {"kubernetes.io/metadata.name": "monitoring"}, {"app.kubernetes.io/name": "prometheus"}
    for service in SERVICES:
        port = these.setting(service, f"{service}_http_port")
        if not _lets_in(these, _pods(these)[service], who, port, namespace=where):
            yield f"{service} cannot be scraped"


def the_collector_is_reached_where_traces_go(these: Manifests) -> Iterator[str]:
    """Nowhere, while they are off."""
    for service in SERVICES:
        endpoint = these.environment(these.service(service)).get("IMPRIMATUR_OTLP_ENDPOINT")
        name, _, where = (
            urlsplit(endpoint or "http://opentelemetry-collector.monitoring.svc").hostname or ""
        ).partition(".")
        reached = {
            port
            for port in (4317, 4318, 8888)
            if _reaches_pod(
                these,
                _pods(these)[service],
                {"app.kubernetes.io/name": name},
                port,
                "TCP",
                namespace=where.split(".")[0],
            )
        }
        wanted = {urlsplit(endpoint).port} if endpoint else set()
        if reached != wanted:
            yield f"{service} reaches the collector at {reached}, not {wanted}"


def _pods(these: Manifests) -> dict[str, dict[str, str]]:
    ours = {labels(one)[COMPONENT]: labels(one) for one in these.workloads() if labels(one).items() >= OURS.items()}
    return {**ours, **STORES}


def _rules(these: Manifests, those: dict[str, str], direction: str) -> Iterator[Manifest]:
    for policy in these.of_kind("NetworkPolicy"):
        if selects(policy["spec"]["podSelector"], those):
            yield from policy["spec"].get(direction, [])


def _opens(rule: Manifest, port: int, protocol: str) -> bool:
    return any(
        one["port"] <= port <= one.get("endPort", one["port"]) and one.get("protocol", "TCP") == protocol
        for one in rule["ports"]
    )


def _reaches_address(these: Manifests, source: dict[str, str], address: str, port: int) -> bool:
    return any(
        _holds(peer["ipBlock"], address)
        for rule in _rules(these, source, "egress")
        if _opens(rule, port, "TCP")
        for peer in rule["to"]
        if "ipBlock" in peer
    )


def _holds(block: Manifest, address: str) -> bool:
    found = ip_address(address)
    return found in ip_network(block["cidr"]) and not any(found in ip_network(one) for one in block.get("except", []))


def _reaches_pod(
    these: Manifests, source: dict[str, str], target: dict[str, str], port: int, protocol: str, *, namespace: str = ""
) -> bool:
    place = {"kubernetes.io/metadata.name": namespace} if namespace else None
    return any(
        _is_meant(peer, target, place)
        for rule in _rules(these, source, "egress")
        if _opens(rule, port, protocol)
        for peer in rule["to"]
    )


def _lets_in(
    these: Manifests,
    target: dict[str, str],
    source: dict[str, str],
    port: int,
    *,
    namespace: dict[str, str] | None = None,
) -> bool:
    return any(
        _is_meant(peer, source, namespace)
        for rule in _rules(these, target, "ingress")
        if _opens(rule, port, "TCP")
        for peer in rule["from"]
    )


def _is_meant(peer: Manifest, those: dict[str, str], namespace: dict[str, str] | None) -> bool:
    """Whether a peer means pods with these labels, in a namespace with those; None is our own."""
    if "ipBlock" in peer:
        return False
    if ("namespaceSelector" in peer) != (namespace is not None):
        return False
    if namespace is not None and not selects(peer["namespaceSelector"], namespace):
        return False
    return selects(peer.get("podSelector", {}), those)
