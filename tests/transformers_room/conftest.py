"""What all tests with the transformers library need."""

import pytest


@pytest.fixture(autouse=True)
def a_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let accelerate, which transformers asks, find no job: mmengine's tools leave LOCAL_RANK in the environment."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    try:
        from accelerate.state import AcceleratorState
    except ImportError:
        return
    AcceleratorState._reset_state(reset_partial_state=True)
