"""The reviewer's settings."""

from enum import StrEnum

from pydantic import Field

from imprimatur.settings import LeaseSettings, SharedSettings


class EngineName(StrEnum):
    """The engines that a reviewer can be given."""

    BUILTIN = "builtin"


class ReviewerSettings(SharedSettings, LeaseSettings):
    """What `imprimatur reviewer` reads from the environment."""

    reviewer_slots: int = Field(default=16, ge=1, le=1000, description="Jobs that one reviewer runs at once")
    reviewer_http_port: int = Field(
        default=9102, ge=0, le=65535, description="The reviewer's port for /metrics, /livez and /readyz"
    )
    engine: EngineName = Field(default=EngineName.BUILTIN, description="Which engine looks at creatives")
    engine_processes: int = Field(
        default=2, ge=1, le=64, description="Child processes of the builtin engine, for its CPU work"
    )
