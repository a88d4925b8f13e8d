"""The notifier's settings."""

from typing import Self

from pydantic import Field, model_validator

from imprimatur.settings import AddressSettings, SharedSettings, VaultSettings
from notifier.schedule import RECOMMENDED_PAUSES_SECONDS


class NotifierSettings(SharedSettings, VaultSettings, AddressSettings):
    """What `imprimatur notifier` reads from the environment."""

    notifier_http_port: int = Field(
        default=9103, ge=0, le=65535, description="The notifier's port for /metrics, /livez and /readyz"
    )
    webhook_concurrency: int = Field(default=100, ge=1, le=10_000, description="Webhook posts at once per notifier")
    webhook_concurrency_per_host: int = Field(
        default=10, ge=1, description="Webhook posts at once to one host and port, so that a slow one delays no other"
    )
    webhook_concurrency_per_tenant: int = Field(default=40, ge=1, description="Webhook posts at once for one tenant")
    webhook_timeout_seconds: float = Field(default=15.0, gt=0, description="The longest one webhook post may take")
    webhook_lease_seconds: float = Field(
        default=60.0, gt=0, description="A notifier silent for so long loses its deliveries to others"
    )
    webhook_retry_seconds: tuple[float, ...] = Field(
        default=RECOMMENDED_PAUSES_SECONDS,
        description="Pauses between the attempts to deliver a webhook, as a JSON list; then it is given up",
    )
    webhook_poll_seconds: float = Field(default=1.0, gt=0, description="How often due webhook retries are looked for")
    webhook_sweep_seconds: float = Field(
        default=5.0, gt=0, description="How often outcomes are looked for that the broker did not tell of"
    )
    webhook_sweep_older_than_seconds: float = Field(
        default=10.0, ge=0, description="An outcome untold for so long is taken up by the sweep"
    )

    @model_validator(mode="after")
    def _lease_outlives_post(self) -> Self:
        if self.webhook_lease_seconds <= self.webhook_timeout_seconds:
            raise ValueError("webhook_lease_seconds must be more than webhook_timeout_seconds")
        return self
