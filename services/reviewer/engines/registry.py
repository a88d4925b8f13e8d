"""The engines by name. The configuration chooses; nothing falls back to another."""

from reviewer.engines import Engine
from reviewer.engines.builtin.engine import BuiltinEngine
from reviewer.settings import EngineName, ReviewerSettings


def open_engine(settings: ReviewerSettings) -> Engine:
    """The engine that the settings name."""
    match settings.engine:
        case EngineName.BUILTIN:
            return BuiltinEngine(processes=settings.engine_processes)
