"""Before torch is loaded: one thread for models this small, in the tests' own process and its children."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
