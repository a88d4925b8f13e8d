"""The reviewer's settings."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings

from imprimatur.budgets import MICROS, Budget
from imprimatur.job import JobType
from imprimatur.reuse import HOURS
from imprimatur.settings import AddressSettings, LeaseSettings, SharedSettings
from reviewer.terms import Terms

_MOST_HOURS = 8_760.0
#: The side of the largest animations, too, whose stills show them whole (`Look.shown_whole`).
IMAGE_SIDE_PX = 2048


class EngineName(StrEnum):
    """The engines that a reviewer can be given."""

    BUILTIN = "builtin"
    LLM = "llm"


class Price(BaseModel):
    """US dollars per million tokens, which is millionths of a dollar per token."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached_input: float | None = Field(default=None, ge=0)  #: of what the provider had read before; None: as all input

    def of(self, input_tokens: int, cached_tokens: int, output_tokens: int) -> float:
        """The cost of so many tokens, in millionths of a dollar; cached ones are input tokens, too."""
        cached_input = self.input if self.cached_input is None else self.cached_input
        fresh_tokens = input_tokens - cached_tokens
        return fresh_tokens * self.input + cached_tokens * cached_input + output_tokens * self.output


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
    llm_image_side_px: int = Field(
        default=IMAGE_SIDE_PX,
        ge=1,
        description="The longest side of an image that the model sees in full; creatives with larger ones go to a "
        "person. Animations are held to 2,048 px at most",
    )
    llm_reasks: int = Field(
        default=1, ge=0, le=5, description="How often an answer that does not fit is sent back to the model"
    )
    llm_models: tuple[str, ...] = Field(
        default=(), description="Further models, as a JSON list: those that a tenant's policy may name"
    )
    llm_prices: dict[str, Price] = Field(
        default={},
        description="US dollars per million tokens, as JSON by model: "
        '{"openai:gpt-5-mini": {"input": 0.25, "output": 2}}, with "cached_input" where that differs; by default a '
        "bundled price list, or 0",
    )
    llm_call_seconds: float = Field(default=60.0, gt=0, description="The longest that one answer of a model may take")
    llm_breaker_failures: int = Field(
        default=5, ge=1, description="After so many failures in a row a provider is left alone for a while"
    )
    llm_breaker_pause_seconds: float = Field(
        default=10.0, gt=0, description="For so long; each try in vain doubles it, up to two minutes"
    )
    llm_interval_seconds: dict[JobType, Annotated[float, Field(ge=0)]] = Field(
        default={},
        description="Least time between two calls to one provider for one tenant, over all reviewers, as JSON by type "
        'of job: {"creative_review": 0.5}; by default none',
    )
    llm_daily_tokens: int = Field(
        default=0,
        ge=0,
        description="Tokens, in and out, that a tenant may use in a day of UTC; 0: no limit. Like the "
        "next, for tenants without a budget of their own (`imprimatur tenants budget`)",
    )
    llm_daily_cost_dollars: float = Field(default=0.0, ge=0, description="US dollars that it may spend; 0: no limit")

    evidence_reuse_hours: float | None = Field(
        default=None,
        ge=0,
        le=_MOST_HOURS,
        description="For so long, equal creatives of a tenant are given what the engine found in the first of them, in "
        f"place of a look of their own; 0: never. By default {HOURS:g} with the llm engine, and 0 with the builtin "
        "one, whose look costs little",
    )

    @property
    def evidence_reuse_seconds(self) -> float:
        """For how long evidence is reused; 0: not at all."""
        default = HOURS if self.engine is EngineName.LLM else 0.0
        return 3600.0 * (default if self.evidence_reuse_hours is None else self.evidence_reuse_hours)

    def terms(self) -> Terms:
        """On what terms providers are asked."""
        return Terms(
            budget=Budget(
                daily_tokens=self.llm_daily_tokens, daily_cost_micros=round(self.llm_daily_cost_dollars * MICROS)
            ),
            interval_seconds=self.llm_interval_seconds,
        )

    def of_child(self) -> "EngineSettings":
        """What a child process is told that opens the engine for one creative: this much, and no other secret."""
        mine = {name: getattr(self, name) for name in EngineSettings.model_fields}
        return EngineSettings.model_construct(**mine | {"engine_processes": 1})


class ReviewerSettings(SharedSettings, LeaseSettings, AddressSettings, EngineSettings):
    """What `imprimatur reviewer` reads from the environment."""

    reviewer_slots: int = Field(default=64, ge=1, le=1000, description="Jobs that one reviewer runs at once")
    image_processes: int = Field(
        default=2, ge=1, le=64, description="Child processes in which images are decoded, started when first needed"
    )
    reviewer_http_port: int = Field(
        default=9102, ge=0, le=65535, description="The reviewer's port for /metrics, /livez and /readyz"
    )
