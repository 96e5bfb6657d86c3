"""Who is asked first for an op of a GPU: a table, and what stands in it."""

import importlib
import math
from pathlib import Path

import pytest
import torch

import qspec_kernels as qk
from qspec_kernels import dispatch, preferences
from qspec_kernels.backends import cuda as cuda_folder
from qspec_kernels.backends.cuda._tiles import float_tiles, integer_tiles
from tests.gpu.devices import kernel
from tests.test_architecture import signatures

FLOATS = (
    ", because one token over 4096 x 4096 weights keeps 2048 warps at work in one launch, Triton's at most"
    " 1024, with a second launch for their sums (counted, not measured)"
)
INTEGERS = (
    ", because one token over 4096 x 4096 weights keeps 2048 warps at work, Triton's 256"
    " (counted, not measured)"
)


def test_the_table_says_who_is_asked_first(device, ops, monkeypatch):
    ops["cuda", "linear_w4a16"], ops["triton", "linear_w4a16"] = kernel("cuda"), kernel("triton")
    small = preferences.Row(
        ("linear_w4a16",), ("triton", "cuda", "torch"), "it is small", (9, 0), (9, 9), (4096, 8192)
    )
    monkeypatch.setattr(preferences, "TABLE", (small, *preferences.TABLE))

    def served(capability: tuple[int, int], sizes: tuple[int, ...] | None) -> str:
        device(capability, ("triton", "cupy"))
        found = dispatch.find("linear_w4a16", "cuda", torch.float32, "int4_mma16", sizes=sizes)()
        name, why = "sm_{}{}".format(*capability), FLOATS if found == "cuda" else ", because it is small"
        line = f"linear_w4a16 on cuda: {found} ({name}){why}"
        if sizes is None and capability == (9, 0):
            line += "; for sizes up to (4096, 8192) triton first, because it is small"
        assert qk.explain("linear_w4a16", "cuda", sizes=sizes) == line
        return found

    assert served((9, 0), (4096, 8192)) == served((9, 9), (16, 16)) == "triton"
    assert {served((9, 0), sizes) for sizes in ((4097, 8192), (4096, 8193), None)} == {"cuda"}
    assert {served(capability, (16, 16)) for capability in ((8, 9), (10, 0))} == {"cuda"}
    # better is not the same as able
    ops["triton", "linear_w4a16"] = kernel("triton", why_not=lambda capability: "no")
    assert served((8, 9), (16, 16)) == "cuda"
    device((9, 0), ("triton", "cupy"))
    line = qk.explain("linear_w4a16", "cuda", sizes=(16, 16))
    # the second of a row says nothing of why the first is better
    assert line == "linear_w4a16 on cuda: cuda (sm_90); not triton: no"
    line = qk.explain("linear_w4a16", "cuda")
    assert line == f"linear_w4a16 on cuda: cuda (sm_90){FLOATS}; for sizes up to (4096, 8192) not triton: no"


def test_a_preference_is_a_row_and_no_refusal():
    """A backend that looked whether another one is installed would choose for both."""
    for path in Path(cuda_folder.__path__[0]).glob("*.py"):
        assert "find_spec" not in path.read_text(), path
    assert all(row.why.endswith("(counted, not measured)") for row in preferences.TABLE)


@pytest.mark.parametrize("arch", [80, 86, 89, 90, 100, 120])
def test_what_the_table_counts_is_what_is_launched(arch):
    _launch = pytest.importorskip("qspec_kernels.backends.triton._launch")
    cuda, triton, floats = {}, {}, {"linear_w4a16", "linear_mxfp4a16"}
    for op in signatures("cuda").keys() - {"hadamard_quantize_act"}:
        mxfp4, group = "mxfp4" in op, 32 if "mxfp4" in op else 128
        module = importlib.import_module(f"{cuda_folder.__name__}.{op}")
        operand = module.operand(4096, group)
        tiles = (float_tiles if op in floats else integer_tiles)(1, 4096, 4096, operand, arch)
        cuda[op] = math.prod(tiles.grid(1, 4096)) * tiles.threads // 32
        act_groups = 0 if op in floats else 32 if op == "linear_w4a4" else 1
        plan = _launch.plan_packed(
            (1, 4096, 4096), group, arch, mxfp4=mxfp4, x_bytes=2 if op in floats else 1, act_groups=act_groups
        )
        triton[op] = math.prod(plan.grid) * plan.tile.num_warps
        assert (plan.splits > 1) == (op in floats)
    assert set(cuda.values()) == {2048}
    assert {triton[op] for op in floats} <= {512, 1024}
    assert {warps for op, warps in triton.items() if op not in floats} == {256}


def test_the_table_has_every_kernel_of_cuda():
    named = [op for row in preferences.TABLE for op in row.ops if row.backends[0] == "cuda"]
    assert set(named) == set(signatures("cuda"))
    assert {op for row in preferences.TABLE for op in row.ops} <= {*signatures("cuda"), *signatures("triton")}
    for order in (preferences.DEFAULT, *(row.backends for row in preferences.TABLE)):
        assert sorted(order) == ["cuda", "torch", "triton"]
        assert order[-1] == "torch"


def test_int4_tensor_cores_are_not_the_only_way(device):
    pytest.importorskip("triton")
    device((8, 9), ("triton", "cupy"))
    assert qk.explain("linear_w4a4", "cuda") == f"linear_w4a4 on cuda: cuda (sm_89){INTEGERS}"
    device((9, 0), ("triton", "cupy"))
    assert qk.explain("linear_w4a4", "cuda") == (
        "linear_w4a4 on cuda: triton (sm_90); not cuda: needs int4 tensor cores, sm_80 to sm_89; the device"
        " is sm_90 (Triton computes the same numbers on int8 units)"
    )
