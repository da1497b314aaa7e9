"""What a child process owes its parent: ignore the stop signals, and never outlive it. Linux first.

Only Linux has PR_SET_PDEATHSIG; elsewhere the closed pipe alone tells a child that its parent is gone.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
QUIET_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
"""Environment of a process that computes: OpenMP threads sleep at a barrier instead of spinning.

Where the cores are shared (other processes, a container's quota), a spinning thread keeps the one it waits
for from running: decoding was up to 20 times slower. Read once, when torch is loaded.
"""
FEW_PLANS = {"LRU_CACHE_CAPACITY": "128", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}
"""And how many plans torch and oneDNN keep for products on a CPU, each for one kind and one number of rows.

1,024 are kept by default, of some 250 KB each, and clips and prompts come in all lengths. A forward needs a
few dozen; to plan anew takes less than 1 ms. Read at the first product.
"""
COMPUTING = QUIET_THREADS | FEW_PLANS
MERGING_MALLOC = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"}
"""And without malloc's small caches, for a process that computes for long.

torch's tensors are aligned blocks. What glibc (2.36 at least) cuts off such a block goes into those caches,
is used by something small, and the next tensor no longer fits where the last one was (glibc's bug 30723).
Other systems do not read this.
"""
KEPT_BYTES = 8 * 2**20
"""Blocks up to this size are kept when they are freed, twice as much in all (mallopt(3))."""
LARGEST_KEPT_BYTES = 32 * 2**20
"""Of one block in a process that computes; the most that glibc keeps. Larger ones may still find room."""
WORKSPACE_BYTES = 256 * 2**20
"""Of freed memory that such a process keeps; attention over a clip of 60 s takes 64 MB, layer by layer."""
_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel send SIGKILL to this process when its parent dies, however it dies.

    The kernel watches the *thread* that started this process: start children from a thread that lives
    as long as the parent, which means the main thread or the one that runs the event loop.
    parent_pid: the parent as it knows itself; exits at once if that process is gone already.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        os._exit(0)


def computing_environment() -> dict[str, str]:
    """This process's environment for a child that computes; what the operator set wins."""
    return COMPUTING | os.environ


def engine_environment() -> dict[str, str]:
    """The same for one that also lives as long as the server."""
    return MERGING_MALLOC | computing_environment()


def spare_from_collection() -> None:
    """Leave what is alive now, modules and a loaded model, out of all later garbage collections.

    A full collection looks at each of some 100,000 objects that will never be garbage, and everything stands
    still meanwhile.
    """
    gc.collect()
    gc.freeze()


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next clip, as it does once a block of 8 MiB was freed.

    Until then it takes every clip's buffers fresh from the kernel, which clears them page by page: a copy of
    320 KB takes twenty times as long. What the operator set (`MALLOC_*`) stays. Elsewhere this does nothing.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
        libc.free.argtypes, libc.free.restype = [ctypes.c_void_p], None
        libc.free(libc.malloc(KEPT_BYTES))


def keep_workspace() -> None:
    """Have glibc keep what one part of a computation frees for the next one.

    Else it gives large blocks back to the kernel, which clears every page anew: 64 MB in each layer of a long
    clip, 25 to 100 ms at once. What the operator set for malloc stays. Elsewhere this does nothing.
    """
    chosen = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys()
    if sys.platform == "linux" and not chosen and "_threshold" not in os.environ.get("GLIBC_TUNABLES", ""):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
            libc.mallopt(_M_TRIM_THRESHOLD, WORKSPACE_BYTES)


def ignore_stop_signals() -> None:
    """Ignore SIGINT and SIGTERM: the parent decides when this process ends.

    Also undoes the mask of `stop_signals_blocked`, under which it was started.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Start a child inside this block and it inherits the mask.

    Without it, a Ctrl-C would kill the child in the moment between exec and `ignore_stop_signals`.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def describe_exit(returncode: int) -> str:
    """How a process ended, in words. returncode: as `subprocess` gives it, negative for a signal."""
    if returncode >= 0:
        return f"exited with status {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    return f"was killed by {name}"
