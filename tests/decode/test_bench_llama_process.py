"""llama.cpp in a process of its own, played by a stand-in: what passes between, and how both end."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from qspec_decode.bench import peers
from qspec_decode.bench.entrants import Entrant
from qspec_decode.bench.llama_cpp_peer import LlamaCpp
from qspec_decode.bench.llama_cpp_process import LlamaCppProcess
from qspec_kernels import UsageError
from tests.decode.stand_in_llama import FakeLlama, write_module
from tests.decode.test_bench_llama_server import alive

PROMPTS = [list(range(40, 70)), [7, 8]]
Opener = Callable[..., LlamaCppProcess]

# what others find in the module; a prompt that begins with 49 is special
ON_49 = """
decode = FakeLlama.llama_decode
def llama_decode(self, context, batch):
    if batch.token[0] == 49:
        {does}
    return decode(self, context, batch)
FakeLlama.llama_decode = llama_decode
"""


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opener]:
    """opened(change, path) -> a process whose llama_cpp is the stand-in with a change."""
    monkeypatch.syspath_prepend(tmp_path)
    with ExitStack() as closing:

        def open_one(change: str = "", path: str = "model.gguf") -> LlamaCppProcess:
            write_module(tmp_path, change)
            peer = LlamaCppProcess(Path(path), "q4_0", 2)
            closing.callback(peer.close)
            return peer

        yield open_one


def pid_of(peer: LlamaCppProcess) -> int:
    assert peer._process.pid is not None
    return peer._process.pid


def wait_for_end(pid: int) -> bool:
    until = time.monotonic() + 10
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(pid)


def test_it_decodes_as_in_this_process_and_measures_there(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = """
import itertools
time.perf_counter = itertools.count(0.0).__next__
make = FakeLlama.llama_init_from_model
FakeLlama.llama_init_from_model = lambda self, model, params: (
    make(self, model, params) if (params.n_threads, params.n_threads_batch) == (2, 2) else None
)
"""
    peer = opened(change)
    monkeypatch.setitem(sys.modules, "llama_cpp", FakeLlama())
    here = LlamaCpp(Path("model.gguf"), "q4_0", 2)
    assert isinstance(peer, Entrant)
    assert (peer.name, peer.weights) == (here.name, here.weights)
    found, expected = peer.decode(PROMPTS, 6), here.decode(PROMPTS, 6)
    # its clock ticks once when it is looked at
    assert (found.prefill_seconds, found.decode_seconds) == (1, 1)
    expected.prefill_seconds = expected.decode_seconds = 1
    assert found == expected


def test_what_it_refuses_is_refused_here_and_it_goes_on(opened: Opener) -> None:
    peer = opened(ON_49.format(does="return 1"))
    with pytest.raises(UsageError, match="decodes 3 tokens with status 1"):
        peer.decode([[49, 1, 2]], 3)
    assert len(peer.decode(PROMPTS, 3).token_ids) == 2


def test_a_file_that_cannot_be_loaded_leaves_no_process(opened: Opener) -> None:
    with pytest.raises(UsageError, match=r"cannot load missing\.gguf") as raised:
        opened(path="missing.gguf")
    assert raised.value.hint == "Its own tools say why: llama-cli -m FILE."
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("does", "how", "hint"),
    [
        ("os.kill(os.getpid(), signal.SIGILL)", "signal SIGILL", "-fno-tree-dse"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "signal SIGKILL", "Leave it out"),
        ("os._exit(3)", "status 3", "Leave it out"),
    ],
)
def test_how_it_ended_is_said(opened: Opener, does: str, how: str, hint: str) -> None:
    peer = opened(ON_49.format(does=does))
    for _ in range(2):
        with pytest.raises(UsageError) as raised:
            peer.decode([[49]], 3)
        assert raised.value.message == f"llama.cpp ended with {how}"
        assert hint in raised.value.hint


def test_peers_get_the_same_weights_twice_and_are_closed(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = pytest.importorskip("gguf")
    monkeypatch.syspath_prepend(tmp_path)
    write_module(tmp_path)
    weights = peers.Weights(lambda: bundle / "target", lambda: None, tmp_path)
    with ExitStack() as closing:
        ready, skipped = peers.open_peers(["llama.cpp"], weights, None, closing, lambda _: None)
        assert [(one.name, one.weights) for one in ready] == [("llama.cpp", "bf16"), ("llama.cpp", "q4_0")]
        assert skipped == []
        assert len(ready[1].decode(PROMPTS, 3).token_ids) == 2
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()
    for kind in ("bf16", "q4_0"):
        assert gguf.GGUFReader(tmp_path / f"{kind}.gguf").fields["llama.block_count"].contents() == 2


def test_a_broken_build_is_left_out_and_ends_both(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when GCC 12 built it for AMX: 4-bit weights end it at the first prompt of several tokens."""
    pytest.importorskip("gguf")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(peers, "NAMES", ("llama.cpp",))
    write_module(
        tmp_path,
        """
load, decode = FakeLlama.llama_model_load_from_file, FakeLlama.llama_decode
def llama_model_load_from_file(self, path, params):
    self.path = path
    return load(self, path, params)
def llama_decode(self, context, batch):
    if self.path.endswith(b"q4_0.gguf") and batch.n_tokens > 1:
        os.kill(os.getpid(), signal.SIGILL)
    return decode(self, context, batch)
FakeLlama.llama_model_load_from_file, FakeLlama.llama_decode = llama_model_load_from_file, llama_decode
""",
    )
    weights = peers.Weights(lambda: bundle / "target", lambda: None, tmp_path)
    with ExitStack() as closing:
        ready, (skipped,) = peers.open_peers(None, weights, None, closing, lambda _: None)
        assert ready == []
        assert skipped["peer"] == "llama.cpp"
        assert skipped["reason"].startswith("llama.cpp ended with signal SIGILL. ")
        assert not multiprocessing.active_children()


def test_an_interrupt_is_not_for_it_even_while_it_starts(
    opened: Opener, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(LlamaCppProcess, "decode", lambda *_: None)
        peer = opened()
    os.kill(pid_of(peer), signal.SIGINT)
    assert peer.decode([[1]], 3).token_ids
    os.kill(pid_of(peer), signal.SIGINT)
    assert peer.decode([[1]], 3).token_ids
    # here it is what it was
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    peer.close()
    assert capfd.readouterr() == ("", "")


def test_it_ends_when_nobody_can_ask_it_any_more(opened: Opener, capfd: pytest.CaptureFixture[str]) -> None:
    peer = opened()
    peer._connection.close()
    assert wait_for_end(pid_of(peer))
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_it_ends_with_us_in_the_middle_of_decoding(tmp_path: Path) -> None:
    # nor is an interrupt for the first process that multiprocessing starts
    does = "os.kill(os.getpid(), signal.SIGINT); print(os.getpid(), flush=True); time.sleep(60)"
    write_module(tmp_path, ON_49.format(does=does))
    code = (
        "from pathlib import Path\n"
        "from qspec_decode.bench.llama_cpp_process import LlamaCppProcess\n"
        "LlamaCppProcess(Path('model.gguf'), 'q4_0', 2).decode([[49]], 3)\n"
    )
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths}
    ) as us:
        assert us.stdout is not None
        pid = int(us.stdout.readline())
        assert alive(pid)
        us.kill()
        us.wait()
    assert wait_for_end(pid)
