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
    from reviewer.engines.llm.engine import LLMEngine, Price
    from reviewer.engines.llm.model import open_model

    priced = settings.llm_price_input is not None or settings.llm_price_output is not None
    return LLMEngine(
        open_model(settings),
        model_name=settings.llm_model or "",
        takes_images=settings.llm_images,
        reasks=settings.llm_reasks,
        price=Price(input=settings.llm_price_input or 0, output=settings.llm_price_output or 0) if priced else None,
    )
