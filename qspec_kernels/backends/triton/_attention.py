"""Device code of attention: which tokens share a tile, and softmax over a span of keys."""

# constants and loops of device code are Triton's own
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl


@triton.jit
def tile_of(rows, token, tokens, QUERIES: tl.constexpr, AHEAD: tl.constexpr, BEHIND: tl.constexpr):
    """How many tokens from this one on share its tile; 0 where an earlier one took it in.

    A tile is up to QUERIES neighbours of one cache row. It begins with every QUERIES-th token of the row's
    run, so that a block to be verified is one tile; where a run began is looked up BEHIND tokens back at
    most, and farther on in it tiles begin at multiples of QUERIES.
    """
    row = tl.load(rows + token)
    behind = tl.arange(0, BEHIND)
    before = tl.load(rows + token - 1 - behind, mask=behind < token, other=-1)
    run = tl.min(tl.where(before == row, BEHIND, behind), 0)
    ahead = tl.arange(0, AHEAD)
    after = tl.load(rows + token + ahead, mask=token + ahead < tokens, other=-1)
    begins = _begins(run + ahead, token + ahead, QUERIES, BEHIND)
    count = tl.min(tl.where((after != row) | (begins & (ahead > 0)), ahead, AHEAD), 0)
    return tl.where(_begins(run, token, QUERIES, BEHIND), count, 0)


@triton.jit
def _begins(run, token, QUERIES: tl.constexpr, BEHIND: tl.constexpr):
    known: tl.constexpr = (BEHIND - 1) // QUERIES * QUERIES
    return tl.where(run <= known, run % QUERIES == 0, token % QUERIES == 0)


@triton.jit
def product(a, b, total, PARTS: tl.constexpr):
    """total + a b. PARTS 1: in b's type; 3: a float32, b bfloat16; 2: both float32; 0: in float32 itself.

    A float32 number is the sum of three bfloat16 ones, so products with these are exact. Of two that both are
    cut, in two TF32 numbers of 11 bits each, the compiler leaves out the product of the lower ones.
    """
    if PARTS == 0:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    if PARTS == 2:
        return tl.dot(a.to(tl.float32), b, total, input_precision="tf32x3")
    for _ in tl.static_range(PARTS):
        part = a.to(b.dtype)
        total = tl.dot(part, b, total)
        a = a.to(tl.float32) - part.to(tl.float32)
    return total


@triton.jit
def merged(top, total, out, new_top, new_total, new_out):
    """Softmax over two runs of keys as one: largest scores and sums [M], weighted values [M, D].

    A run without keys, of largest score -inf, leaves the other one's numbers as they are.
    """
    both = tl.maximum(top, new_top)
    # where nothing has been seen yet, -inf less -inf would be NaN
    finite = tl.where(both == float("-inf"), 0.0, both)
    decay, weight = tl.exp2(top - finite), tl.exp2(new_top - finite)
    return both, total * decay + new_total * weight, out * decay[:, None] + new_out * weight[:, None]


@triton.jit
def span(
    q, k, v, first, last, start, stop, lowest, highest, scale, D: tl.constexpr, KEYS: tl.constexpr,
    PARTS: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """Softmax of q [M, D'] over the keys start..stop-1, KEYS at a time: largest score, sum, weighted values.

    Query m sees keys first[m]..last[m] (without a window from 0 on), the tile lowest..highest. k and v point
    to the keys of one head; scores are exponents of 2. A block that a query does not see leaves its numbers
    as they are: its factors are exactly 1 and its terms 0.
    """
    feature = tl.arange(0, q.shape[1])[None, :]
    top = tl.full([q.shape[0]], float("-inf"), tl.float32)
    total = tl.zeros([q.shape[0]], tl.float32)
    out = tl.zeros(q.shape, tl.float32)
    for block in range(start, stop, KEYS):
        key = block + tl.arange(0, KEYS)
        at = key[:, None] * D + feature
        mask = (key <= highest)[:, None] & (feature < D)
        if WINDOWED:
            mask &= (key >= lowest)[:, None]
        scores = tl.zeros([q.shape[0], KEYS], tl.float32)
        scores = product(q, tl.trans(tl.load(k + at, mask=mask, other=0.0)), scores, PARTS) * scale
        seen = key[None, :] <= last[:, None]
        if WINDOWED:
            seen &= key[None, :] >= first[:, None]
        scores = tl.where(seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        # where nothing has been seen yet, -inf less -inf would be NaN
        finite = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp2(scores - finite[:, None])
        decay = tl.exp2(top - finite)
        total = total * decay + tl.sum(weights, 1)
        values = tl.load(v + at, mask=mask, other=0.0)
        out = product(weights.to(q.dtype), values, out * decay[:, None], PARTS)
        top = new_top
    return top, total, out
