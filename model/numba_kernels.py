"""The decoder's small operations on a CPU, compiled by Numba.

Types follow the arrays, float32 or float64; sums are taken in that type. Compiled at first use, and kept
beside this file (or in the user's cache folder) where that can be written to.
"""

import numpy as np
from numba import njit

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
