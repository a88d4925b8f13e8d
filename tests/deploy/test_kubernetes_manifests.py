"""The overlays build, what is kept of them is current, and every object is one that its API knows: field by field."""

import copy
import json
import os
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import jsonschema
import kubernetes_validate  # type: ignore[import-untyped]  # ships no types
import pytest
import yaml

from deploy.k8s import rendering
from deploy.k8s.rendering import OVERLAYS, KustomizeMissing, Manifest, rendered
from tests.deploy import networks
from tests.deploy.manifests import SERVICES, Manifests

#: The oldest that has all we use (preStop's `sleep`), and the newest that there are schemas for.
KUBERNETES = ("1.30", kubernetes_validate.latest_version())
PLACES = rendering.FOLDER / "overlays"
SCHEMAS = Path(__file__).parent / "schemas"
#: What operators define; everything else is Kubernetes' own.
_CUSTOM = {one.stem: one for one in SCHEMAS.glob("*.json")}
_RABBITMQ_FIELDS = {
    *("replicas", "image", "imagePullSecrets", "service", "persistence", "resources", "affinity", "tolerations"),
    *("rabbitmq", "tls", "override", "skipPostDeploySteps", "terminationGracePeriodSeconds", "secretBackend"),
}


def built(folder: Path) -> list[Manifest]:
    """All of a folder, as kustomize builds it here."""
    try:
        return [*yaml.safe_load_all(rendering.build(folder))]
    except KustomizeMissing as reason:
        pytest.skip(f"the committed rendering is tested alone: {reason}")
    except CalledProcessError as fault:
        pytest.fail(fault.stderr)


def check(manifest: Manifest, version: str) -> None:
    """Raises jsonschema.ValidationError for what the API would refuse or drop."""
    group = manifest["apiVersion"].partition("/")[0]
    if schema := _CUSTOM.get(f"{group}_{manifest['kind']}"):
        jsonschema.Draft7Validator(json.loads(schema.read_text(encoding="utf-8"))).validate(manifest)
    elif manifest["kind"] == "RabbitmqCluster":
        check_rabbitmq(manifest, version)
    else:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as fault:
            raise jsonschema.ValidationError(f"{manifest['kind']}: {fault.message}") from fault


def check_rabbitmq(manifest: Manifest, version: str) -> None:
    """No package brings this operator's schema. Fields as its API reference has them; the pod is Kubernetes' own."""
    spec = copy.deepcopy(manifest["spec"])
    template = spec.pop("override")["statefulSet"]["spec"]["template"]
    unknown = {*spec} - _RABBITMQ_FIELDS
    unknown |= {*spec["rabbitmq"]} - {"additionalConfig", "additionalPlugins", "advancedConfig", "envConfig"}
    unknown |= {*spec["persistence"]} - {"storage", "storageClassName"}
    if manifest["apiVersion"] != "rabbitmq.com/v1beta1" or unknown:
        raise jsonschema.ValidationError(f"RabbitmqCluster: {manifest['apiVersion']} {unknown}")
    check({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": template["spec"]}, version)
    probe = {"name": "x", "image": "x", "resources": spec["resources"]}
    check({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": [probe]}}, version)


# --- building --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_builds_and_what_is_kept_of_it_is_current(overlay: str) -> None:
    whole = built(PLACES / overlay)
    kept = [*yaml.safe_load_all(rendering.shortened("\n---\n".join(map(yaml.safe_dump, whole))))]
    assert kept == rendered(overlay), "run `python -m deploy.k8s.rendering`"


@pytest.mark.parametrize("said", ['{"clientVersion": {"minor": "20+"}}', '"kustomizeVersion": "v4.5.7"'])
def test_a_kubectl_that_is_too_old_is_as_good_as_none(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "kubectl"
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KustomizeMissing):
        rendering.built("local")


@pytest.mark.parametrize(("words", "status"), [(["--check"], 0), ([], 1)])
def test_without_kustomize_what_is_kept_is_neither_compared_nor_written_and_that_is_said(
    words: list[str],
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["rendering", *words])
    assert rendering.main() == status
    assert "must be on PATH" in capsys.readouterr().err


def test_rules_and_dashboards_are_part_of_production_and_not_kept_twice() -> None:
    whole, kept = (_watching(manifests) for manifests in (built(PLACES / "production"), rendered("production")))
    assert {kind for kind, _ in whole} == {"PrometheusRule", "ConfigMap"}
    assert not kept


def _watching(manifests: list[Manifest]) -> list[tuple[str, str]]:
    """Rules, and what Grafana's sidecar looks for."""
    return [
        (one["kind"], one["metadata"]["name"])
        for one in manifests
        if one["kind"] == "PrometheusRule" or one["metadata"].get("labels", {}).get("grafana_dashboard") == "1"
    ]


def test_the_component_for_traces_builds_and_lets_the_services_reach_the_collector(tmp_path: Path) -> None:
    folder = os.path.relpath(rendering.FOLDER, tmp_path.resolve())
    text = {"resources": [f"{folder}/overlays/production"], "components": [f"{folder}/components/tracing"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(text), encoding="utf-8")
    these = Manifests("traced", built(tmp_path))
    for service in SERVICES:
        told = these.environment(these.service(service))
        assert told["IMPRIMATUR_OTLP_ENDPOINT"] == "http://opentelemetry-collector.monitoring.svc:4318"
        assert told["IMPRIMATUR_LEASE_SECONDS"] == "3.0"
    for policy in (
        networks.the_collector_is_reached_where_traces_go,
        networks.services_reach_what_they_need_and_no_more,
    ):
        assert [*policy(these)] == []
    check(these.find("NetworkPolicy", "allow-services-to-collector"), KUBERNETES[0])


def test_no_object_is_there_twice() -> None:
    for overlay in OVERLAYS:
        names = [(one["kind"], one["metadata"]["name"]) for one in rendered(overlay)]
        assert len({*names}) == len(names) > 10


# --- schemas ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_one_that_its_api_knows(overlay: str, version: str) -> None:
    for manifest in rendered(overlay):
        check(manifest, version)


def test_the_alerts_are_objects_that_their_api_knows() -> None:
    for manifest in built(PLACES / "production"):
        if manifest["kind"] == "PrometheusRule":
            check(manifest, KUBERNETES[0])


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", ("spec", "template", "spec", "terminationGracePeriod"), 30),
        ("Deployment", ("spec", "revisionHistoryLimit"), "three"),
        ("NetworkPolicy", ("spec", "policytypes"), ["Ingress"]),
        ("HorizontalPodAutoscaler", ("spec", "minimum"), 1),
        ("ScaledObject", ("spec", "minReplicas"), 1),
        ("ScaledObject", ("spec", "fallback", "behavior"), "more"),
        ("ScaledObject", ("spec", "advanced", "horizontalPodAutoscalerConfig", "behavior", "scaledown"), {}),
        ("PodMonitor", ("spec", "podMetricsEndpoints", 0, "portname"), "http"),
        ("Certificate", ("spec", "issuer"), "mine"),
        ("Certificate", ("spec", "usages"), ["serving"]),
        ("Cluster", ("spec", "replicas"), 3),
        ("Cluster", ("spec", "postgresql", "synchronous", "number"), "one"),
        ("RabbitmqCluster", ("spec", "nodes"), 3),
        ("RabbitmqCluster", ("spec", "rabbitmq", "config"), "x"),
        ("RabbitmqCluster", ("spec", "override", "statefulSet", "spec", "template", "spec", "runAsUser"), 999),
    ],
)
def test_a_field_or_value_that_the_api_does_not_know_is_found(kind: str, path: tuple[Any, ...], value: object) -> None:
    manifest = next(copy.deepcopy(one) for one in rendered("production") if one["kind"] == kind)
    place: Any = manifest
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    for version in KUBERNETES:
        with pytest.raises(jsonschema.ValidationError):
            check(manifest, version)
