"""The settings that every service has. Each service adds its own in a class of its own.

Read from the environment (prefix IMPRIMATUR_) in `__main__` only. The table in docs/settings.md and
`.env.example` are generated from these classes.
"""

from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from imprimatur.errors import ConfigurationError
from imprimatur.guard import Guard
from imprimatur.networks import is_loopback
from imprimatur.retention import ASSET_DAYS, EVIDENCE_DAYS, JOB_DAYS, Kind, Retention
from imprimatur.vault import Vault

#: Each class has it: commands read a single one, such as the vault's.
_CONFIG = SettingsConfigDict(env_prefix="IMPRIMATUR_", extra="ignore")
_MOST_DAYS = 36_500


class TracingSettings(BaseSettings):
    """Where traces are sent, if anywhere."""

    model_config = _CONFIG

    otlp_endpoint: str | None = Field(
        default=None,
        description="Where traces are sent by OTLP over HTTP, such as http://collector:4318; by default nowhere; "
        "see docs/tracing.md",
    )
    trace_sample_ratio: float = Field(
        default=1.0, ge=0, le=1, description="Share of the traces begun here that is kept; a caller's decision holds"
    )

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value and not _is_plain_address(value):
            raise ValueError("must be http://host:port or https://host, with a path if need be and nothing else")
        return value


def _is_plain_address(url: str) -> bool:
    """Whether it names a web address without user, password, query or fragment: it is shown in log lines."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    others = ("@" in parts.netloc, "?" in url, "#" in url, any(mark.isspace() for mark in url))
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0 and not any(others)


class SharedSettings(TracingSettings):
    """What gateway, reviewer and notifier have in common."""

    model_config = _CONFIG

    database_url: str = Field(description="Where everything is kept: postgresql://user:password@host/name", repr=False)
    broker_url: str = Field(description="RabbitMQ: amqp://user:password@host/ (amqps:// for TLS)", repr=False)
    database_pool_size: int = Field(default=10, ge=2, description="Database connections per process")
    http_host: str = Field(default="0.0.0.0", description="Address of /metrics, /livez and /readyz")  # noqa: S104  # in a container, all
    drain_seconds: float = Field(
        default=20.0, ge=0, description="Time to finish what is under way after SIGTERM, in seconds"
    )
    log_level: str = Field(default="info", pattern="(?i)^(debug|info|warning|error)$", description="Least level logged")
    log_json: bool | None = Field(
        default=None, description="JSON log lines; by default JSON unless standard error is a terminal"
    )


class LeaseSettings(BaseSettings):
    """The lease that reviewers hold and gateways watch; the same values in both."""

    model_config = _CONFIG

    lease_seconds: float = Field(
        default=3.0, gt=0, description="A reviewer silent for so long loses its jobs to others; same in all services"
    )


class VaultSettings(BaseSettings):
    """Where the key for secrets at rest comes from: one of the two."""

    model_config = _CONFIG

    vault_key: str | None = Field(
        default=None, repr=False, description="Key for secrets at rest (`imprimatur keys vault` makes one)"
    )
    vault_key_file: Path | None = Field(default=None, description="File with that key, readable by its owner only")

    def open_vault(self) -> Vault:
        """The vault that these settings name.

        Raises:
            ConfigurationError: neither or both are set, or the key cannot be used.
        """
        if (self.vault_key is None) == (self.vault_key_file is None):
            raise ConfigurationError("set one of IMPRIMATUR_VAULT_KEY and IMPRIMATUR_VAULT_KEY_FILE")
        if self.vault_key is not None:
            return Vault.from_text(self.vault_key)
        assert self.vault_key_file is not None
        return Vault.from_file(self.vault_key_file)


class AddressSettings(BaseSettings):
    """Which addresses webhooks may go to and images come from; the same values in the gateway, which checks URLs, and
    in those who connect: the notifier and the reviewer."""

    model_config = _CONFIG

    allow_private_addresses: bool = Field(
        default=False,
        description="Let webhooks go to, and images come from, private and loopback addresses; same in all services. "
        "Default of a `serve` that listens on a loopback address: true",
    )
    allow_http: bool = Field(
        default=False,
        description="Let webhooks go to, and images come from, http:// addresses; same in all services. "
        "Default of a `serve` that listens on a loopback address: true",
    )

    def guard(self) -> Guard:
        """The guard that these settings make."""
        return Guard(allow_private=self.allow_private_addresses, allow_http=self.allow_http)

    def guard_at(self, host: str) -> Guard:
        """The same for a server of all services that listens there. Who reaches it on a loopback address is on this
        machine already, so that it may lead there too, unless the settings say otherwise."""
        own = {"allow_private_addresses": True, "allow_http": True} if is_loopback(host) else {}
        said = {name: getattr(self, name) for name in self.model_fields_set}
        return self.model_copy(update=own | said).guard()


class RetentionSettings(BaseSettings):
    """How long finished work is kept."""

    model_config = _CONFIG

    retention_job_days: int = Field(
        default=JOB_DAYS,
        ge=0,
        le=_MOST_DAYS,
        description="Finished jobs are removed after so many days, with all that belongs to them but people's "
        "decisions; 0: never",
    )
    retention_event_days: int = Field(
        default=0, ge=0, le=_MOST_DAYS, description="The same for the histories of finished jobs; 0: with their jobs"
    )
    retention_attempt_days: int = Field(
        default=0, ge=0, le=_MOST_DAYS, description="The same for the attempts at finished jobs; 0: with their jobs"
    )
    retention_webhook_days: int = Field(
        default=0,
        ge=0,
        le=_MOST_DAYS,
        description="The same for finished jobs' webhook messages, deliveries and posts; 0: with their jobs",
    )
    retention_request_id_days: int = Field(
        default=0,
        ge=0,
        le=_MOST_DAYS,
        description="Finished jobs' request ids may be used anew after so many days; 0: with their jobs",
    )

    retention_asset_days: int = Field(
        default=ASSET_DAYS,
        ge=0,
        le=_MOST_DAYS,
        description="Uploaded images are removed so many days after they were last uploaded or named by a submit, and "
        "after the end of each job that names them; 0: never",
    )

    retention_evidence_days: int = Field(
        default=EVIDENCE_DAYS,
        ge=0,
        le=_MOST_DAYS,
        description="Evidence that is kept for equal creatives is removed so many days after it was begun, reused by "
        "then or not; 0: never. For how long it is reused: IMPRIMATUR_EVIDENCE_REUSE_HOURS",
    )

    @field_validator(*(f"retention_{name}_days" for name in ("event", "attempt", "webhook", "request_id")))
    @classmethod
    def _goes_with_its_job(cls, days: int, info: ValidationInfo) -> int:
        job_days = info.data.get("retention_job_days", 0)
        if 0 < job_days < days:
            raise ValueError(f"must not be more than jobs are kept ({job_days}), with which it goes at the latest")
        return days

    def retention(self) -> Retention:
        """What these settings say."""
        return Retention(
            days={
                Kind.JOBS: self.retention_job_days,
                Kind.EVENTS: self.retention_event_days,
                Kind.ATTEMPTS: self.retention_attempt_days,
                Kind.WEBHOOKS: self.retention_webhook_days,
                Kind.REQUEST_IDS: self.retention_request_id_days,
                Kind.ASSETS: self.retention_asset_days,
                Kind.EVIDENCE: self.retention_evidence_days,
            }
        )


def explain(fault: ValidationError) -> ConfigurationError:
    """One line that names each wrong setting as it is written in the environment."""
    lines = [
        f"IMPRIMATUR_{'_'.join(str(part) for part in item['loc']).upper()}: {item['msg'].lower()}"
        for item in fault.errors()
    ]
    return ConfigurationError("; ".join(lines))
