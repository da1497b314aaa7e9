"""`python -m benchmarks.floor`; see `benchmarks.floor.command`."""

from __future__ import annotations

from benchmarks.peers.waiting import restart_passive

if __name__ == "__main__":
    restart_passive()
    # Only now: OpenMP reads its environment when torch is loaded.
    from benchmarks.floor.command import main

    main()
