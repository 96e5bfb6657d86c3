"""llama.cpp's server as a contender: what it is asked and told, and that it never outlives us."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from qspec_decode.bench import llama_server_peer, peers
from qspec_decode.bench.entrants import Entrant
from qspec_decode.bench.llama_server_peer import LlamaServer, find_server
from qspec_kernels import UsageError

PROMPTS = [[1, 2, 3], [10]]


@pytest.fixture
def program(tmp_path: Path) -> str:
    """An executable that behaves like the server."""
    path = tmp_path / "llama-server"
    script = Path(__file__).with_name("stand_in_server.py")
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -S {script} "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def server(program: str, tmp_path: Path) -> Iterator[LlamaServer]:
    peer = LlamaServer(program, tmp_path / "bf16.gguf", tmp_path / "small.gguf", 4, 2)
    yield peer
    peer.close()


def alive(pid: int) -> bool:
    """Whether it runs; one that ended may wait for somebody to ask how."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip()[:1] not in ("", "Z")


def test_all_prompts_go_in_one_request_and_the_slowest_row_counts(server: LlamaServer) -> None:
    assert isinstance(server, Entrant)
    assert server.name == "llama.cpp <- small, K=4"
    out = server.decode(PROMPTS, 5)
    assert out.token_ids == [[4, 6, 7, 8, 9], [4, 10, 11, 12, 13]]
    assert (out.prefill_seconds, out.decode_seconds) == (0.02, 0.2)
    # four tokens behind the first one, of which row 1 had one drafted
    assert out.num_target_steps == 4
    (level,) = out.levels
    assert (level.num_drafts, level.num_draft_tokens, level.num_accepted_tokens) == (7, 8, 1)


def test_the_server_stays_as_long_as_it_will_do(server: LlamaServer) -> None:
    def pid() -> int:
        assert server._process is not None
        return server._process.pid

    server.decode(PROMPTS, 5)
    first = pid()
    server.decode(PROMPTS, 6)
    assert pid() == first
    server.decode(PROMPTS[:1], 5)
    assert pid() != first
    assert not alive(first)
    last = pid()
    server.close()
    assert not alive(last)
    server.close()


def test_what_goes_wrong_is_said(server: LlamaServer, program: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"refuses a request.*thirteen"):
        server.decode(PROMPTS, 13)
    with pytest.raises(UsageError, match=r"made \[6, 6\] tokens instead of 7"):
        server.decode(PROMPTS, 7)
    broken = LlamaServer(program, tmp_path / "broken.gguf", tmp_path / "small.gguf", 4, 2)
    with pytest.raises(UsageError, match="ended with status 3") as raised:
        broken.decode(PROMPTS, 5)
    assert raised.value.hint == "It last said: no such model"
    assert broken._process is None


def test_one_that_never_gets_ready_is_ended(
    server: LlamaServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stuck = tmp_path / "stuck"
    stuck.write_text(
        "#!/bin/sh\ntrap '' TERM\necho $$ > \"$0.pid\"\necho loading\nwhile :; do sleep 0.05; done\n"
    )
    stuck.chmod(0o755)
    monkeypatch.setattr(llama_server_peer, "_LOADING_SECONDS", 0.5)
    monkeypatch.setattr(llama_server_peer, "_STOPPING_SECONDS", 0.1)
    peer = LlamaServer(str(stuck), tmp_path / "bf16.gguf", tmp_path / "small.gguf", 4, 2)
    with pytest.raises(UsageError, match=r"not ready after 0\.5 s"):
        peer.decode(PROMPTS, 5)
    assert not alive(int((tmp_path / "stuck.pid").read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_it_ends_with_us_however_we_end(program: str, tmp_path: Path, how: signal.Signals) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from qspec_decode.bench.llama_server_peer import LlamaServer\n"
        f"peer = LlamaServer({program!r}, Path({str(tmp_path / 'bf16.gguf')!r}), Path('small.gguf'), 4, 2)\n"
        "peer.decode([[1]], 5)\nprint(peer._process.pid, flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as us:
        assert us.stdout is not None
        pid = int(us.stdout.readline())
        assert alive(pid)
        us.send_signal(how)
        us.wait()
    until = time.monotonic() + 5
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert not alive(pid)


def test_the_program_is_found_where_it_is_named(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(llama_server_peer.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(UsageError, match="llama-server is not on PATH"):
        find_server()
    with pytest.raises(UsageError, match="llama-server is nothing, which is no program"):
        find_server("nothing")
    assert find_server(program) == program
    monkeypatch.setenv(llama_server_peer.VARIABLE, program)
    assert find_server() == program
    monkeypatch.delenv(llama_server_peer.VARIABLE)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == program


def test_it_drafts_with_the_sibling_and_is_closed(program: str, bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")

    def weights(small: Path | None) -> peers.Weights:
        return peers.Weights(lambda: bundle / "target", lambda: small, tmp_path)

    with ExitStack() as closing:
        ready, skipped = peers.open_peers(
            ["llama-server"], weights(bundle / "small"), program, closing, lambda _: None
        )
        assert skipped == []
        (peer,) = ready
        assert isinstance(peer, LlamaServer)
        peer.decode(PROMPTS, 5)
        assert peer._process is not None
        pid = peer._process.pid
        files = [str(tmp_path / name) for name in ("bf16.gguf", "small.gguf")]
        assert peer._command[1:5] == ["--model", files[0], "--model-draft", files[1]]
    assert not alive(pid)
    with pytest.raises(UsageError, match="the demo's sibling, and another model was named"):
        peers.open_peers(["llama-server"], weights(None), program, ExitStack(), lambda _: None)
