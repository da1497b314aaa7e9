"""A decode step of a few sequences through all layers, in one compiled function that threads share.

What the kernels of `model.numba_kernels` and oneDNN's products do one after another, without calls from
Python and without waits for sleeping threads in between. Every weight is read once, as it lies.
"""

import numpy as np
from numba import carray

from model.numba_kernels import (
    compiled,
    inner,
    mix,
    norm_row,
    score,
    soften,
    times_row,
    write_head,
)
from model.numba_team import pointer_to, take, take_another, wait

PIECE = 64
"""Rows of a weight that a thread takes at a time: 256 KB of float32 at a width of 1,024."""
PHASES = 7
"""Of a layer: norm, q with k and v, attention, o, LoRA and norm, gate with up, down."""


@inner
def dot(a, b, size):
    """The sum of the products of two rows' first `size` numbers."""
    total = b.dtype.type(0)
    for column in range(size):
        total += a[column] * b[column]
    return total


@inner
def product(weight, first, last, x, out):
    """out[:, first:last] = x [N, K] times rows first:last of weight [M, K].

    Two rows of the weight and four of x at a time, as far as they go: eight sums for six numbers read.
    """
    rows, size = len(x), weight.shape[1]
    fours, pairs = rows // 4 * 4, first + (last - first) // 2 * 2
    for at in range(first, pairs, 2):
        for row in range(0, fours, 4):
            a = b = c = d = e = f = g = h = out.dtype.type(0)
            for column in range(size):
                left, right = weight[at, column], weight[at + 1, column]
                a += left * x[row, column]
                b += left * x[row + 1, column]
                c += left * x[row + 2, column]
                d += left * x[row + 3, column]
                e += right * x[row, column]
                f += right * x[row + 1, column]
                g += right * x[row + 2, column]
                h += right * x[row + 3, column]
            out[row, at], out[row + 1, at], out[row + 2, at], out[row + 3, at] = a, b, c, d
            at_right = at + 1
            out[row, at_right], out[row + 1, at_right] = e, f
            out[row + 2, at_right], out[row + 3, at_right] = g, h
        for row in range(fours, rows):
            out[row, at] = dot(weight[at], x[row], size)
            out[row, at + 1] = dot(weight[at + 1], x[row], size)
    for at in range(pairs, last):
        for row in range(rows):
            out[row, at] = dot(weight[at], x[row], size)


@inner
def normalise(counters, phase, x, weight, epsilon, out):
    """RMSNorm of all rows."""
    row = take(counters, phase)
    while row < len(x):
        norm_row(row, x, weight, epsilon, out)
        row = take_another(counters, phase)
    wait(counters, phase, len(x))


@inner
def multiply(counters, phase, weight, x, out):
    """A product."""
    pieces = (len(weight) + PIECE - 1) // PIECE
    piece = take(counters, phase)
    while piece < pieces:
        product(weight, piece * PIECE, min(len(weight), (piece + 1) * PIECE), x, out)
        piece = take_another(counters, phase)
    wait(counters, phase, pieces)


@inner
def see(
    counters, phase, heads, y, b, scale, cos, sin, positions, layer, keys, values, tables,
    update, query, weights, out,
):  # fmt: skip
    """LoRA, rotation, write, attention: so many heads of a row in each piece."""
    num_heads, width = query.shape[1:]
    rank = b.shape[1]
    pieces = len(query) * num_heads // heads
    piece = take(counters, phase)
    while piece < pieces:
        row, head = piece * heads // num_heads, piece * heads % num_heads
        for group in range(3):
            start = 3 * num_heads * width + group * rank
            times_row(y[row], start, b[group], head * width, (head + heads) * width, update[group, row])
        page, at = tables[row, positions[row] // keys.shape[2]], positions[row] % keys.shape[2]
        for one in range(head, head + heads):
            write_head(
                row, one, y, update, scale, cos, sin, positions[row],
                query, keys[layer, page, at], values[layer, page, at],
            )  # fmt: skip
        between, context = (head, head + heads), positions[row] + 1
        score(row, between, query, keys[layer], tables[row], context, weights)
        soften(row, between, context, weights)
        mix(row, between, weights, values[layer], tables[row], context, out)
        piece = take_another(counters, phase)
    wait(counters, phase, pieces)


@inner
def add_all(counters, phase, x, y, b, scale, weight, epsilon, update, out):
    """x += y + its LoRA; out: the norm of that."""
    size = x.shape[1]
    row = take(counters, phase)
    while row < len(x):
        times_row(y[row], size, b, 0, size, update[row])
        for column in range(size):
            x[row, column] += y[row, column] + update[row, column] * scale[row, column]
        norm_row(row, x, weight, epsilon, out)
        row = take_another(counters, phase)
    wait(counters, phase, len(x))


@inner
def swiglu(counters, phase, weight, x, both, out):
    """silu(gate) * up. weight: [2 I, D]. both: [N, 2 I]. out: [N, I]."""
    size = out.shape[1]
    pieces = (size + PIECE - 1) // PIECE
    piece = take(counters, phase)
    while piece < pieces:
        first, last = piece * PIECE, min(size, (piece + 1) * PIECE)
        product(weight, first, last, x, both)
        product(weight, size + first, size + last, x, both)
        for row in range(len(x)):
            for at in range(first, last):
                gate = both[row, at]
                out[row, at] = gate / (out.dtype.type(1) + np.exp(-gate)) * both[row, size + at]
        piece = take_another(counters, phase)
    wait(counters, phase, pieces)


@inner
def add_product(counters, phase, weight, x, y, out):
    """Out += y, the product."""
    pieces = (len(weight) + PIECE - 1) // PIECE
    piece = take(counters, phase)
    while piece < pieces:
        first, last = piece * PIECE, min(len(weight), (piece + 1) * PIECE)
        product(weight, first, last, x, y)
        for row in range(len(out)):
            for at in range(first, last):
                out[row, at] += y[row, at]
        piece = take_another(counters, phase)
    wait(counters, phase, pieces)


@compiled
def step(
    x, layers, rank, epsilon, scale, cos, sin, positions, keys, values, tables, heads, spaces, counters
):  # fmt: skip
    """Embeddings x [N, D] -> hidden states, in place. All threads of a step call it with the same arguments.

    layers: [L, 8] int64, addresses of a layer's W and A of q, k and v [3 (D + r), D], their B [3, r, D],
    W and A of o [D + r, D], its B [r, D], gate and up [2 I, D], down [D, I], both norms' weights [D].
    scale: [N, D]. cos, sin: [positions, d / 2]. positions: [N] int64. tables: [N, P] int64.
    keys, values: [L, pages, page size, H, d]. heads: that a thread takes at a time, a divisor of H.
    spaces: room for [N, D], [N, 3 (D + r)], [3, N, D], [N, H, d], [N, H, longest context], [N, H, d],
    [N, D + r], [N, 2 I] and [N, I]. counters: of PHASES a layer, as `take` wants them.
    """
    h, y, update, query, weights, attended, z, both, wide = spaces
    rows, size = x.shape
    intermediate = wide.shape[1]
    seen = attended.reshape(rows, size)
    for layer in range(len(layers)):
        at = layers[layer]
        qkv = carray(pointer_to(at[0], x), (3 * (size + rank), size))
        qkv_b = carray(pointer_to(at[1], x), (3, rank, size))
        o = carray(pointer_to(at[2], x), (size + rank, size))
        o_b = carray(pointer_to(at[3], x), (rank, size))
        gate_up = carray(pointer_to(at[4], x), (2 * intermediate, size))
        down = carray(pointer_to(at[5], x), (size, intermediate))
        first_norm = carray(pointer_to(at[6], x), (size,))
        second_norm = carray(pointer_to(at[7], x), (size,))
        phase = layer * PHASES
        normalise(counters, phase, x, first_norm, epsilon, h)
        multiply(counters, phase + 1, qkv, h, y)
        see(
            counters, phase + 2, heads, y, qkv_b, scale, cos, sin, positions,
            layer, keys, values, tables, update, query, weights, attended,
        )  # fmt: skip
        multiply(counters, phase + 3, o, seen, z)
        add_all(counters, phase + 4, x, z, o_b, scale, second_norm, epsilon, update[0], h)
        swiglu(counters, phase + 5, gate_up, h, both, wide)
        add_product(counters, phase + 6, down, wide, z, x)
