"""No kernel touches a byte beside its operands: calls on odd shapes, between forbidden pages."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import qspec_kernels as qk
from qspec_kernels.backends.cpp import library
from tests.conftest import use_backend
from tests.kernels import call_log, odd_calls

ROOT = Path(__file__).parents[2]
SOURCES = Path(library.__file__).parent


@pytest.fixture(params=list(library.REQUIRED_FLAGS))
def native(request, monkeypatch):
    """Each native library that this CPU can run."""
    use_backend(request.param, monkeypatch)
    yield library.load()
    monkeypatch.undo()
    qk.dispatch.reset()


def replayed(tmp_path: Path, path: Path, calls: list[call_log.Call]) -> subprocess.CompletedProcess[str]:
    """The calls again, on guarded memory, in a process of their own."""
    log = tmp_path / "calls"
    call_log.write(log, calls)
    command = [sys.executable, "-m", "tests.kernels.guarded", str(path), str(log)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return f"{done.stdout.splitlines()[-1:]} {done.stderr}"


@pytest.mark.usefixtures("threads")
def test_no_kernel_touches_what_lies_beside_its_operands(native, rng, tmp_path):
    torch.set_num_threads(3)
    calls = call_log.logged(lambda: odd_calls.run(rng))
    assert kernels() <= {call.kernel for call in calls}
    done = replayed(tmp_path, native.path, calls)
    assert done.returncode == 0, last_line(done)


def kernels() -> set[str]:
    """Names of all recordable kernels; in an installation without sources those of the launchers."""
    text = "".join(source.read_text() for source in SOURCES.glob("*.cpp"))
    launchers = {file.stem for file in SOURCES.glob("[a-z]*.py")} - {"library", "calls"}
    return set(re.findall(r"^QSPEC_RECORDABLE\((\w+)\)", text, flags=re.M)) | launchers


# A kernel told of one element more than there is touches what one that goes a step too far would touch.


def test_a_read_of_one_element_too_many_is_caught(native, rng, tmp_path):
    x = torch.randn(1, 37, generator=rng)
    (call,) = call_log.logged(lambda: qk.argmax(x))
    assert replayed(tmp_path, native.path, [call]).returncode == 0
    done = replayed(tmp_path, native.path, [call_log.with_word(call, 3, 1)])
    assert done.returncode == -signal.SIGSEGV, last_line(done)
    assert "argmax, flush with the page behind" in last_line(done)


def test_a_write_of_one_row_too_many_is_caught(native, rng, tmp_path):
    x = torch.randn(64, 1024, generator=rng)
    (call,) = call_log.logged(lambda: qk.silu_mul(x))
    done = replayed(tmp_path, native.path, [call_log.with_word(call, 3, 1)])
    assert done.returncode == -signal.SIGSEGV, last_line(done)


@pytest.mark.parametrize(("at_end", "offset"), [(True, 5), (False, -1)])
def test_the_pages_beside_the_memory_are_forbidden(at_end, offset):
    code = (
        "import ctypes; from tests.kernels.guarded import Guarded;"
        f"guarded = Guarded(b'abcde', {at_end});"
        "assert guarded.bytes() == b'abcde';"
        f"ctypes.string_at(guarded.address + {offset}, 1)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGSEGV


def test_another_result_is_noticed(native, rng, tmp_path):
    (call,) = call_log.logged(lambda: qk.silu_mul(torch.randn(2, 14, generator=rng)))
    kind, filled = call.arguments[0]
    changed = call._replace(arguments=[(kind, bytes(len(filled))), *call.arguments[1:]])
    done = replayed(tmp_path, native.path, [changed])
    assert done.returncode == 1
    assert "left other bytes" in done.stderr
