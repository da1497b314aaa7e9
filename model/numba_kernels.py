"""The decoder's small operations on a CPU, compiled by Numba: what eager torch makes forty calls a layer of.

Types follow the arrays, float32 or float64; sums are taken in that type. Compiled at first use, and kept
beside this file (or in the user's cache folder) where that can be written to.
"""

import numpy as np
from numba import njit

REORDERED = {"reassoc", "contract", "nsz", "arcp"}
"""Sums may be taken in any order, which vectorises them. NaN and infinity keep their meaning."""


def compiled(function):
    """Machine code that holds no lock while it runs."""
    try:
        return njit(function, nogil=True, fastmath=REORDERED, cache=True)
    except RuntimeError:  # there is nowhere to keep it
        return njit(function, nogil=True, fastmath=REORDERED)


@compiled
def norm(x, weight, epsilon, out):
    """RMSNorm of rows x [N, D], times weight [D]."""
    rows, size = x.shape
    for row in range(rows):
        squares = x.dtype.type(0)
        for column in range(size):
            squares += x[row, column] * x[row, column]
        factor = x.dtype.type(1.0 / np.sqrt(squares / size + epsilon))
        for column in range(size):
            out[row, column] = x[row, column] * factor * weight[column]


@compiled
def write_qkv(y, update, scale, cos, sin, positions, slots, query, keys, values):
    """LoRA added to q, k and v, q and k rotated, k and v written to their slots.

    y: [N, 3 D or more]. update: [3, N, D]. scale: [N, D]. cos, sin: [positions, d / 2]. query: [N, H, d].
    keys, values: [slots, H, d].
    """
    rows, heads, width = query.shape
    size = heads * width
    for row in range(rows):
        slot, position = slots[row], positions[row]
        for head in range(heads):
            start = head * width
            for pair in range(width // 2):
                c, s = cos[position, pair], sin[position, pair]
                first = start + 2 * pair
                second = first + 1
                even = y[row, first] + update[0, row, first] * scale[row, first]
                odd = y[row, second] + update[0, row, second] * scale[row, second]
                query[row, head, 2 * pair] = even * c - odd * s
                query[row, head, 2 * pair + 1] = even * s + odd * c
                even = y[row, size + first] + update[1, row, first] * scale[row, first]
                odd = y[row, size + second] + update[1, row, second] * scale[row, second]
                keys[slot, head, 2 * pair] = even * c - odd * s
                keys[slot, head, 2 * pair + 1] = even * s + odd * c
            for column in range(width):
                at = start + column
                values[slot, head, column] = y[row, 2 * size + at] + update[2, row, at] * scale[row, at]


@compiled
def add_lora(x, y, update, scale, out):
    """out = x + y + update * scale. x, update, scale, out: [N, D]. y: [N, D or more]."""
    rows, size = x.shape
    for row in range(rows):
        for column in range(size):
            out[row, column] = x[row, column] + y[row, column] + update[row, column] * scale[row, column]


@compiled
def times(low, b, out):
    """A few rows times the B of some LoRAs. low: [G, N, r]. b: [G, r, D]. out: [G, N, D]."""
    groups, rows, rank = low.shape
    for group in range(groups):
        for row in range(rows):
            for column in range(b.shape[2]):
                out[group, row, column] = 0
            for step in range(rank):
                for column in range(b.shape[2]):
                    out[group, row, column] += low[group, row, step] * b[group, step, column]


@compiled
def score(row, heads, query, keys, table, context, weights):
    """A row's queries times its keys. heads: from which to which."""
    page_size = keys.shape[1]
    for token in range(context):
        page, at = table[token // page_size], token % page_size
        for head in range(heads[0], heads[1]):
            total = query.dtype.type(0)
            for column in range(query.shape[2]):
                total += query[row, head, column] * keys[page, at, head, column]
            weights[row, head, token] = total


@compiled
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


@compiled
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
def attend(query, keys, values, tables, contexts, first, last, weights, out):
    """Every query over the keys and values of its row's pages.

    first:last: which heads, counted through all rows. query, out: [B, H, d], queries scaled. keys, values:
    [pages, page size, H, d]. tables: [B, P]. contexts: [B]. weights: [B, H, T], the longest context or more.
    """
    num_heads = query.shape[1]
    for row in range(first // num_heads, (last + num_heads - 1) // num_heads):
        heads = max(first - row * num_heads, 0), min(last - row * num_heads, num_heads)
        score(row, heads, query, keys, tables[row], contexts[row], weights)
        soften(row, heads, contexts[row], weights)
        mix(row, heads, weights, values, tables[row], contexts[row], out)
