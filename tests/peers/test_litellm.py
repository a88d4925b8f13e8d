"""The llm engine against a server that somebody else wrote: LiteLLM's proxy, which speaks as OpenAI does.

With answers that it makes up itself, and before a provider that follows a script, as it stands before real ones. Run by
`make peers`, which installs it into a folder of its own: it brings 120 packages.
"""

import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import yaml

from deploy.local.ports import free_port
from imprimatur.errors import AttemptError, PermanentError, RateLimited, TransientError
from imprimatur.evidence import Category, Creative, Image, Recommendation
from reviewer.engines import Engine
from reviewer.engines.registry import open_engine
from reviewer.settings import EngineName, EngineSettings, Price
from tests.service import provider as scripted
from tests.service.provider import INPUT_TOKENS, OUTPUT_TOKENS, Provider, Step, answer, fails, gives, providing, says

pytestmark = pytest.mark.peer

PROGRAM = Path(os.environ.get("IMPRIMATUR_TEST_LITELLM", ".local/litellm/bin/litellm")).absolute()
KEY = "sk-the-right-one"
SHOES = Creative(creative_id="cr-1", headline="New running shoes", body="Light and quiet.")
PNG = b"\x89PNG\r\n\x1a\n and so on"
#: What it makes up, by the names of its models.
MADE_UP = {
    "good": json.dumps(answer()),
    "wordy": "Here is what I think: it is fine.",
    "incomplete": json.dumps(answer(categories={"scam": 0.1})),
    "limited": "litellm.RateLimitError",
    "broken": "litellm.InternalServerError",
    "small": "litellm.ContextWindowExceededError",
}


@pytest.fixture(scope="module")
def upstream_port() -> int:
    """Where the provider behind it is, while there is one."""
    return free_port()


@pytest.fixture(scope="module")
def litellm(tmp_path_factory: pytest.TempPathFactory, upstream_port: int) -> Iterator[str]:
    """The proxy's base URL."""
    assert PROGRAM.exists(), f"{PROGRAM} is not there: run `make peers`"
    folder, port = tmp_path_factory.mktemp("litellm"), free_port()
    (folder / "config.yaml").write_text(yaml.safe_dump(_configuration(upstream_port)))
    command = [
        str(PROGRAM),
        "--config",
        "config.yaml",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--telemetry",
        "False",
    ]
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PATH": os.environ["PATH"], "HOME": str(folder)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=offline, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_until_it_answers(f"http://127.0.0.1:{port}/health/liveliness", process, folder / "log")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()  # it would wait for the calls that hang, and keeps nothing
        process.wait()


def _configuration(upstream_port: int) -> dict[str, Any]:
    behind = {"model": "openai/house-model", "api_key": "sk-behind", "api_base": f"http://127.0.0.1:{upstream_port}/v1"}
    made_up = [
        {"model_name": name, "litellm_params": {"model": "openai/gpt-5-mini", "api_key": "x", "mock_response": said}}
        for name, said in MADE_UP.items()
    ]
    return {
        "model_list": [*made_up, {"model_name": "behind", "litellm_params": behind}],
        "general_settings": {"master_key": KEY},
        "litellm_settings": {"num_retries": 0, "drop_params": False},
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
    }


def _wait_until_it_answers(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            with urlopen(url, timeout=5):
                return
        except (URLError, OSError):
            pass
        try:
            process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError(log.read_text()[-2000:])


@asynccontextmanager
async def opened(base_url: str, model: str, *, key: str = KEY) -> AsyncIterator[Engine]:
    """An engine as the settings open it."""
    settings = EngineSettings(
        engine=EngineName.LLM,
        llm_model=model,
        llm_base_url=base_url,
        llm_api_key=key,
        llm_prices={model: Price(input=2, output=8)},
    )
    engine = open_engine(settings)
    try:
        yield engine
    finally:
        await engine.close()


async def failure(engine: Engine) -> AttemptError:
    with pytest.raises(AttemptError) as raised:
        await engine.examine(SHOES)
    return raised.value


async def test_an_answer_of_the_schema_becomes_evidence_with_the_tokens_that_it_reports(litellm: str) -> None:
    async with opened(litellm, "good") as engine:
        found = await engine.examine(SHOES)
    assert (found.approval_score, found.recommendation) == (0.97, Recommendation.APPROVE)
    assert {item.category for item in found.categories} == set(Category)
    assert found.input_tokens > 0
    assert found.output_tokens > 0
    assert found.cost_micros == 2 * found.input_tokens + 8 * found.output_tokens


@pytest.mark.parametrize(
    ("model", "kind", "code"),
    [
        ("wordy", TransientError, "invalid_answer"),
        ("incomplete", TransientError, "invalid_answer"),
        ("limited", RateLimited, "rate_limited"),
        ("broken", TransientError, "provider_error"),
        ("small", PermanentError, "too_long"),
    ],
)
async def test_what_it_makes_up_to_fail_is_told_by_class_and_code(
    litellm: str, model: str, kind: type[AttemptError], code: str
) -> None:
    async with opened(litellm, model) as engine:
        error = await failure(engine)
    assert (type(error), error.code) == (kind, code)
    assert bool(error.output_tokens) is (code == "invalid_answer")


async def test_a_key_that_it_does_not_know_is_the_settings_fault(litellm: str) -> None:
    async with opened(litellm, "good", key="sk-another") as engine:
        error = await failure(engine)
    assert (type(error), error.code) == (PermanentError, "provider_credentials")


async def test_a_model_that_it_does_not_know_is_the_settings_fault(litellm: str) -> None:
    async with opened(litellm, "nothing-of-that-name") as engine:
        error = await failure(engine)
    assert isinstance(error, PermanentError)
    assert error.code in {"provider_model", "provider_rejected"}


# --- before a provider -----------------------------------------------------------------------------------


@pytest.fixture
async def provider(upstream_port: int) -> AsyncIterator[Provider]:
    async with providing(gives(answer()), port=upstream_port) as running:
        yield running


async def test_it_takes_our_schema_and_images_and_passes_them_on(litellm: str, provider: Provider) -> None:
    async with opened(litellm, "behind") as engine:
        found = await engine.examine(
            Creative(creative_id="cr-1", headline="Shoes", images=(Image(name="a", data=PNG),))
        )
    [call] = provider.calls
    assert call.body["response_format"]["json_schema"]["strict"] is True
    assert call.creative["headline"] == "Shoes"
    assert call.shown[-1]["image_url"]["url"].startswith("data:image/png;base64,iVBORw0K")
    assert (found.input_tokens, found.output_tokens) == (INPUT_TOKENS, OUTPUT_TOKENS)


@pytest.mark.parametrize(
    ("step", "kind", "code"),
    [
        (fails(503, "overloaded"), TransientError, "provider_error"),
        (fails(429, "rate_limit_exceeded", Retry_After="7"), RateLimited, "rate_limited"),
        (fails(401, "invalid_api_key"), PermanentError, "provider_credentials"),
        (
            fails(400, "context_length_exceeded", "This model's maximum context length is 8192 tokens."),
            PermanentError,
            "too_long",
        ),
        (says("", refusal="I cannot help with that."), TransientError, "invalid_answer"),  # it takes the refusal out
        (says("", finish_reason="content_filter"), PermanentError, "refused"),
        (scripted.breaks_off, TransientError, "provider_error"),
    ],
    ids=["503", "429", "401", "too long", "refusal", "filter", "breaks off"],
)
async def test_what_fails_behind_it_is_told_as_if_nothing_stood_between(
    litellm: str, provider: Provider, step: Step, kind: type[AttemptError], code: str
) -> None:
    provider.follow(step)
    async with opened(litellm, "behind") as engine:
        error = await failure(engine)
    assert (type(error), error.code) == (kind, code)


async def test_an_answer_that_does_not_fit_is_sent_back_through_it(litellm: str, provider: Provider) -> None:
    provider.follow(gives(answer(approval_score=2)), gives(answer()))
    async with opened(litellm, "behind") as engine:
        found = await engine.examine(SHOES)
    assert (found.input_tokens, found.output_tokens) == (2 * INPUT_TOKENS, 2 * OUTPUT_TOKENS)
