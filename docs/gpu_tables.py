"""What the pages on GPU kernels show: tables of the committed builds, and bounds worked out from shapes.

conf.py hands `substitutions` to MyST, so that no register count and no time on those pages is typed by hand.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import gpu_loops
from measured import Document, table

from qspec_kernels.hadamard_matrix import factor

# bytes a second, as the vendor states them
BANDWIDTH = {"H100": 3.35e12, "H200": 4.8e12}

# Llama 3 8B: query heads, key heads, features of a head
HEADS, KV_HEADS, D = 32, 8, 128
BATCH, KEYS = 32, 4096
QUERIES = (1, 4)
# keys of a span; spans that are merged first, and from so many tokens times key heads on by one program;
# programs for the spans of one tile, and that tokens are spread over: triton/attention.py
SPAN, STRETCH, MANY, LANES, PROGRAMS = 256, 4, 256, 64, 1024
# tokens of a tile
TILE_TOKENS = 16

# multiprocessors of an H100 SXM, instructions that one issues in a clock, and its highest clock
PROCESSORS, ISSUED, CLOCK = 132, 4, 1.98e9

# rows of a call, and the widths that the tables have
ROWS = 4096
WIDTHS = (4096, 8192, 11008, 14336)
# shared memory that a program can have, and widths of models that are rotated
SHARED = {"sm_80": 166912, "sm_86, sm_89, sm_120": 101376, "sm_90, sm_100": 232448}
ROTATED = (4096, 8192, 11008, 14336, 18944, 28672, 53248)

# outputs and inputs: a layer of an 8B model and one of a 70B model, in groups of 128
LAYERS = ((4096, 4096), (28672, 8192))

_MATRIX_UNITS = ("HMMA", "IMMA", "HGMMA", "IGMMA", "UTCHMMA", "UTCIMMA")
_BUILT = (
    "registers",
    "local memory",
    "shared memory",
    "instructions",
    "matrix units",
    "copies ahead",
    "shuffles",
)


def substitutions(triton: Document, cuda: Document) -> dict[str, str]:
    """Markdown by name.

    Parameters
    ----------
    triton, cuda
        What `tests.gpu.build_table` and `tests.gpu.build_table_cuda` write.
    """
    return {
        "gpu_triton": triton["triton"],
        "gpu_nvrtc": cuda["nvrtc"],
        **attention_texts(triton["archs"]),
        **hadamard_texts(triton["archs"], cuda["archs"]),
        **linear_texts(cuda["archs"]),
        **gpu_loops.loop_texts(triton["archs"], cuda["archs"]),
    }


def built(first: str, entries: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """A table of compiled kernels; memory in bytes."""
    return table([first, *_BUILT], ([name, *_cells(entry)] for name, entry in entries))


def _cells(entry: Mapping[str, Any]) -> list[str]:
    opcodes = entry["opcodes"]
    units = [
        f"{count} {opcode.removesuffix('.BF16').removesuffix('.F32').removesuffix('.SAT')}"
        for opcode, count in opcodes.items()
        if opcode.partition(".")[0] in _MATRIX_UNITS
    ]
    numbers = (entry[name] for name in ("registers", "stack", "shared", "instructions"))
    return [
        *map(_number, numbers),
        ", ".join(units),
        *(str(opcodes.get(name, 0)) for name in ("LDGSTS", "SHFL")),
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _mb(size: float) -> str:
    return f"{size / 1e6:,.1f}"


def _us(size: float, digits: int = 0) -> list[str]:
    return [f"{size / rate * 1e6:.{digits}f}" for rate in BANDWIDTH.values()]


# -- attention ---------------------------------------------------------------------------------------------


def cache_bytes() -> int:
    """Keys and values of the batch, bfloat16."""
    return 2 * BATCH * KV_HEADS * KEYS * D * 2


def span_bytes(queries: int, joined: int = STRETCH) -> int:
    """Results of `joined` spans each, float32: written once, read once."""
    return 2 * BATCH * queries * HEADS * (KEYS // (SPAN * joined)) * (D + 2) * 4


def attention_bytes(queries: int) -> tuple[int, int, int]:
    """Bytes of the cache, of queries and output in bfloat16, and of what spans leave for each other."""
    return cache_bytes(), 2 * BATCH * queries * HEADS * D * 2, span_bytes(queries)


def attention_programs(queries: int) -> tuple[int, int]:
    """Programs that are started, and those of them that find a tile to work on."""
    tokens = BATCH * queries
    joined = STRETCH if tokens * KV_HEADS >= MANY else 1
    lanes = min(KEYS // (SPAN * joined), LANES // joined)
    each = min(max(1, tokens * KV_HEADS * lanes // PROGRAMS), TILE_TOKENS)
    started = -(-tokens // each) * KV_HEADS * lanes
    return started, min(started, BATCH * KV_HEADS * lanes)


def attention_texts(archs: Document) -> dict[str, str]:
    """Bounds of one shape, the ladder counted, and what was built."""
    name = "attention bf16 bf16 32/8 x 128"
    hopper = archs["90"]
    once, again = (sum(attention_bytes(queries)) for queries in QUERIES)
    least = [sum(attention_bytes(queries)[:2]) for queries in QUERIES]
    devices = [f"{device}, µs" for device in BANDWIDTH]
    return {
        "gpu_attention_archs": built(
            "arch", ((f"sm_{arch}", entries[name]) for arch, entries in archs.items())
        ),
        "gpu_attention_variants": built(
            "queries, cache, heads",
            (
                (name.removeprefix("attention "), entry)
                for name, entry in hopper.items()
                if name.startswith("attention ")
            ),
        ),
        "gpu_attention_bytes": table(
            ["q", "cache, MB", "q and out, MB", "spans, MB", "least", *devices, "with spans", *devices],
            (
                [str(q), *map(_mb, attention_bytes(q)), _mb(size), *_us(size), _mb(all_of), *_us(all_of)]
                for q, size, all_of in zip(QUERIES, least, (once, again), strict=True)
            ),
        ),
        "gpu_attention_least_ratio": f"{least[1] / least[0]:.3f}",
        "gpu_attention_ratio": f"{again / once:.3f}",
        "gpu_attention_ladder": attention_ladder(),
        "gpu_attention_started": table(
            ["q", "programs", "with a tile"],
            ([str(q), *map(_number, attention_programs(q))] for q in QUERIES),
        ),
    }


def attention_ladder() -> str:
    """What each step of the design saves: bytes read of the cache, and programs at work."""
    group, lanes = HEADS // KV_HEADS, min(KEYS // SPAN, LANES)
    steps = (
        ("a program for each query head of a token", lambda q: group * q, lambda q: BATCH * q * HEADS, 0),
        ("heads that share a key head in one tile", lambda q: q, lambda q: BATCH * q * KV_HEADS, 0),
        ("tokens of one row in that tile too", lambda q: 1, lambda q: BATCH * KV_HEADS, 0),
        ("spans of 256 keys as programs of their own", lambda q: 1, lambda q: BATCH * KV_HEADS * lanes, 1),
        ("four spans merged by their program", lambda q: 1, lambda q: attention_programs(q)[1], STRETCH),
    )
    headings = [f"{what}, q = {q}" for what in ("cache read, MB", "programs") for q in QUERIES]
    rows = []
    for name, times, programs, joined in steps:
        read = (_mb(cache_bytes() * times(q)) for q in QUERIES)
        left = " and ".join(_mb(span_bytes(q, joined)) for q in QUERIES) if joined else "none"
        rows.append([name, *read, *(_number(programs(q)) for q in QUERIES), left])
    return table(["version", *headings, "spans, MB"], rows)


# -- rotation ----------------------------------------------------------------------------------------------


def passes(width: int) -> int:
    """Passes over the bits of a feature's index, up to five at a time, in the CUDA kernel."""
    return max(1, -(-(factor(width)[1].bit_length() - 1) // 5))


def crossings(width: int) -> tuple[int, int]:
    """Bytes that a feature writes to shared memory and reads there, in the CUDA kernel."""
    m, between = factor(width)[0], 4 * (passes(width) - 1)
    # the sum over m parts comes behind the last pass, and gives four features
    return (between, between) if m == 1 else (between + 4, between + m)


def cuda_warps(width: int) -> int:
    """Warps that rotate a row in the CUDA kernel."""
    return min(32, -(-width // 1024))


def triton_warps(width: int) -> int:
    """Warps that rotate a row of 1024 features or more in the Triton kernel."""
    columns = min(factor(width)[1], 64 if width <= 8192 else 128)
    lines = min(1 << (width // columns - 1).bit_length(), 16384 // columns)
    return min(16, lines // 16)


def shared_bytes(width: int) -> int:
    """Shared memory of a row in the CUDA kernel: features, signs of H_m, a maximum a warp; whole 16 bytes."""
    m = factor(width)[0]
    signs = m * -(-m // 32) if m > 1 else 0
    return -(-(-(-width // 32) * 32 + signs + cuda_warps(width)) // 4) * 16


def hadamard_texts(triton: Document, cuda: Document) -> dict[str, str]:
    """Bounds by width, and what was built by both backends."""
    orders = {width: "{} x {}".format(*factor(width)) for width in (*WIDTHS, *ROTATED)}
    sizes = {width: ROWS * (3 * width + 4) for width in WIDTHS}
    return {
        "gpu_hadamard_bytes": table(
            ["width", "m x 2^k", "bytes, MB", *(f"{device}, µs" for device in BANDWIDTH)],
            ([str(width), orders[width], _mb(size), *_us(size)] for width, size in sizes.items()),
        ),
        "gpu_hadamard_crossings": table(
            ["width", "m x 2^k", "passes over bits", "written, bytes", "read, bytes"],
            (
                [str(width), orders[width], str(passes(width)), *map(str, crossings(width))]
                for width in WIDTHS
            ),
        ),
        "gpu_hadamard_cuda": _rotations(cuda["90"], cuda_warps),
        "gpu_hadamard_triton": _rotations(triton["90"], triton_warps),
        "gpu_hadamard_fits": table(
            ["width", "m x 2^k", "bytes", *SHARED],
            (
                [str(width), orders[width], _number(size), *(_fits(size, room) for room in SHARED.values())]
                for width in ROTATED
                for size in [shared_bytes(width)]
            ),
        ),
    }  # fmt: skip


def _fits(size: int, room: int) -> str:
    return "yes" if size <= room else "no"


def _rotations(entries: Document, warps: Callable[[int], int]) -> str:
    """What was built, the instructions of all warps over a row's features, and the time to issue them."""
    rows = []
    for name, entry in entries.items():
        op, _, shape = name.partition(" ")
        if op == "hadamard_quantize_act":
            width = next(int(word) for word in shape.split() if word.isdigit())
            of_row = entry["instructions"] * warps(width)
            issued = ROWS * of_row / (PROCESSORS * ISSUED * CLOCK) * 1e6
            rows.append(
                [shape, str(32 * warps(width)), *_cells(entry), f"{of_row * 32 / width:.0f}", f"{issued:.0f}"]
            )
    return table(["width, group", "threads", *_BUILT, "a feature", "issued, µs"], rows)


# -- linears -----------------------------------------------------------------------------------------------


def linear_texts(cuda: Document) -> dict[str, str]:
    """Bounds of two layers, and what was built of the CUDA linears of one, for Ampere and Hopper."""
    return {
        "gpu_linear_bytes": table(
            ["layer", "bf16, MB", "int4, MB", *(f"int4, {device}, µs" for device in BANDWIDTH)],
            (
                [f"{n} x {k}", _mb(2 * n * k), _mb(size), *_us(size, 1)]
                for n, k in LAYERS
                for size in [n * k // 2 + n * k // 128 * 2]
            ),
        ),
        **{f"gpu_{op}": _linears(cuda, f"{op} 4096x4096 g128 ") for op in ("linear_w4a16", "linear_w4a8")},
    }


def _linears(cuda: Document, prefix: str) -> str:
    return built(
        "arch, tokens",
        (
            (f"sm_{arch} {name.removeprefix(prefix)}", entry)
            for arch in ("80", "90")
            for name, entry in cuda[arch].items()
            if name.startswith(prefix)
        ),
    )
