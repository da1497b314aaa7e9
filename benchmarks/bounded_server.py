"""`wavllm serve` whose caches are full after a few hundred requests, so that what still grows is a leak.

    python -m benchmarks.bounded_server --model DIR --http-port 8000
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from server.serve import run
from server.settings import Settings
from server.types import EngineConfig


class BoundedSettings(Settings):
    """The server's own, but for the room of the engine's caches."""

    def engine_config(self) -> EngineConfig:
        """1 MiB of audio embeddings, 512 KV pages."""
        return dataclasses.replace(super().engine_config(), encoder_cache_mb=1.0, num_pages=512)


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--http-port", type=int, required=True)
    given = vars(parser.parse_args())
    run(BoundedSettings(**given, host="127.0.0.1", grpc_port=0, metrics_port=0, drain_delay=0, device="cpu"))


if __name__ == "__main__":
    main()
