"""The rendered objects of an overlay, and the ways around in them that the policies need. No policy stands here."""

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from pydantic_settings import BaseSettings

from deploy.k8s.rendering import Manifest, rendered
from gateway.settings import GatewaySettings
from notifier.settings import NotifierSettings
from reviewer.settings import ReviewerSettings

#: Ours, and what each reads.
SERVICES: dict[str, type[BaseSettings]] = {
    "gateway": GatewaySettings,
    "reviewer": ReviewerSettings,
    "notifier": NotifierSettings,
}
OURS = {"app.kubernetes.io/part-of": "imprimatur"}
COMPONENT = "app.kubernetes.io/component"
_UNITS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}


@dataclass(frozen=True)
class Manifests:
    """All objects of one overlay."""

    overlay: str
    objects: list[Manifest]

    _WITH_PODS: ClassVar = ("Deployment", "StatefulSet", "Job")

    @classmethod
    def of(cls, overlay: str) -> "Manifests":
        """From the committed file."""
        return cls(overlay, _objects(overlay))

    def of_kind(self, kind: str) -> list[Manifest]:
        """All objects of a kind."""
        return [one for one in self.objects if one["kind"] == kind]

    def find(self, kind: str, name: str) -> Manifest:
        """The one object of this kind whose name fits the pattern."""
        [found] = [one for one in self.of_kind(kind) if fnmatch.fnmatch(one["metadata"]["name"], name)]
        return found

    def workloads(self) -> Iterator[Manifest]:
        """Everything that makes pods, but for what operators make."""
        return (one for one in self.objects if one["kind"] in self._WITH_PODS)

    def service(self, name: str) -> Manifest:
        """The Deployment of one of our services."""
        return self.find("Deployment", f"imprimatur-{name}")

    def environment(self, workload: Manifest) -> dict[str, str | None]:
        """What the container is told; None stands for a secret's value."""
        [container] = pod(workload)["containers"]
        told: dict[str, str | None] = {}
        for source in container.get("envFrom", []):
            told |= self.find("ConfigMap", source["configMapRef"]["name"])["data"]
        return told | {entry["name"]: entry.get("value") for entry in container.get("env", [])}

    def setting(self, service: str, field: str) -> Any:
        """A setting's value as the service would read it."""
        told = self.environment(self.service(service)).get(f"IMPRIMATUR_{field.upper()}")
        default = SERVICES[service].model_fields[field].default
        return default if told is None else type(default)(told)


@cache
def _objects(overlay: str) -> list[Manifest]:
    return rendered(overlay)


def pod(workload: Manifest) -> Manifest:
    """The pod's specification."""
    spec: Manifest = workload["spec"]["template"]["spec"]
    return spec


def labels(workload: Manifest) -> dict[str, str]:
    """The pod's labels."""
    found: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return found


def named(workload: Manifest) -> str:
    """How messages call it."""
    return f"{workload['kind']} {workload['metadata']['name']}"


def only_container(workload: Manifest) -> Manifest:
    """The pod's container, of which there is one."""
    [container] = pod(workload)["containers"]
    found: Manifest = container
    return found


def amount(quantity: str | int | float) -> float:
    """A quantity such as 250m or 2Gi, in units or bytes."""
    parts = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(quantity))
    assert parts, quantity
    return float(parts[1]) * _UNITS[parts[2]]


def selects(selector: Manifest, those: dict[str, str]) -> bool:
    """Whether a label selector takes an object with these labels."""
    fits = all(those.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    return fits and all(_fits(rule, those) for rule in selector.get("matchExpressions", []))


def _fits(rule: Manifest, those: dict[str, str]) -> bool:
    value = those.get(rule["key"])
    match rule["operator"]:
        case "In":
            return value in rule["values"]
        case "NotIn":
            return value not in rule["values"]
    raise AssertionError(f"no test knows the operator {rule['operator']}")
