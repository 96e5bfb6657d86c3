"""`qspec bench gpu` asks for fragments of matrix instructions first; if they are others, for nothing else."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from qspec_decode.bench.gpu import registered, run
from qspec_kernels import dispatch
from qspec_kernels.backends.cuda import _fragments, _launch
from tests.bench.standin import Standin, request
from tests.gpu.emulation.cases import emulated

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(autouse=True)
def _kernels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch asks of ops takes long and is tested for itself."""
    monkeypatch.setattr(registered, "check", lambda *_: iter(()))


@pytest.fixture
def cuda(device: Standin, monkeypatch: pytest.MonkeyPatch) -> Standin:
    """A device that CUDA's kernels run on, where something lets them."""
    device.backends, device.capability = ("cuda", "torch"), (8, 0)
    monkeypatch.setattr(dispatch, "lacking", lambda *_: "")
    return device


def checked(device: Standin, op: str = "rmsnorm") -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The document, what it says of correctness, and what was said meanwhile."""
    said: list[str] = []
    few = request(ops=[op])
    document = run.run(few, device, said.append, prepare=lambda names, say: say(f"compiling {names} ..."))
    json.dumps(document, allow_nan=False)
    return document, document["correctness"], said


def test_they_come_first(cuda: Standin) -> None:
    with emulated():
        _, found, said = checked(cuda)
    assert said[:2] == ["checking fragments of matrix instructions ...", "compiling ['rmsnorm'] ..."]
    assert found["kinds"]["fragments"] == {"checked": 4, "failed": 0}
    assert found["failures"] == []
    assert found["served"] == ["rmsnorm (torch)"]
    assert {one["op"] for one in found["closest"]} == {"rmsnorm"}
    assert found["fragments"] == {
        name: {"layout": _fragments.layout(name)} for name in _fragments.INSTRUCTIONS
    }


def test_others_than_kernels_rely_on_stop_the_run(cuda: Standin) -> None:
    with emulated(edits=[("mma_s8(c, a, b[0], b[1])", "mma_s8(c, a, b[1], b[0])")]):
        # of one that is timed
        document, found, said = checked(cuda, "linear_w4a8")
        answers = _fragments.asked("m16n8k32.s8", torch.device("cpu"))
    assert said == ["checking fragments of matrix instructions ..."]
    (one,) = found["failures"]
    assert (one["op"], one["backend"], one["shape"]) == ("fragments", "cuda", "m16n8k32.s8")
    assert one["failed"] == "fragments"
    # each element of A meets eight of B, and all of them are others
    assert (one["m"], one["error"], one["bound"]) == (512, 512 * 8, 0)
    assert found["checked"] == 4
    assert found["kinds"]["fragments"] == {"checked": 4, "failed": 1}
    told = found["fragments"]
    assert [name for name, what in told.items() if "map" in what] == ["m16n8k32.s8"]
    written = torch.zeros(512, 128, dtype=torch.int32)
    for row, column, answer in told["m16n8k32.s8"]["map"]:
        written[row, column] = answer
    assert torch.equal(written, answers)
    assert document["rows"] == []
    assert document["finished"]
    assert cuda.timed == 0


def test_what_cannot_be_asked_stops_the_run(cuda: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(*_: Any) -> None:
        raise RuntimeError("an illegal instruction\nand more")

    monkeypatch.setattr(_launch, "launch", launch)
    monkeypatch.setattr(_launch, "arch", lambda _: 80)
    _, found, _ = checked(cuda)
    assert {one["failed"] for one in found["failures"]} == {"RuntimeError: an illegal instruction"}
    assert found["kinds"]["fragments"] == {"checked": 4, "failed": 4}
    assert found["fragments"] == {}
    assert found["served"] == []


@pytest.mark.parametrize(
    ("backends", "reason"),
    [
        (("torch",), "cuda is no backend of this device"),
        (("cuda", "torch"), "cupy is not installed (pip install 'qspec[cuda]')"),
    ],
)
def test_where_no_cuda_kernel_runs_they_are_left_out(
    device: Standin, monkeypatch: pytest.MonkeyPatch, backends: tuple[str, ...], reason: str
) -> None:
    device.backends = backends
    find: Callable[[str], Any] = dispatch.find_spec
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None if name == "cupy" else find(name))
    _, found, said = checked(device)
    assert found["fragments"] == {"skipped": reason}
    assert found["kinds"]["fragments"] == {"checked": 0, "failed": 0}
    assert found["served"] == ["rmsnorm (torch)"]
    assert said[0] == "compiling ['rmsnorm'] ..."
