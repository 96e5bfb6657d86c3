"""Runs the tests of `interpreted/`, in one process whose kernels are interpreted."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.gpu.interpreted.conftest import INTERPRETED

FOLDER = Path(__file__).parent / "interpreted"
FILES = sorted(FOLDER.glob("test_*.py"))


@pytest.mark.skipif(INTERPRETED, reason="this process is the one that would be started")
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.timeout(600)
def test_interpreted_kernels(record_property) -> None:
    # one thread: the interpreter computes in tiny pieces, which threads only make slower
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5", str(FOLDER)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=FOLDER.parents[2])
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", done.stdout.splitlines()[-1])}
    record_property("interpreted", counts)
    # a file whose tests are all skipped or lost would look green
    assert counts["passed"] >= len(FILES)
    assert "skipped" not in counts, done.stdout[-4000:]
