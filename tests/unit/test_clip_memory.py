"""Waveforms that are dropped are given back to the system, whatever is kept beside them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from server.clip_memory import in_own_pages, new_waveform


@pytest.mark.parametrize("num_samples", [0, 1, 1023, 1024, 1025, 160_000])
def test_a_copy_can_be_written_to_and_is_apart(num_samples: int) -> None:
    waveform = np.arange(num_samples, dtype=np.float32)
    copied = in_own_pages(waveform)
    np.testing.assert_array_equal(copied, waveform, strict=True)
    copied += 1
    np.testing.assert_array_equal(waveform, np.arange(num_samples, dtype=np.float32))
    assert not new_waveform(num_samples).any()


def test_every_other_one_dropped_is_half_the_memory() -> None:
    """1,000 clips of 80 KB: less than what malloc asks the system for by itself."""
    program = """
import psutil
from server.clip_memory import new_waveform
def resident():
    return psutil.Process().memory_info().rss / 2**20
def full():
    waveform = new_waveform(20_000)
    waveform += 1
    return waveform
before = resident()
kept = [full() for _ in range(1000)]
print(resident() - before)
del kept[::2]
print(resident() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    held, after = map(float, done.stdout.split())
    assert 70 < held < 90
    assert after < 0.6 * held
