"""How real vLLM runs in these tests."""

from collections.abc import Iterator

import pytest


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """vLLM runs in this process: one for each engine would import vLLM each time, which takes half a minute."""
    import vllm.envs

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    yield
    vllm.envs.disable_envs_cache()  # what the engine has read of the environment, for the tests after this one
