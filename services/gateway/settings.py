"""The gateway's settings."""

from pathlib import Path

from pydantic import Field

from imprimatur.settings import AddressSettings, LeaseSettings, RetentionSettings, SharedSettings, VaultSettings


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
