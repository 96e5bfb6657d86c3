"""What all tests share: random numbers that are the same in every run, and the paths that serve the ops."""

import os
from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, settings

from qspec_kernels import dispatch
from qspec_kernels.backends.cpp import library
from qspec_kernels.errors import UsageError

# examples derive from the test alone, so that a run on another machine sees the same ones
settings.register_profile(
    "qspec",
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("qspec")

# the processes share the cores: threads of each would only be in the others' way
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

# a process holds up to 2 GB of models
MOST_PROCESSES = 4


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """As many processes as cores; none of their own for what is timed, and within a test's own pytest."""
    if config.getoption("benchmark_only") or "PYTEST_CURRENT_TEST" in os.environ:
        return 0
    return min(len(os.sched_getaffinity(0)), MOST_PROCESSES)


@pytest.fixture
def rng() -> torch.Generator:
    """A generator with a fixed seed."""
    return torch.Generator().manual_seed(0)


def use_backend(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve the ops from one path from here on; skip where the CPU or the build lacks it."""
    missing = [flag for flag in library.REQUIRED_FLAGS.get(name, ()) if flag not in library.cpu_flags()]
    if missing:
        pytest.skip(f"QSPEC_CPU_ISA={name}: the CPU lacks {', '.join(missing)}")
    monkeypatch.setenv(library.ENVIRONMENT, name)
    dispatch.reset()
    if name != "torch":
        try:
            library.load()
        except UsageError as error:
            if not error.message.endswith("was not built") and "the system refuses" not in error.message:
                raise
            pytest.skip(f"QSPEC_CPU_ISA={name}: {error.message}")


@pytest.fixture(params=["torch", *reversed(library.REQUIRED_FLAGS)])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The test runs once on the torch path and once on each library that this CPU can run."""
    use_backend(request.param, monkeypatch)
    yield request.param
    monkeypatch.undo()
    dispatch.reset()


@pytest.fixture
def torch_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The ops are served by the torch path."""
    use_backend("torch", monkeypatch)
    yield
    monkeypatch.undo()
    dispatch.reset()


@pytest.fixture
def threads() -> Iterator[None]:
    """The test may set the number of threads; afterwards it is what it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory is born full of NaN (floats) and of the largest value (integers)."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def untyped() -> Iterator[None]:
    """As in production: shapes and dtypes are checked by the code, not by jaxtyping."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
