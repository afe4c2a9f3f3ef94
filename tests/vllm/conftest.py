"""Settings of vLLM for tests, which it reads when it is imported; checkpoints, written once."""

from __future__ import annotations

import os

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the engine in this process
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

from pathlib import Path

import pytest
from vllm_checkpoints import FAMILIES, save


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Family -> its checkpoint."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: save(family, root / family) for family in FAMILIES}
