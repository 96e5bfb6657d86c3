"""hadamard_quantize_act.cu, compiled for the CPU, against the reference and the CPU backend."""

import pytest
import torch

import qspec_kernels as qk
from qspec_kernels import dispatch
from qspec_kernels.backends.cuda import hadamard_quantize_act
from qspec_kernels.errors import KernelUnavailable, UsageError
from qspec_kernels.hadamard_matrix import factor, hadamard_matrix
from reference.hadamard import hadamard
from tests.gpu.emulation.cases import SCHEDULES, emulated, op
from tests.gpu.emulation.run import EmulationError
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


def check(width, block, group, dtype, rng):
    """Codes and scales are the CPU's bit for bit, and those of the exact rotation within a rounding."""
    x = torch.randn(3, width, generator=rng).to(dtype)
    x[1] = 0
    base = hadamard_matrix(factor(block)[0])
    bits = 8 if group is None else 4
    size = width if group is None else group
    codes, scales = op("hadamard_quantize_act")(x, base, block, bits, size, 0.9)
    expected = qk.hadamard_quantize_act(x, block=block, bits=bits, group_size=group, clip=0.9)
    assert torch.equal(codes, expected.codes)
    assert same_bits(scales, expected.scales)
    exact = hadamard(x, hadamard_matrix(block))
    # a step of the code's grid where x is clipped, half of one elsewhere, and the roundings of x itself
    spread = scales.repeat_interleave(size, 1)[:, :width].double()
    limit = (2 ** (bits - 1) - 1) * spread
    error = codes.double() * spread - exact.clamp(-limit, limit)
    assert (error.abs() <= spread * 0.5 + exact.abs() * 2**-7 + 1e-6).all()


@pytest.mark.parametrize(("width", "block", "group", "dtype"), CASES)
def test_against_cpu_and_reference(rng, width, block, group, dtype):
    for schedule in SCHEDULES:
        with emulated(**schedule):
            check(width, block, group, dtype, rng)


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


@pytest.fixture
def no_triton(monkeypatch):
    """As where Triton is not installed."""
    monkeypatch.setattr(hadamard_quantize_act, "find_spec", lambda name: None)


def test_sums_over_parts_are_left_to_matrix_units(monkeypatch):
    why_not = hadamard_quantize_act.why_not
    reason = "sums over 28 parts of a row take Triton's matrix units fewer instructions"
    assert why_not((9, 0), (14336, 28)) == reason
    assert why_not((9, 0), (8192, 1)) == why_not((9, 0)) == ""
    monkeypatch.setattr(dispatch, "_capability", lambda device: (9, 0))
    monkeypatch.setattr(dispatch, "_cuda_refusal", lambda capability: "")
    monkeypatch.setattr(dispatch, "find_spec", lambda name: name)
    line = qk.explain("hadamard_quantize_act", "cuda", sizes=(14336, 28))
    assert line == f"hadamard_quantize_act on cuda: triton (sm_90); not cuda: {reason}"


@pytest.mark.usefixtures("no_triton")
def test_sums_over_parts_are_served_without_triton():
    assert hadamard_quantize_act.why_not((9, 0), (14336, 28)) == ""


@pytest.mark.usefixtures("no_triton")
@pytest.mark.parametrize(("arch", "served"), [(80, True), (86, False), (89, False), (90, True), (120, False)])
def test_wide_rows_are_left_to_another_backend(monkeypatch, arch, served):
    capability = divmod(arch, 10)
    monkeypatch.setattr(dispatch, "_capability", lambda device: capability)
    monkeypatch.setattr(dispatch, "_cuda_refusal", lambda capability: "")
    monkeypatch.setattr(dispatch, "find_spec", lambda name: name)
    line = qk.explain("hadamard_quantize_act", "cuda", sizes=(28672, 28))
    refusal = (
        "; not cuda: a row of 28672 features takes 114912 bytes of shared memory;"
        f" a block has 101376 on sm_{arch}"
    )
    chosen = f"cuda (sm_{arch})" if served else f"triton (sm_{arch}){refusal}"
    assert line == f"hadamard_quantize_act on cuda: {chosen}"
    # of no size in particular, and of those that every GPU has room for
    for sizes in (None, (14336, 28), (11008, 344)):
        assert "cuda: cuda" in qk.explain("hadamard_quantize_act", "cuda", sizes=sizes)


def test_the_op_says_how_wide_its_rows_are(monkeypatch):
    asked = []
    monkeypatch.setitem(dispatch._BACKENDS, "cpu", ("cuda", "torch"))
    monkeypatch.setattr(dispatch, "_gpu_refusal", lambda *given: asked.append(given[-1]) or "elsewhere")
    dispatch.find.cache_clear()
    qk.hadamard_quantize_act(torch.ones(1, 56), block=28)
    dispatch.find.cache_clear()
    assert asked == [(56, 28)]


MUTANTS = [
    ("v[i + stride] = sub(a, b);", "v[i + stride] = sub(b, a);"),
    ("barrier();  // the next stage reads what others have written", ""),
    ("barrier();  // the rotated row is there", ""),
    ("(g + 1) * GROUP_SIZE < WIDTH ? (g + 1) * GROUP_SIZE : WIDTH", "(g + 1) * GROUP_SIZE"),
    ("(item >> kBefore << (kBefore + bits_of(kPass)))", "(item >> kBefore << kBefore)"),
    ("(place(first) ^ (to & 28)) + (to & ~28u)", "place(first) + to"),
]


@pytest.mark.parametrize("edit", MUTANTS)
def test_mutants_fail(rng, edit):
    seen = False
    for schedule in SCHEDULES:
        with emulated(edits=[edit], **schedule):
            try:
                check(1280, 640, 96, torch.float32, rng)
            except (AssertionError, EmulationError):
                seen = True
    assert seen
