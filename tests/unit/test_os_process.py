"""What a server's process asks of its C library."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

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
