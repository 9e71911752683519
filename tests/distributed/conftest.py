"""The small data set of the engine's tests."""

from tests.engine.conftest import pictures

__all__ = ["pictures"]
