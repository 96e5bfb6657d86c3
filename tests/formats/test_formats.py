"""What every format must hold; a new file in `qspec_kernels/formats` is found and tested here."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qspec_kernels import formats
from qspec_kernels.errors import FormatError
from qspec_kernels.formats import PackedWeight

SHAPES = [(1, 1), (1, 7), (16, 32), (17, 33), (5, 31), (33, 200), (48, 256), (3, 129)]


def random_codes(
    format: str, n: int, k: int, group_size: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales over the whole range that the format has."""
    generator = torch.Generator().manual_seed(seed)
    groups = -(-k // group_size)
    if formats.canonical(format) == "int4":
        codes = torch.randint(-8, 8, (n, k), generator=generator).to(torch.int8)
        return codes, torch.rand(n, groups, generator=generator).half()
    codes = torch.randint(0, 16, (n, k), generator=generator).to(torch.uint8)
    return codes, torch.randint(0, 256, (n, groups), generator=generator).to(torch.uint8)


def group_sizes(format: str) -> tuple[int, ...]:
    return (32, 64, 128, -1) if formats.canonical(format) == "int4" else (32,)


@pytest.mark.parametrize("format", formats.names())
@settings(deadline=None)
@given(data=st.data())
def test_unpack_inverts_pack(format: str, data: st.DataObject) -> None:
    n, k = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 300))
    group_size = data.draw(st.sampled_from(group_sizes(format)))
    group = k if group_size == -1 else group_size
    codes, scales = random_codes(format, n, k, group, data.draw(st.integers(0, 9)))
    packed = formats.get(format).pack(codes, scales, group_size)
    assert packed.shape == (n, k)
    assert packed.format == format
    assert packed.data.dtype == torch.uint8
    codes_again, scales_again = formats.get(format).unpack(packed)
    assert codes_again.dtype == codes.dtype
    assert scales_again.dtype == scales.dtype
    assert torch.equal(codes_again, codes)
    assert torch.equal(scales_again, scales)


@pytest.mark.parametrize("name", [name for name in formats.names() if name != formats.canonical(name)])
@pytest.mark.parametrize(("n", "k"), SHAPES, ids=str)
def test_convert_there_and_back_keeps_every_byte(name: str, n: int, k: int) -> None:
    canonical = formats.canonical(name)
    packed = formats.get(canonical).pack(*random_codes(canonical, n, k, 32), 32)
    there = formats.convert(packed, name)
    assert there.format == name
    assert there.shape == packed.shape
    assert there.group_size == packed.group_size
    back = formats.convert(there, canonical)
    assert torch.equal(back.data, packed.data)
    assert torch.equal(back.scales, packed.scales)
    assert torch.equal(formats.dequantize(there).nan_to_num(), formats.dequantize(packed).nan_to_num())


@pytest.mark.parametrize("name", formats.names())
@pytest.mark.parametrize("rows", [(32, 16, 5), (16, 16), (7,), (5, 16, 3)], ids=str)
def test_joined_parts_are_the_whole(name: str, rows: tuple[int, ...]) -> None:
    codes, scales = random_codes(name, sum(rows), 100, 32)
    pack = formats.get(name).pack
    parts = [pack(c, s, 32) for c, s in zip(codes.split(rows), scales.split(rows), strict=True)]
    joined, whole = formats.join(parts), pack(codes, scales, 32)
    assert torch.equal(joined.data, whole.data)
    assert torch.equal(joined.scales, whole.scales)
    assert (joined.format, joined.shape, joined.group_size) == (name, (sum(rows), 100), 32)


def test_parts_of_two_kinds_are_not_joined() -> None:
    parts = [formats.get("mxfp4").pack(*random_codes("mxfp4", 16, k, 32)) for k in (64, 96)]
    with pytest.raises(FormatError, match=r"cannot join weights of .*'mxfp4', 64, 32"):
        formats.join(parts)


@pytest.mark.parametrize("name", [name for name in formats.names() if name.endswith("tiles16")])
def test_tiles_follow_the_documented_formula(name: str) -> None:
    """Byte j of row r, chunk c, tile t holds codes (16 t + r, 8 c + j) and (16 t + r, 8 c + 4 + j)."""
    n, k, offset = 19, 70, (8 if name.startswith("int4") else 0)
    codes, scales = random_codes(name, n, k, 32)
    packed = formats.get(name).pack(codes, scales, 32)
    tiles, chunks = packed.data.shape[:2]
    assert (tiles, chunks) == (2, 9 if name.startswith("int4") else 12)

    def nibble(row: int, column: int) -> int:
        inside = row < n and column < k
        return int(codes[row, column]) + offset if inside else offset

    for t in range(tiles):
        for c in range(chunks):
            for r in range(16):
                for j in range(4):
                    low, high = nibble(16 * t + r, 8 * c + j), nibble(16 * t + r, 8 * c + 4 + j)
                    assert int(packed.data[t, c, r, j]) == low | high << 4
        for g in range(packed.scales.shape[1]):
            for r in range(16):
                expected = scales[16 * t + r, g] if 16 * t + r < n else 0
                assert packed.scales[t, g, r] == expected


def test_padding_of_tiles_dequantises_to_nothing() -> None:
    for name in ("int4_tiles16", "mxfp4_tiles16"):
        codes, scales = random_codes(name, 3, 5, 32)
        packed = formats.get(name).pack(codes, scales, 32)
        padded = PackedWeight(packed.data, packed.scales, name, (16, 8 if name[0] == "i" else 32), 32)
        values = formats.dequantize(padded)
        assert torch.count_nonzero(values[3:]) == 0
        assert torch.count_nonzero(values[:, 5:].nan_to_num()) == 0


def test_swapped_nibbles_are_told_apart() -> None:
    """The mutant that puts the even k into the high nibble survives a round trip with itself, not this."""
    codes = torch.tensor([[1, 2, 3, 4]], dtype=torch.uint8)
    packed = formats.get("mxfp4").pack(codes, torch.tensor([[127]], dtype=torch.uint8))
    assert packed.data.tolist() == [[0x21, 0x43]]
    swapped = PackedWeight((packed.data << 4) | (packed.data >> 4), packed.scales, "mxfp4", (1, 4), 32)
    assert formats.get("mxfp4").unpack(swapped)[0].tolist() == [[2, 1, 4, 3]]
    int4 = formats.get("int4").pack(codes.to(torch.int8), torch.ones(1, 1).half(), -1)
    assert int4.data.tolist() == [[0xA9, 0xCB]]


@pytest.mark.parametrize("name", formats.names())
def test_docstrings_show_bytes(name: str) -> None:
    module = formats.get(name)
    functions = (
        ("quantize", "dequantize", "pack", "unpack")
        if name == formats.canonical(name)
        else ("pack", "unpack")
    )
    assert all(">>>" in (getattr(module, function).__doc__ or "") for function in functions)


def test_quantising_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(23, 96)
    for name in ("int4", "mxfp4"):
        whole = formats.get(name).quantize(weight)
        monkeypatch.setattr("qspec_kernels.formats._layout.PIECE", 5 * 96)
        pieces = formats.get(name).quantize(weight)
        monkeypatch.undo()
        assert all(torch.equal(mine, other) for mine, other in zip(whole, pieces, strict=True))


def test_names_are_the_files() -> None:
    assert set(formats.names()) >= {"int4", "mxfp4", "int4_tiles16", "mxfp4_tiles16"}
    assert "packed" not in formats.names()
    assert "activation" not in formats.names()


@pytest.mark.usefixtures("untyped")
def test_bad_input_names_value_and_expectation() -> None:
    int4, mxfp4 = formats.get("int4"), formats.get("mxfp4")
    codes, scales = random_codes("int4", 4, 64, 32)
    cases = [
        (lambda: formats.get("int5"), "int5.*int4, .*mxfp4_tiles16"),
        (lambda: formats.convert(int4.pack(codes, scales, 32), "mxfp4"), "different codes"),
        (lambda: formats.convert(int4.pack(codes, scales, 32), "int5"), "unknown weight format 'int5'"),
        (lambda: int4.pack(codes, scales, 64), r"groups of 64 have shape \[4, 1\], got \[4, 2\]"),
        (lambda: int4.pack(codes * 2, scales, 32), r"-8\.\.7, got -16"),
        (lambda: int4.pack(codes.int(), scales, 32), "torch.int8"),
        (lambda: int4.quantize(torch.ones(2, 8), 0), "got 0"),
        (lambda: int4.quantize(torch.ones(2, 8, dtype=torch.int32), 8), "floating point, got torch.int32"),
        (lambda: int4.quantize(torch.ones(0, 8), 8), r"got \[0, 8\]"),
        (lambda: mxfp4.quantize(torch.ones(2, 8, 2)), r"got \[2, 8, 2\]"),
        (
            lambda: mxfp4.pack(codes.byte() & 15, scales.byte(), 64),
            "blocks of 32.*got group_size 64",
        ),
        (
            lambda: mxfp4.unpack(int4.pack(codes, scales, 32)),
            "packed as 'mxfp4', got 'int4'",
        ),
        (
            lambda: int4.unpack(PackedWeight(torch.zeros(4, 31).byte(), scales, "int4", (4, 64), 32)),
            r"shape \[4, 64\].*cannot have .*\[4, 31\]",
        ),
    ]
    for call, message in cases:
        with pytest.raises(FormatError, match=f"(?s){message}") as error:
            call()
        assert error.value.hint, message
