"""Memory of the waveforms that caches keep.

Clips have all lengths and are dropped in another order than they came. Side by side on the heap, every one
that goes leaves a hole in which the next does not fit, and a process grows for thousands of requests.
"""

from __future__ import annotations

import mmap

import numpy as np
import numpy.typing as npt


def new_waveform(num_samples: int) -> npt.NDArray[np.float32]:
    """[T] zeros in pages of their own, which the system has back as soon as nobody holds the array."""
    if num_samples == 0:
        return np.zeros(0, np.float32)
    num_bytes = num_samples * np.dtype(np.float32).itemsize
    return np.frombuffer(mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE), np.float32)


def in_own_pages(waveform: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A copy."""
    copied = new_waveform(len(waveform))
    copied[:] = waveform
    return copied
