"""`python -m benchmarks.decoders`; see `benchmarks.decoders.command`."""

from __future__ import annotations

from benchmarks.peers.waiting import restart_passive

if __name__ == "__main__":
    restart_passive()
    # Only now: OpenMP reads its environment when torch is loaded.
    from benchmarks.decoders.command import main

    main()
