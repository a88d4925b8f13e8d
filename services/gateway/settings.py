"""The gateway's settings."""

from pathlib import Path

from pydantic import Field

from gateway.quotas import Allowance
from imprimatur.assets import MAX_BYTES
from imprimatur.human import DueHours
from imprimatur.settings import AddressSettings, LeaseSettings, RetentionSettings, SharedSettings, VaultSettings

_DEFAULT = Allowance()
_DUE = DueHours()


class GatewaySettings(SharedSettings, LeaseSettings, VaultSettings, AddressSettings, RetentionSettings):
    """What `imprimatur gateway` reads from the environment."""

    grpc_host: str = Field(default="0.0.0.0", description="Address of the gRPC port")  # noqa: S104  # in a container, all
    grpc_port: int = Field(default=7443, ge=0, le=65535, description="The gRPC port; 0 takes a free one")
    gateway_http_port: int = Field(
        default=9101, ge=0, le=65535, description="The gateway's port for /metrics, /livez and /readyz"
    )
    tls_certificate: Path | None = Field(default=None, description="PEM file; with it the gRPC port speaks TLS")
    tls_private_key: Path | None = Field(default=None, description="PEM file of the certificate's key")
    tls_client_ca: Path | None = Field(
        default=None, description="PEM file; with it only clients with a certificate of this authority are let in"
    )
    grpc_reflection: bool = Field(default=False, description="Serve gRPC reflection, for grpcurl and the like")
    grpc_max_connection_age_seconds: int = Field(
        default=0, ge=0, description="Ask clients to reconnect after so long, to spread them again; 0: never"
    )
    submits_per_second: float = Field(
        default=_DEFAULT.submits_per_second,
        ge=0,
        description="Jobs a second that one tenant may submit at each gateway; 0: no limit. Like the limits "
        "that follow, for tenants without a limit of their own (`imprimatur tenants limits`)",
    )
    submit_burst_seconds: float = Field(
        default=_DEFAULT.burst_seconds,
        gt=0,
        description="A tenant that was quiet may submit so many seconds' worth at once",
    )
    open_jobs: int = Field(
        default=_DEFAULT.open_jobs,
        ge=0,
        description="Queued and running jobs that one tenant may have, over all gateways; 0: no limit",
    )
    running_jobs_per_tenant: int = Field(
        default=_DEFAULT.running_jobs,
        ge=0,
        description="Jobs of one tenant that may be on their way to reviewers or running at once, over all of these; "
        "further ones wait; 0: no limit",
    )
    streams_per_tenant: int = Field(
        default=_DEFAULT.streams,
        ge=0,
        description="Watch streams that one tenant may have open at each gateway; 0: no limit",
    )
    streams: int = Field(
        default=_DEFAULT.all_streams,
        ge=1,
        description="Watch streams that each gateway keeps open; about 25 kB of memory each",
    )

    image_bytes: int = Field(
        default=MAX_BYTES, ge=1, le=MAX_BYTES, description="Largest image that may be uploaded, in bytes"
    )
    asset_bytes_per_tenant: int = Field(
        default=_DEFAULT.asset_bytes,
        ge=0,
        description="Uploaded images that are kept for one tenant, in bytes together; 0: no limit",
    )

    review_due_hours_high: float = Field(
        default=_DUE.high,
        ge=0,
        le=8784,
        description="By when people are to decide what has priority HIGH, in hours from when they are asked; 0: no "
        "such time. What is overdue comes first",
    )
    review_due_hours_normal: float = Field(default=_DUE.normal, ge=0, le=8784, description="The same for NORMAL")
    review_due_hours_low: float = Field(default=_DUE.low, ge=0, le=8784, description="The same for LOW")

    def due_hours(self) -> DueHours:
        """By when people are to decide."""
        return DueHours(
            high=self.review_due_hours_high, normal=self.review_due_hours_normal, low=self.review_due_hours_low
        )

    def allowance(self) -> Allowance:
        """What tenants may take."""
        return Allowance(
            submits_per_second=self.submits_per_second,
            burst_seconds=self.submit_burst_seconds,
            open_jobs=self.open_jobs,
            running_jobs=self.running_jobs_per_tenant,
            streams=self.streams_per_tenant,
            all_streams=self.streams,
            asset_bytes=self.asset_bytes_per_tenant,
        )
