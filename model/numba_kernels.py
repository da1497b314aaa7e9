"""The decoder's operations on a CPU, compiled by Numba: small ones, and a whole step of a few sequences.

Types follow the arrays, float32 or float64; sums are taken in that type. Compiled at first use, and kept
beside this file (or in the user's cache folder) where that can be written to. All of it is in this one file,
for Numba takes kept code for current by the time and size of the file of the function that is called: code of
other files that went into it could be an older one.

`step` does what the small operations and oneDNN's products do one after another, without calls from Python
and without waits for sleeping threads in between. Threads share it: each takes the next piece of a phase
until none is left. Nobody waits for a thread to wake up: whoever comes late finds fewer pieces, or none. A
phase is over once all its pieces are done, by a counter that every thread looks at; whoever looks for long
lets other programs have the core in between.
"""

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

OPTIONS = {
    "nogil": True,
    # Sums may be taken in any order, which vectorises them. NaN and infinity keep their meaning,
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    # and a division by zero gives them: nothing here raises.
    "error_model": "numpy",
}


def compiled(function):
    """Machine code that holds no lock while it runs."""
    try:
        return njit(function, **OPTIONS, cache=True)
    except RuntimeError:  # there is nowhere to keep it
        return njit(function, **OPTIONS)


def inner(function):
    """Machine code that such code alone calls. It makes no array of its own: that compiles faster."""
    return njit(function, **OPTIONS, no_cpython_wrapper=True, no_cfunc_wrapper=True, _nrt=False)


@inner
def norm_row(row, x, weight, epsilon, out):
    """RMSNorm of a row of x [N, D], times weight [D]."""
    size = x.shape[1]
    squares = x.dtype.type(0)
    for column in range(size):
        squares += x[row, column] * x[row, column]
    factor = x.dtype.type(1.0 / np.sqrt(squares / size + epsilon))
    for column in range(size):
        out[row, column] = x[row, column] * factor * weight[column]


@compiled
def norm(x, weight, epsilon, out):
    """RMSNorm of all rows."""
    for row in range(len(x)):
        norm_row(row, x, weight, epsilon, out)


@inner
def write_head(row, head, y, update, scale, cos, sin, position, query, keys, values):
    """LoRA added to q, k and v of a row's head, q and k rotated. keys, values: [H, d], the row's slot."""
    num_heads, width = query.shape[1:]
    size = num_heads * width
    start = head * width
    for pair in range(width // 2):
        c, s = cos[position, pair], sin[position, pair]
        left = start + 2 * pair
        right = left + 1
        even = y[row, left] + update[0, row, left] * scale[row, left]
        odd = y[row, right] + update[0, row, right] * scale[row, right]
        query[row, head, 2 * pair] = even * c - odd * s
        query[row, head, 2 * pair + 1] = even * s + odd * c
        even = y[row, size + left] + update[1, row, left] * scale[row, left]
        odd = y[row, size + right] + update[1, row, right] * scale[row, right]
        keys[head, 2 * pair] = even * c - odd * s
        keys[head, 2 * pair + 1] = even * s + odd * c
    for column in range(width):
        here = start + column
        values[head, column] = y[row, 2 * size + here] + update[2, row, here] * scale[row, here]


@compiled
def write_qkv(first, last, y, update, scale, cos, sin, positions, slots, query, keys, values):
    """Of rows first:last: queries, and keys and values to their slots.

    y: [N, 3 D or more]. update: [3, N, D]. scale: [N, D]. cos, sin: [positions, d / 2]. query: [N, H, d].
    keys, values: [slots, H, d].
    """
    for row in range(first, last):
        for head in range(query.shape[1]):
            slot = slots[row]
            write_head(row, head, y, update, scale, cos, sin, positions[row], query, keys[slot], values[slot])


@compiled
def add_lora(x, y, update, scale, out):
    """out = x + y + update * scale. x, update, scale, out: [N, D]. y: [N, D or more]."""
    rows, size = x.shape
    for row in range(rows):
        for column in range(size):
            out[row, column] = x[row, column] + y[row, column] + update[row, column] * scale[row, column]


@inner
def times_row(low, start, b, first, last, out):
    """out[first:last] = low[start : start + r] times columns first:last of b [r, D]."""
    for column in range(first, last):
        out[column] = 0
    for step in range(len(b)):
        for column in range(first, last):
            out[column] += low[start + step] * b[step, column]


@inner
def score(row, heads, query, keys, table, context, weights):
    """A row's queries times its keys, over the root of their width. heads: from which to which."""
    page_size, width = keys.shape[1], query.shape[2]
    factor = query.dtype.type(1 / np.sqrt(width))
    for token in range(context):
        page, at = table[token // page_size], token % page_size
        for head in range(heads[0], heads[1]):
            total = query.dtype.type(0)
            for column in range(width):
                total += query[row, head, column] * keys[page, at, head, column]
            weights[row, head, token] = total * factor


@inner
def soften(row, heads, context, weights):
    """Softmax over the tokens."""
    for head in range(heads[0], heads[1]):
        largest = weights[row, head, 0]
        for token in range(1, context):
            largest = max(largest, weights[row, head, token])
        total = weights.dtype.type(0)
        for token in range(context):
            weight = np.exp(weights[row, head, token] - largest)
            weights[row, head, token] = weight
            total += weight
        for token in range(context):
            weights[row, head, token] /= total


@inner
def mix(row, heads, weights, values, table, context, out):
    """A row's values, weighted."""
    page_size = values.shape[1]
    for head in range(heads[0], heads[1]):
        for column in range(out.shape[2]):
            out[row, head, column] = 0
    for token in range(context):
        page, at = table[token // page_size], token % page_size
        for head in range(heads[0], heads[1]):
            weight = weights[row, head, token]
            for column in range(out.shape[2]):
                out[row, head, column] += weight * values[page, at, head, column]


@compiled
def attend(first, last, query, keys, values, tables, contexts, weights, out):
    """Every query over the keys and values of its row's pages.

    first:last: which heads, counted through all rows. query, out: [B, H, d]. keys, values:
    [pages, page size, H, d]. tables: [B, P]. contexts: [B]. weights: [B, H, T], the longest context or more.
    """
    num_heads = query.shape[1]
    for row in range(first // num_heads, (last + num_heads - 1) // num_heads):
        heads = max(first - row * num_heads, 0), min(last - row * num_heads, num_heads)
        score(row, heads, query, keys, tables[row], contexts[row], weights)
        soften(row, heads, contexts[row], weights)
        mix(row, heads, weights, values, tables[row], contexts[row], out)


LOOKS = 500
"""At a counter, a few ns each, before a thread begins to offer its core to others."""
LINE = 8
"""Counters in a cache line."""
COUNTERS = 2 * LINE
"""int64 of a phase: the first counts pieces taken, the first of the second line pieces done."""

sched_yield = types.ExternalFunction("sched_yield", types.int32())


def _word(builder, address):
    return builder.inttoptr(address, ir.IntType(64).as_pointer())


@intrinsic
def add_to(typing_context, address, value):
    """The int64 that was at an address before value was added, which no other thread comes between."""

    def generate(context, builder, signature, arguments):
        return builder.atomic_rmw("add", _word(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def look_at(typing_context, address):
    """The int64 at an address. What its writer had written before can be read from then on."""

    def generate(context, builder, signature, arguments):
        return builder.load_atomic(_word(builder, arguments[0]), "acquire", 8)

    return types.int64(types.int64), generate


@intrinsic
def pointer_to(typing_context, address, like):
    """An address as a pointer to numbers of an array's type."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(types.int64, like), generate


@inner
def take(counters, phase):
    """The number of the next piece of a phase; past the last one there is none left.

    counters: [phases, COUNTERS], zeros at first, for one run alone: a thread that outlives it finds nothing.
    """
    return add_to(counters[phase].ctypes.data, 1)


@inner
def take_another(counters, phase):
    """The same, once the piece taken before is done."""
    add_to(counters[phase, LINE:].ctypes.data, 1)
    return take(counters, phase)


@inner
def wait(counters, phase, pieces):
    """Until all pieces of a phase are done."""
    done = counters[phase, LINE:].ctypes.data
    looks = 0
    while look_at(done) < pieces:
        looks += 1
        if looks > LOOKS:
            sched_yield()


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
