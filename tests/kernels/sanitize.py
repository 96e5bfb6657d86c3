"""`python -m tests.kernels.sanitize [--build DIRECTORY]`: every kernel under ASan and UBSan, over odd shapes.

For each instruction set that this CPU can run, a program of the kernels and sanitized.cpp is built (CMake
option QSPEC_SANITIZE), the calls of odd_calls.py are logged with the installed library, and the program makes
them again. Then it is given calls that go one element too far or overflow, which it must refuse: a sanitizer
that sees nothing would let them pass.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import qspec_kernels as qk
from qspec_kernels import dispatch
from qspec_kernels.backends.cpp import library
from tests.kernels import call_log, odd_calls

ROOT = Path(__file__).parents[2]
_MOST = 2**63 - 1


def build(directory: Path, isas: list[str]) -> None:
    """Compile the programs of these instruction sets into `directory`."""
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    for command in (
        ["cmake", "-S", ROOT, "-B", directory, *generator, "-DQSPEC_SANITIZE=ON"],
        ["cmake", "--build", directory, "-j", str(os.cpu_count()), "--target", *map(_program, isas)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout[-8000:]}{done.stderr[-8000:]}")


def check(directory: Path, isa: str) -> str:
    """Run one program; what it did in one line, or an exit with what it found."""
    os.environ[library.ENVIRONMENT] = isa
    dispatch.reset()
    generator = torch.Generator().manual_seed(0)
    calls = call_log.logged(lambda: odd_calls.run(generator))
    done = _run(directory, isa, calls)
    if done.returncode:
        sys.exit(f"{isa} is not clean:\n{done.stderr[-12000:]}")
    faults = {"AddressSanitizer: heap-buffer-overflow": too_far(), "runtime error: signed": overflowing()}
    for message, fault in faults.items():
        done = _run(directory, isa, [fault])
        if done.returncode == 0 or message not in done.stderr:
            sys.exit(f"{isa}: a fault in {fault.kernel} was not seen as {message!r}:\n{done.stderr}")
    return f"{isa}: {len(calls)} calls of {len({call.kernel for call in calls})} kernels clean"


def too_far() -> call_log.Call:
    """A kernel told of one element more than there is: it reads what one that goes a step too far would."""
    (call,) = call_log.logged(lambda: qk.argmax(torch.zeros(1, 37)))
    return call_log.with_word(call, 3, 1)


def overflowing() -> call_log.Call:
    """A kernel told of no rows of 2^63 - 1 elements: it computes how many groups those are."""
    (call,) = call_log.logged(lambda: qk.quantize_act(torch.zeros(0, 1), group_size=1))
    return call_log.with_word(call_log.with_word(call, 5, _MOST - 1), 6, 1)


def _program(isa: str) -> str:
    return f"sanitized_{isa}"


def _run(directory: Path, isa: str, calls: list[call_log.Call]) -> subprocess.CompletedProcess[str]:
    log = directory / "calls"
    call_log.write(log, calls)
    # leaks are looked for by stopping all threads, which containers often forbid
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    command = [directory / _program(isa), log]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def main() -> None:
    """Build and check everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--build", type=Path, help="folder to build in; a temporary one by default")
    given = parser.parse_args()
    flags, began = library.cpu_flags(), time.monotonic()
    isas = [isa for isa, required in library.REQUIRED_FLAGS.items() if flags.issuperset(required)]
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as temporary:
        directory = given.build or Path(temporary)
        build(directory, isas)
        print(f"built in {time.monotonic() - began:.0f} s", flush=True)
        for isa in isas:
            print(check(directory, isa), flush=True)
    for isa in library.REQUIRED_FLAGS.keys() - set(isas):
        missing = [flag for flag in library.REQUIRED_FLAGS[isa] if flag not in flags]
        print(f"{isa}: skipped, the CPU lacks {', '.join(missing)}")


if __name__ == "__main__":
    main()
