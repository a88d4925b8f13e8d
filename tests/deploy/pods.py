"""Policies about pods. Each takes an overlay's objects and yields a sentence for whatever offends."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from docs.settings import settings as all_settings
from gateway import following, load
from gateway.server import ROOM_FOR_CALLS
from imprimatur.job import DEFAULTS
from reviewer.engines.apart import MOST_AT_ONCE, MOST_BYTES
from reviewer.images import decoding
from tests.deploy.manifests import OURS, SERVICES, Manifests, amount, labels, named, only_container, pod

ROOT = Path(__file__).parents[2]
_VOLUMES = {"configMap", "secret", "emptyDir", "persistentVolumeClaim", "projected"}
#: From the end of a drain to the end of the process: connections are closed.
_CLOSING_SECONDS = 10
#: A loop that is held up for so long is no reason to kill what the process does.
_PATIENCE_SECONDS = 30
#: A gateway without callers, and its caches, spans and outbox when they are full.
_A_GATEWAY_BYTES = 125_000_000 + 80_000_000
#: Fit every secret's setting that there is.
_A_SECRET = {
    "IMPRIMATUR_DATABASE_URL": "postgresql://user:password@host/name",
    "IMPRIMATUR_BROKER_URL": "amqp://user:password@host/",
}


def the_namespace_enforces_the_restricted_standard(these: Manifests) -> Iterator[str]:
    [namespace] = these.of_kind("Namespace")
    if namespace["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") != "restricted":
        yield "the namespace lets other pods in"
    for one in these.objects:
        if one["kind"] != "Namespace" and one["metadata"].get("namespace") != namespace["metadata"]["name"]:
            yield f"{named(one)} is in another namespace"


def pods_keep_to_the_restricted_standard(these: Manifests) -> Iterator[str]:
    for workload in these.workloads():
        spec, name = pod(workload), named(workload)
        security = spec.get("securityContext", {})
        if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
            yield f"{name} may run as root"
        if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{name} may make any system call"
        if any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC", "initContainers")):
            yield f"{name} shares the host's name spaces, or has a container that no policy looks at"
        yield from (f"{name}: volume {one}" for one in spec.get("volumes", []) if not {*one} - {"name"} <= _VOLUMES)
        inside = only_container(workload).get("securityContext", {})
        if inside.get("allowPrivilegeEscalation") is not False or inside.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{name} may gain privileges"
        if inside.get("readOnlyRootFilesystem") is not True:
            yield f"{name} may write to its image"


def our_pods_are_the_user_of_the_image(these: Manifests) -> Iterator[str]:
    [user] = re.findall(r"^USER (\d+):", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for workload in these.workloads():
        if labels(workload).items() >= OURS.items() and pod(workload)["securityContext"]["runAsUser"] != int(user):
            yield f"{named(workload)} is not the image's user {user}"


def nobody_has_a_token_for_the_cluster(these: Manifests) -> Iterator[str]:
    for workload in these.workloads():
        if pod(workload).get("automountServiceAccountToken") is not False:
            yield f"{named(workload)} is given a token"
    for account in these.of_kind("ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield f"{named(account)} gives tokens"
    accounts = [account["metadata"]["name"] for account in these.of_kind("ServiceAccount")]
    used = [pod(one).get("serviceAccountName") for one in these.workloads() if labels(one).items() >= OURS.items()]
    if sorted(accounts) != sorted(map(str, used)):
        yield f"not each of our pods has an account of its own: {used}"


def services_of_the_namespace_leak_into_no_environment(these: Manifests) -> Iterator[str]:
    for workload in these.workloads():
        if pod(workload).get("enableServiceLinks") is not False:
            yield f"{named(workload)} gets variables that are named after Services"


def probes_ask_the_right_question(these: Manifests) -> Iterator[str]:
    for service in SERVICES:
        container = only_container(these.service(service))
        liveness, readiness, startup = (
            container.get(f"{kind}Probe", {}) for kind in ("liveness", "readiness", "startup")
        )
        for kind, probe in {"liveness": liveness, "startup": startup}.items():
            if probe.get("httpGet") != {"path": "/livez", "port": "http"}:
                yield f"{service}: {kind} does not ask /livez, which depends on nothing"
        if liveness.get("periodSeconds", 10) * liveness.get("failureThreshold", 3) < _PATIENCE_SECONDS:
            yield f"{service}: liveness has no patience"
        start_seconds = startup.get("periodSeconds", 10) * startup.get("failureThreshold", 3)
        if start_seconds < 2 * _PATIENCE_SECONDS:
            yield f"{service}: a slow machine is not given the time to start"
        if start_seconds > 4 * _PATIENCE_SECONDS:
            yield f"{service}: what hangs at its start is found late, for the HTTP port waits for nobody"
        if readiness.get("httpGet") != {"path": "/readyz", "port": "http"} and readiness.get("grpc") != {"port": 7443}:
            yield f"{service}: readiness asks neither /readyz nor the gRPC port"
        tls = "IMPRIMATUR_TLS_CERTIFICATE" in these.environment(these.service(service))
        if "grpc" in readiness and ("httpGet" in readiness or tls or service != "gateway"):
            yield f"{service}: a gRPC probe cannot be"


def pods_have_the_time_to_drain(these: Manifests) -> Iterator[str]:
    for service in SERVICES:
        workload = these.service(service)
        before = only_container(workload).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        needed = before + these.setting(service, "drain_seconds") + _CLOSING_SECONDS
        if pod(workload).get("terminationGracePeriodSeconds", 30) < needed:
            yield f"{service} is killed before the {needed:g} s that it may need"
        if service == "gateway" and not before:
            yield "clients learn too late that a gateway leaves"
    if these.setting("reviewer", "drain_seconds") < max(one.timeout_seconds for one in DEFAULTS.values()):
        yield "a reviewer that must leave cuts off attempts that are in time"


def resources_are_named_and_make_sense(these: Manifests) -> Iterator[str]:
    for workload in these.workloads():
        resources = only_container(workload).get("resources", {})
        for what in ("cpu", "memory"):
            wanted, most = (resources.get(kind, {}).get(what) for kind in ("requests", "limits"))
            if wanted is None or most is None or not 0 < amount(wanted) <= amount(most):
                yield f"{named(workload)}: {what} {wanted} to {most}"
    resources = only_container(these.service("reviewer"))["resources"]
    room = amount(resources["limits"]["memory"]) - amount(resources["requests"]["memory"])
    decoded = these.setting("reviewer", "image_processes") * decoding.MOST_BYTES
    if room < MOST_AT_ONCE * MOST_BYTES + decoded:
        yield "suspects and images can take the reviewer's whole container along"


def a_gateway_has_memory_for_its_bounds_together(these: Manifests) -> Iterator[str]:
    needed = (
        _A_GATEWAY_BYTES
        + (these.setting("gateway", "streams") + ROOM_FOR_CALLS) * load.BYTES_OF_A_STREAM
        + (load.MOST_REQUEST_BYTES + load.MOST_UPLOAD_BYTES) * load.COPIES
        + following.MOST_FOLLOWERS.all * following.PORTION_BYTES
        + following.MOST_REMEMBERED.all * following.BYTES_OF_AN_ID
    )
    if amount(only_container(these.service("gateway"))["resources"]["limits"]["memory"]) < needed:
        yield f"callers who keep to a gateway's bounds can make it need {needed:,} bytes"


def secrets_are_only_referred_to(these: Manifests) -> Iterator[str]:
    yield from (f"{named(one)} holds values" for one in these.of_kind("Secret"))
    secret = {name for name, (field, _) in all_settings().items() if field.repr is False}
    for config in these.of_kind("ConfigMap"):
        yield from (f"{named(config)} holds {name}" for name in {*config["data"]} & secret)
    for workload in these.workloads():
        for entry in only_container(workload).get("env", []):
            if (entry["name"] in secret or re.search("PASS|SECRET|TOKEN", entry["name"])) and "value" in entry:
                yield f"{named(workload)} holds the value of {entry['name']}"


def every_variable_is_a_setting_that_its_service_can_read(these: Manifests) -> Iterator[str]:
    known = all_settings()
    for config in these.of_kind("ConfigMap"):
        yield from (f"{named(config)}: {name} is no setting" for name in {*config["data"]} - {*known})
    for service, kind in SERVICES.items():
        workload = these.service(service)
        names = [entry["name"] for entry in only_container(workload)["env"]]
        yield from (f"{service}: {name} stands there twice" for name in {*names} if names.count(name) > 1)
        yield from (f"{service} does not read {name}" for name in names if service not in known.get(name, (0, []))[1])
        told = {name: value or _A_SECRET.get(name, "x") for name, value in these.environment(workload).items()}
        try:
            kind.model_validate({name.removeprefix("IMPRIMATUR_").lower(): value for name, value in told.items()})
        except ValidationError as fault:
            yield f"{service} would not start: {fault}"
        vault = {"IMPRIMATUR_VAULT_KEY", "IMPRIMATUR_VAULT_KEY_FILE"}
        if "vault_key" in kind.model_fields and len(vault & {*told}) != 1:
            yield f"{service} needs the vault's key, once"


def services_agree_on_what_they_must_share(these: Manifests) -> Iterator[str]:
    for name, (field, readers) in all_settings().items():
        if "same in" in (field.description or ""):
            told = {these.environment(these.service(reader)).get(name) for reader in readers}
            if len(told) > 1:
                yield f"{name} differs: {told}"


def ports_are_those_of_the_settings(these: Manifests) -> Iterator[str]:
    for service in SERVICES:
        ports = {one["name"]: one["containerPort"] for one in only_container(these.service(service))["ports"]}
        wanted = {"http": these.setting(service, f"{service}_http_port")}
        if service == "gateway":
            wanted["grpc"] = these.setting(service, "grpc_port")
        if ports != wanted:
            yield f"{service} listens at {wanted}, and says {ports}"


def images_have_the_name_and_version_of_this_tree(these: Manifests) -> Iterator[str]:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for workload in these.workloads():
        image = only_container(workload)["image"]
        if labels(workload).items() >= OURS.items() and image != f"imprimatur:{version}":
            yield f"{named(workload)} runs {image}"
        if ":" not in image or image.endswith(":latest"):
            yield f"{named(workload)}: {image} may be another tomorrow"


def each_workload_runs_its_own_command(these: Manifests) -> Iterator[str]:
    for workload in these.workloads():
        component = labels(workload)["app.kubernetes.io/component"]
        container = only_container(workload)
        if labels(workload).items() >= OURS.items() and (container.get("args"), container.get("command")) != (
            [component],
            None,
        ):
            yield f"{named(workload)} runs {container.get('command')} {container.get('args')}"
