"""What the loops around matrix units issue, for the page on linears: turns of committed builds."""

import re
from collections.abc import Mapping

from measured import Document, table

# bfloat16 operations that a multiprocessor of an H100 makes in a clock (twice as many of 8-bit integers),
# instructions that it issues in one, each for 32 threads, and what both are counted for: features, tokens
# and K of a part of the product
OPERATIONS, ISSUED, LANES, SIDE = 4096, 4, 32, 128

# how the precisions of the packed linears are built: the group, and what Triton's name says of x
PACKED = {
    "w4a16": (128, "bf16"),
    "mxfp4a16": (32, "bf16"),
    "w4a8": (128, "i8"),
    "w4a4": (128, "i8"),
    "mxfp4a8": (32, "i8"),
}
# weights whose instructions are counted
WEIGHTS = 2048

# tiles of long prompts: a name, the linear, its group (0: a row is one sum), instructions that turn a group's
# sum into a part of a float's
PROMPTS = (
    ("`bf16`", "bf16", 0, 0),
    ("`w4a16`, groups of 128", "w4a16", 128, 1),
    ("`w4a16`, groups of 32", "w4a16", 32, 1),
    ("`mxfp4a16`", "mxfp4a16", 0, 0),
    ("`w4a8`, groups of 128", "w4a8", 128, 4),
    ("`w4a8`, one group a row", "w4a8", 0, 0),
    ("`w4a4`, groups of 128", "w4a4", 128, 4),
    ("`mxfp4a8`", "mxfp4a8", 32, 4),
)


def loop_texts(triton: Document, cuda: Document) -> dict[str, str]:
    """Markdown by name; entries by architecture and name."""
    return {
        "gpu_linear_turns": table(
            ["op", *(f"sm_{arch}, {name}" for arch in ("80", "90") for name in ("CUDA", "Triton"))],
            ([f"`linear_{name}`", *_turns(name, triton, cuda)] for name in PACKED),
        ),
        "gpu_prefill_bounds": table(
            [
                "linear",
                "instruction",
                "matrix unit, clocks",
                "issue, clocks",
                "of them scales and sums",
                "bound, of the bfloat16 rate",
            ],
            ([name, *prompt_bounds(triton["90"], *rest)] for name, *rest in PROMPTS),
        ),
    }


def _turns(name: str, triton: Document, cuda: Document) -> list[str]:
    """Instructions of a warp for WEIGHTS weights and a tile of tokens: CUDA's, then Triton's, by arch."""
    group, x = PACKED[name]
    cells = []
    for arch in ("80", "90"):
        built = cuda[arch].get(f"linear_{name} 4096x4096 g{group} m<=8")
        cells.append(_of_weights(built["loop"]) if built else "none")
        cells.append(_of_weights(triton[arch][f"linear_{name} {x} g{group} 4096x4096 m=1"]["loop"]))
    return cells


def _of_weights(turn: Mapping) -> str:
    return f"{turn['instructions'] * WEIGHTS / sum(_sizes(turn, 0, 2)):.0f}"


def prompt_bounds(hopper: Document, name: str, group: int, of_sum: int) -> list[str]:
    """The matrix instruction, clocks for SIDE x SIDE x SIDE products, and the rate that they allow."""
    words = "" if name == "bf16" else "g32 " if name.startswith("mxfp4") else f"g{group or 4096} "
    entry = hopper[f"linear_{name}_prefill {words}28672x4096 m=4096"]
    turn = entry["loop"]
    (shape,) = {f"{rows} x {tokens} x {k}" for rows, tokens, k in map(_shape, turn["opcodes"])}
    # the four warps that share an instruction for 64 features issue side by side
    issue = turn["instructions"] * SIDE**3 / (4 * sum(_sizes(turn, 0, 1, 2)))
    unit = 2 * SIDE**3 / (OPERATIONS * (2 if name.endswith(("a8", "a4")) else 1))
    scales = SIDE**3 / group * of_sum / (LANES * ISSUED) if group else 0
    bound = 2 * SIDE**3 / OPERATIONS / max(unit, issue)
    return [shape, f"{unit:.0f}", f"{issue:.0f}", f"{scales:.0f}", f"{bound:.2f}"]


def _sizes(turn: Mapping, *sides: int) -> list[float]:
    """For each matrix instruction of a turn the product of those of its sides, a warp's share of it."""
    found = []
    for opcode, count in turn["opcodes"].items():
        shape, size = _shape(opcode), count
        for side in sides:
            size *= shape[side]
        # of Hopper's wide instructions a warp does a quarter
        found.append(size / 4 if "x" in opcode else size)
    return found


def _shape(opcode: str) -> tuple[int, int, int]:
    """Rows, columns and K: of HMMA.16816 as of HGMMA.64x256x16."""
    if wide := re.search(r"\.(\d+)x(\d+)x(\d+)\.", opcode):
        rows, columns, k = wide.groups()
    else:
        rows, columns, k = re.search(r"\.(16)(8)(\d+)\.", opcode).groups()
    return int(rows), int(columns), int(k)
