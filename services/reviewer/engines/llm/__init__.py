"""The llm engine: a language model of any provider examines creatives, through pydantic-ai. It never decides."""
