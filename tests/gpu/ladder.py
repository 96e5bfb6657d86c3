"""The steps that made linear_w4a16.cu what it is, taken back one by one, and what its loop is without them.

    python -m tests.gpu.ladder    # the table of docs/explanation/gpu_linear_w4a16.md

A version is the kernel of today with some of its text replaced. The instructions of its loop over slabs are
counted in machine code, and its numbers compared with today's where it is run on the CPU: the first rounds
otherwise, the others have the same bits.
"""

import subprocess
import tempfile
from dataclasses import dataclass

import torch

from qspec_kernels.backends.cuda import _nvrtc, linear_w4a16
from qspec_kernels.backends.cuda._compile import Kernel, options
from tests.gpu.build_table import MATRIX_UNITS, TOOLS
from tests.gpu.emulation.cases import emulated, linear
from tests.gpu.loops import inner_loops, instructions
from tests.kernels.cases import quantized, same_bits

Edits = tuple[tuple[str, str], ...]

ONE_WORD_A_LOAD: Edits = (
    (
        "const Words2 x = *reinterpret_cast<const Words2*>(from);",
        "const volatile u32* words = reinterpret_cast<const volatile u32*>(from);"
        " const Words2 x = {{words[0], words[1]}};",
    ),
)
CODE_BY_CODE: Edits = (
    (
        "return fma_bf16x2(permute_bytes(bytes, 0x43434343u, selector), 0x3f803f80u, 0xc308c308u);",
        "const int first = selector == 0x4140u ? 0 : 16;"
        " const int low = bytes >> first & 255, high = bytes >> (first + 8) & 255;"
        " return float_to_bf16(int_to_float(low - 8)) |"
        " static_cast<u32>(float_to_bf16(int_to_float(high - 8))) << 16;",
    ),
)
SCALES_ON_WEIGHTS: Edits = (
    (
        "Format::expand(a, words.word[2 * c], words.word[2 * c + 1]);",
        "Format::expand(a, words.word[2 * c], words.word[2 * c + 1]);"
        " for (int i = 0; i < 8; ++i) {"
        " const int row = place.lane / 4 + i % 2 * 8, unit = (block * 2 + c) * 32 / kGroup;"
        " const u32 scale = float_to_bf16(weight_scale<Format>(buffer, place, unit, row));"
        " a[i / 4][i % 4] = fma_bf16x2(a[i / 4][i % 4], scale | scale << 16, 0x80008000u); }",
    ),
    (
        "parts[nt][i] = fused(scales[i / 2], sums[nt][i], parts[nt][i]);",
        "parts[nt][i] = add(parts[nt][i], sums[nt][i]);",
    ),
)
# what each version still lacks, from the first to today's
VERSIONS: dict[str, Edits] = {
    "codes one by one, a scale on every weight, x by 4 bytes a load": (
        *ONE_WORD_A_LOAD,
        *CODE_BY_CODE,
        *SCALES_ON_WEIGHTS,
    ),
    "scales on the sums of a group": (*ONE_WORD_A_LOAD, *CODE_BY_CODE),
    "two codes by a permutation and a multiply-add": ONE_WORD_A_LOAD,
    "x by 8 bytes a load": (),
}
ARCHS, TOKENS = (80, 90), (8, 32)


@dataclass(frozen=True)
class Edited(Kernel):
    """A kernel whose text is replaced in places, each of which there is once."""

    edits: Edits

    def source(self) -> str:
        """The replaced text."""
        text = super().source()
        for old, new in self.edits:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        return text


def count(edits: Edits, arch: int, tokens: int) -> int:
    """Instructions of the loop over slabs, int4 in groups of 128, 4096 by 4096, bfloat16.

    Those for a last and shorter slab are among them.
    """
    kernel = linear_w4a16.kernels(tokens, 4096, 4096, 128, arch)[0]
    edited = Edited(**vars(kernel), edits=edits)
    code = _nvrtc.compile(edited.source(), "linear_w4a16.cu", options(edited, f"sm_{arch}"))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        listing = subprocess.run(
            [TOOLS / "cuobjdump", "-sass", file.name], capture_output=True, text=True, check=True
        ).stdout
    loops = inner_loops(instructions(listing), MATRIX_UNITS)
    (working,) = (loop for loop in loops if any(one.stem in MATRIX_UNITS for one in loop))
    return sum(one.stem != "NOP" for one in working)


def table() -> str:
    """The versions and what was counted, in Markdown."""
    heads = [f"sm_{arch}, {tokens} tokens" for arch in ARCHS for tokens in TOKENS]
    lines = [["version", *heads], ["---", *["---:"] * len(heads)]]
    for name, edits in VERSIONS.items():
        counts = (count(edits, arch, tokens) for arch in ARCHS for tokens in TOKENS)
        lines.append([name, *map(str, counts)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def check() -> None:
    """Run every version on the CPU, and hold it to today's numbers."""
    rng = torch.Generator().manual_seed(0)
    weight = quantized("int4", torch.randn(32, 256, generator=rng), 128, on_device=False).packed
    x, found = torch.randn(3, 256, generator=rng), []
    for edits in VERSIONS.values():
        with emulated(edits=list(edits)):
            found.append(linear("linear_w4a16", x, weight))
    first, *others, today = found
    torch.testing.assert_close(first, today, rtol=2**-6, atol=2**-4)
    assert not same_bits(first, today)
    assert all(same_bits(other, today) for other in others)


if __name__ == "__main__":
    check()
    print(table())
