"""`torch.compile` of every op, on the torch path and on the best native library of this machine."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from qspec_kernels import dispatch
from tests.kernels.test_opcheck import NAMES

ROOT = Path(__file__).parents[2]


def check(paths: Iterable[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.kernels.compiled", *paths],
        # what inductor writes
        env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines() == [" ".join((path, *NAMES)) for path in paths]


def test_one_graph_for_any_number_of_rows(tmp_path):
    # one of them where there is no library
    check(dict.fromkeys(("torch", dispatch.isa())), tmp_path)
