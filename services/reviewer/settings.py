"""The reviewer's settings."""

from enum import StrEnum
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings

from imprimatur.settings import LeaseSettings, SharedSettings


class EngineName(StrEnum):
    """The engines that a reviewer can be given."""

    BUILTIN = "builtin"
    LLM = "llm"


class EngineSettings(BaseSettings):
    """Which engine looks at creatives, and how."""

    model_config = SharedSettings.model_config

    engine: EngineName = Field(
        default=EngineName.BUILTIN, description="Which engine looks at creatives: builtin or llm; see docs/engines.md"
    )
    engine_processes: int = Field(
        default=2, ge=1, le=64, description="Child processes of the builtin engine, for its CPU work"
    )
    llm_model: str | None = Field(
        default=None, description="The llm engine's model: openai:gpt-5-mini, or with a base URL the server's own name"
    )
    llm_base_url: str | None = Field(
        default=None, description="An OpenAI-compatible server in place of a provider's own, such as http://host/v1"
    )
    llm_api_key: str | None = Field(
        default=None, repr=False, description="The provider's key; by default its own variable, such as OPENAI_API_KEY"
    )
    llm_api_key_file: Path | None = Field(default=None, description="File with that key")
    llm_images: bool = Field(
        default=True, description="The model takes images; if not, creatives with images go to a person"
    )
    llm_reasks: int = Field(
        default=1, ge=0, le=5, description="How often an answer that does not fit is sent back to the model"
    )
    llm_price_input: float | None = Field(
        default=None, ge=0, description="US dollars per million input tokens; by default a bundled price list, or 0"
    )
    llm_price_output: float | None = Field(
        default=None, ge=0, description="US dollars per million output tokens; as above"
    )

    def of_child(self) -> "EngineSettings":
        """What a child process is told that opens the engine for one creative: this much, and no other secret."""
        mine = {name: getattr(self, name) for name in EngineSettings.model_fields}
        return EngineSettings.model_construct(**mine | {"engine_processes": 1})


class ReviewerSettings(SharedSettings, LeaseSettings, EngineSettings):
    """What `imprimatur reviewer` reads from the environment."""

    reviewer_slots: int = Field(default=64, ge=1, le=1000, description="Jobs that one reviewer runs at once")
    reviewer_http_port: int = Field(
        default=9102, ge=0, le=65535, description="The reviewer's port for /metrics, /livez and /readyz"
    )
