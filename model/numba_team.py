"""Threads that share the work of one compiled function: each takes the next piece until none is left.

Nobody waits for a thread to wake up: whoever comes late finds fewer pieces, or none. A phase is over once all
its pieces are done, by a counter that every thread looks at; whoever looks for long lets other programs have
the core in between.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from model.numba_kernels import inner

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
