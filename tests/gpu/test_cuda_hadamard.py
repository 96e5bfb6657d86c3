"""hadamard_quantize_act.cu, compiled for the CPU, against the reference and the CPU backend."""

import pytest
import torch

import qspec_kernels as qk
from qspec_kernels import dispatch
from qspec_kernels.backends.cuda import hadamard_quantize_act
from qspec_kernels.errors import KernelUnavailable, UsageError
from qspec_kernels.hadamard_matrix import hadamard_matrix
from tests.gpu.emulation.cases import SCHEDULES, check_rotation, emulated, op
from tests.kernels.cases import same_bits

# width of a row, of a rotation, group, dtype: one, two and three passes; matrices of order 12, 20 and 28 with
# and without a power of two; odd widths; groups that do not divide the row
CASES = [
    (1, 1, None, torch.float32),
    (16, 16, None, torch.bfloat16),
    (64, 16, 7, torch.float32),
    (2048, 2048, None, torch.bfloat16),
    (2048, 2048, 32, torch.float32),
    (60, 12, None, torch.float32),
    (1280, 640, 128, torch.bfloat16),
    (21, 1, 4, torch.bfloat16),
    (28, 28, None, torch.float32),
]


@pytest.mark.parametrize(("width", "block", "group", "dtype"), CASES)
def test_against_cpu_and_reference(rng, width, block, group, dtype):
    for schedule in SCHEDULES:
        with emulated(**schedule):
            check_rotation(width, block, group, dtype, rng)


def test_values_that_are_no_numbers(rng):
    x = torch.randn(4, 64, generator=rng)
    x[0, 3], x[1, 5], x[2] = torch.nan, torch.inf, 1e-44
    base = hadamard_matrix(1)
    with emulated():
        codes, scales = op("hadamard_quantize_act")(x, base, 64, 8, 64, 1.0)
    expected = qk.hadamard_quantize_act(x)
    assert torch.equal(codes, expected.codes)
    assert torch.equal(scales.isnan(), expected.scales.isnan())
    assert same_bits(scales[2:], expected.scales[2:])


def near_ties(rng):
    """Rows whose quotients lie around n + 1/2, where the next float decides about the code."""
    # mantissas of scales at random, next to powers of two and with few bits: where quotients come near ties
    # that are none
    mantissas = torch.cat(
        (torch.randint(2**23, 2**24, (20,), generator=rng), torch.tensor([2**23, 2**24 - 1]))
    )
    few = 2 ** torch.arange(16, 23) * torch.randint(1, 64, (7,), generator=rng) + 2**23 + 1
    tops = torch.cat((mantissas, few.clamp(max=2**24 - 1))).float()
    scales = tops / 127
    ties = (torch.arange(-127, 127) + 0.5) * scales[:, None]
    near = [ties]
    for direction in (-torch.inf, torch.inf):
        one = ties
        for _ in range(2):
            one = one.nextafter(torch.full_like(one, direction))
            near.append(one)
    return torch.cat((tops[:, None], *near), 1)


def check_near_ties(rng):
    x = near_ties(rng)
    codes, scales = op("hadamard_quantize_act")(x, hadamard_matrix(1), 1, 8, x.shape[1], 1.0)
    expected = qk.quantize_act(x)
    assert same_bits(scales, expected.scales)
    assert torch.equal(codes, expected.codes)


def test_quotients_next_to_ties(rng):
    with emulated():
        check_near_ties(rng)


# without the correction, and with one that is rounded before it is added
@pytest.mark.parametrize(
    "edit",
    [
        ("    q = fused(fused(-q, scale, v), reciprocal, q);", ""),
        ("fused(fused(-q, scale, v), reciprocal, q)", "fused(sub(v, mul(q, scale)), reciprocal, q)"),
    ],
)
def test_quotients_next_to_ties_tell_wrong_divisions(rng, edit):
    with emulated(edits=[edit]), pytest.raises(AssertionError):
        check_near_ties(rng)


# scales that are too small or too large for the reciprocal; a clip that makes quotients infinite
@pytest.mark.parametrize(
    ("size", "clip"), [(1e-44, 1.0), (1e-36, 1.0), (3e38, 1.0), (1.0, 1e-38), (1e5, 1e-3)]
)
@pytest.mark.parametrize("group", [256, 32])
def test_scales_that_are_not_plain(rng, size, clip, group):
    x = torch.randn(2, 256, generator=rng).clamp(-1, 1) * size
    with emulated():
        codes, scales = op("hadamard_quantize_act")(x, hadamard_matrix(1), 1, 8, group, clip)
    expected = qk.quantize_act(x, group_size=group, clip=clip)
    assert torch.equal(codes, expected.codes)
    assert same_bits(scales, expected.scales)


@pytest.mark.parametrize("m", [12, 28, 36])
def test_signs_are_packed_by_columns(m):
    base = hadamard_matrix(m)
    words = hadamard_quantize_act.packed_signs(base)
    assert words.dtype == torch.int32
    bits = words[:, :, None] >> torch.arange(32) & 1
    assert torch.equal(bits.view(m, -1)[:, :m].T, (base < 0).int())


def test_signs_are_packed_once_and_not_during_capture(monkeypatch):
    packed = []
    monkeypatch.setattr(hadamard_quantize_act, "_signs", {})
    right = hadamard_quantize_act.packed_signs
    monkeypatch.setattr(
        hadamard_quantize_act, "packed_signs", lambda base: packed.append(len(base)) or right(base)
    )
    with emulated():
        for _ in range(2):
            op("hadamard_quantize_act")(torch.ones(1, 12), hadamard_matrix(12), 12, 8, 12, 1.0)
        assert packed == [12]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.raises(KernelUnavailable, match="is being captured"):
            op("hadamard_quantize_act")(torch.ones(1, 20), hadamard_matrix(20), 20, 8, 20, 1.0)
    assert packed == [12]


def test_rows_that_do_not_fit():
    x = torch.ones(1, 28672)
    with emulated(capability=86), pytest.raises(UsageError, match=r"takes 11\d+ bytes of shared memory"):
        op("hadamard_quantize_act")(x, hadamard_matrix(28), 28672, 8, 28672, 1.0)


OF_PARTS = (
    "it adds up parts of a row on matrix units, in up to three instructions for a feature of each, where"
    " CUDA's kernel takes six (counted, not measured)"
)
BUTTERFLIES = "its codes are those of CPUs bit for bit, in about as many instructions (counted, not measured)"


def explained(sizes=None):
    return qk.explain("hadamard_quantize_act", "cuda", sizes=sizes)


def test_sums_over_parts_are_left_to_matrix_units(device):
    device((9, 0), ("triton", "cupy"))
    by_triton = f"hadamard_quantize_act on cuda: triton (sm_90), because {OF_PARTS}"
    by_cuda = f"hadamard_quantize_act on cuda: cuda (sm_90), because {BUTTERFLIES}"
    assert explained((14336, 28)) == by_triton
    assert explained((8192, 1)) == explained((32768, 1)) == by_cuda
    # what it prefers is no inability: without Triton it serves
    device((9, 0), ("cupy",))
    missing = "not triton: triton is not installed (PyTorch's builds for GPUs bring it along)"
    assert explained((14336, 28)) == f"hadamard_quantize_act on cuda: cuda (sm_90); {missing}"
    assert explained((8192, 1)) == by_cuda


def test_without_sizes_both_are_named(device):
    device((9, 0), ("triton", "cupy"))
    line = f"hadamard_quantize_act on cuda: triton (sm_90), because {OF_PARTS}; for sizes up to (32768, 1) "
    assert explained() == f"{line}cuda first, because {BUTTERFLIES}"
    device((9, 0), ("triton",))
    assert explained() == f"{line}not cuda: cupy is not installed (pip install 'qspec[cuda]')"


@pytest.mark.parametrize(("arch", "served"), [(80, True), (86, False), (89, False), (90, True), (120, False)])
def test_rows_that_do_not_fit_are_left_to_another_backend(device, arch, served):
    device(divmod(arch, 10), ("triton", "cupy"))
    refusal = (
        "; not cuda: a row of 32768 features takes 131200 bytes of shared memory; a block has 101376 on"
        f" sm_{arch} (hadamard, then quantize_act, takes any width)"
    )
    chosen = f"cuda (sm_{arch}), because {BUTTERFLIES}" if served else f"triton (sm_{arch}){refusal}"
    assert explained((32768, 1)) == f"hadamard_quantize_act on cuda: {chosen}"
    # of those that every GPU has room for
    assert "cuda: cuda" in explained((16384, 1))
    # whoever has no Triton and no room is served in plain PyTorch
    device(divmod(arch, 10), ("cupy",))
    assert ("cuda: cuda" if served else "cuda: torch; ") in explained((28672, 28))


def test_the_op_says_how_wide_its_rows_are(monkeypatch):
    asked = []
    monkeypatch.setitem(dispatch._BACKENDS, "cpu", ("cuda", "torch"))
    monkeypatch.setattr(dispatch, "_gpu_refusal", lambda *given: asked.append(given[-1]) or "elsewhere")
    dispatch.find.cache_clear()
    qk.hadamard_quantize_act(torch.ones(1, 56), block=28)
    dispatch.find.cache_clear()
    assert asked == [(56, 28)]
