"""What a server's process asks of its C library."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from server.os_process import computing_environment, engine_environment

COPY = """
import resource
from server.os_process import keep_freed_memory
{}
clip = bytes(320_000)
for _ in range(10):
    bytes(bytearray(clip))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    bytes(bytearray(clip))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own option")
def test_what_is_freed_is_kept_for_the_next_clip() -> None:
    """Without it each copy takes its pages anew, some 80 of them."""
    faults = [
        int(subprocess.run([sys.executable, "-c", COPY.format(call)], capture_output=True, check=True).stdout)
        for call in ("", "keep_freed_memory()")
    ]
    assert faults[1] < 100 < faults[0]


TENSORS = """
import ctypes, random, psutil
libc = ctypes.CDLL(None)
libc.posix_memalign.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t]
libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
libc.free.argtypes, libc.free.restype = [ctypes.c_void_p], None
libc.free(libc.malloc(30 * 2**20))  # from now on tensors come from the heap
rng = random.Random(1)
small = []

def tensor(num_bytes):
    block = ctypes.c_void_p()
    libc.posix_memalign(ctypes.byref(block), 64, num_bytes)
    ctypes.memset(block, 1, num_bytes)
    return block

before = psutil.Process().memory_info().rss
for _ in range(1000):
    tensors = []
    for _ in range(4):
        tensors.append(tensor(rng.choice((300_000, 350_000, 700_000, 1_400_000))))
        small.append(libc.malloc(rng.randint(24, 120)))
    for block in tensors:
        libc.free(block)
    while len(small) > 500:
        libc.free(small.pop(rng.randrange(len(small))))
print((psutil.Process().memory_info().rss - before) // 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own option")
def test_tensors_leave_no_holes_that_the_next_ones_do_not_fit_in() -> None:
    """At most 6 MB are in use at a time. glibc 2.36 takes 160 by itself."""
    command = [sys.executable, "-c", TENSORS]
    done = subprocess.run(command, capture_output=True, check=True, env=engine_environment())
    assert int(done.stdout) < 40


LAYERS = """
import ctypes, resource
from server.os_process import keep_workspace

keep_workspace()
libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
libc.free.argtypes, libc.free.restype = [ctypes.c_void_p], None

def faults_of_a_layer():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(18 * 2**20) for _ in range(4)]
    for block in blocks:
        ctypes.memset(block, 1, 18 * 2**20)
    for block in blocks:
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(*(faults_of_a_layer() for _ in range(4)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own options")
@pytest.mark.parametrize(
    ("chosen", "are_kept"),
    [
        ({}, True),
        ({"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}, True),
        ({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}, False),
        ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False),
    ],
)
def test_what_a_layer_frees_is_kept_for_the_next_unless_the_operator_says(
    chosen: dict[str, str], are_kept: bool
) -> None:
    """A page is 4 to 64 KiB."""
    command = [sys.executable, "-c", LAYERS]
    done = subprocess.run(command, capture_output=True, check=True, env=dict(os.environ) | chosen)
    first, *others = map(int, done.stdout.split())
    assert first > 1000
    assert (max(others) < 100) == are_kept


def test_what_the_operator_set_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setitem(os.environ, "GLIBC_TUNABLES", "glibc.malloc.arena_max=1")
    assert computing_environment()["OMP_WAIT_POLICY"] == "ACTIVE"
    assert engine_environment()["OMP_WAIT_POLICY"] == "ACTIVE"
    assert engine_environment()["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=1"
