"""The engines by name. The configuration chooses; nothing falls back to another."""

from reviewer.engines import Engine
from reviewer.settings import EngineName, EngineSettings


def open_engine(settings: EngineSettings) -> Engine:
    """The engine that the settings name.

    Raises:
        imprimatur.errors.ConfigurationError: a setting of the engine is missing or wrong; the message names it.
    """
    match settings.engine:
        case EngineName.BUILTIN:
            from reviewer.engines.builtin.engine import BuiltinEngine

            return BuiltinEngine(processes=settings.engine_processes)
        case EngineName.LLM:
            return _open_llm(settings)


def _open_llm(settings: EngineSettings) -> Engine:
    # The providers' software takes a second to import: only who asks for it waits.
    from reviewer.engines.llm.breaker import Breaker
    from reviewer.engines.llm.choice import LLMEngines
    from reviewer.engines.llm.engine import LLMEngine
    from reviewer.engines.llm.model import open_model, provider_of

    default = settings.llm_model or ""
    models = {name: open_model(settings, name) for name in (default, *settings.llm_models)}
    breakers = {
        provider: Breaker(
            provider,
            failures=settings.llm_breaker_failures,
            pause_seconds=settings.llm_breaker_pause_seconds,
        )
        for provider in {provider_of(settings, name) for name in models}
    }
    return LLMEngines(
        {
            name: LLMEngine(
                model,
                model_name=name,
                breaker=breakers[provider_of(settings, name)],
                takes_images=settings.llm_images,
                image_side_px=settings.llm_image_side_px,
                reasks=settings.llm_reasks,
                price=settings.llm_prices.get(name),
                call_seconds=settings.llm_call_seconds,
            )
            for name, model in models.items()
        },
        default=default,
    )
