"""The model that the settings name: at which provider or address, and with which key."""

from pathlib import Path
from urllib.parse import urlsplit

from pydantic_ai.exceptions import UserError
from pydantic_ai.models import Model, infer_model
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers import Provider, infer_provider_class
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider

from imprimatur.errors import ConfigurationError
from reviewer.settings import EngineSettings

_OPENAI = "openai:"


def provider_of(settings: EngineSettings, name: str) -> str:
    """Who is asked: the host of the base URL, or the provider before the colon."""
    if settings.llm_base_url:
        return urlsplit(settings.llm_base_url).netloc.rpartition("@")[2]
    return name.partition(":")[0]


def open_model(settings: EngineSettings, name: str) -> Model:
    """The model, ready to be asked. Nothing is sent yet.

    OpenAI and whatever is compatible with it are spoken to by Chat Completions, which all of them have.

    Raises:
        ConfigurationError: the model is not named, its provider is unknown, its software is not installed, or the key
            is missing.
    """
    key = _key(settings)
    if provider_of(settings, name) != provider_of(settings, settings.llm_model or ""):
        key = None  # it is another provider's
    if settings.llm_base_url:
        return _compatible(name.removeprefix(_OPENAI), settings.llm_base_url, key)
    if ":" not in name:
        raise ConfigurationError("IMPRIMATUR_LLM_MODEL: name it as provider:model, for example openai:gpt-5-mini")
    try:
        if name.startswith(_OPENAI):
            return OpenAIChatModel(name.removeprefix(_OPENAI), provider=OpenAIProvider(api_key=key))
        return infer_model(name, lambda provider: _provider(provider, key))
    except ImportError as error:
        provider = name.partition(":")[0]
        raise ConfigurationError(
            f"IMPRIMATUR_LLM_MODEL: the software for {provider} is not installed: "
            f'pip install "pydantic-ai-slim[{provider}]"'
        ) from error
    except UserError as error:
        missing = "set IMPRIMATUR_LLM_API_KEY, IMPRIMATUR_LLM_API_KEY_FILE or the provider's own variable"
        raise ConfigurationError(f"IMPRIMATUR_LLM_API_KEY: {missing if key is None else error}") from error
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"IMPRIMATUR_LLM_MODEL: {error}") from error


def _compatible(name: str, base_url: str, key: str | None) -> Model:
    if not name:
        raise ConfigurationError("IMPRIMATUR_LLM_MODEL: name the model as the server at IMPRIMATUR_LLM_BASE_URL does")
    if not base_url.startswith(("http://", "https://")):
        raise ConfigurationError("IMPRIMATUR_LLM_BASE_URL: must begin with https:// or http://")
    return OpenAIChatModel(name, provider=OpenAICompatibleProvider("compatible", base_url=base_url, api_key=key))


def _provider(name: str, key: str | None) -> Provider[object]:
    provider: Provider[object] = infer_provider_class(name)(**({"api_key": key} if key else {}))
    return provider


def _key(settings: EngineSettings) -> str | None:
    """The key that the settings give; None leaves it to the provider's own variable, such as OPENAI_API_KEY."""
    if settings.llm_api_key and settings.llm_api_key_file:
        raise ConfigurationError("set one of IMPRIMATUR_LLM_API_KEY and IMPRIMATUR_LLM_API_KEY_FILE")
    if settings.llm_api_key_file:
        return _read(settings.llm_api_key_file)
    return settings.llm_api_key or None


def _read(path: Path) -> str:
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"IMPRIMATUR_LLM_API_KEY_FILE: {path} cannot be read") from error
    if not key:
        raise ConfigurationError(f"IMPRIMATUR_LLM_API_KEY_FILE: {path} is empty")
    return key
