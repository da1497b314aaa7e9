"""llama.cpp's own server, by xllamacpp, until SIGINT. Runs in llama.cpp's own environment.

    python -m benchmarks.decoders.llamacpp_server FILE DTYPE PORT BATCH TOKENS THREADS

DTYPE: F32 or F16, of the cache. TOKENS: of a prompt and its answer.
"""

from __future__ import annotations

import signal
import sys

import xllamacpp


def main() -> None:
    """Serve what the command line says. What the server would do besides decoding is off."""
    file, dtype = sys.argv[1:3]
    port, batch, tokens, threads = map(int, sys.argv[3:])
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.port = port
    params.n_parallel = batch
    params.n_ctx = batch * tokens
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type[f"GGML_TYPE_{dtype}"]
    params.cache_ram_mib = 0
    params.n_ctx_checkpoints = 0
    params.fit_params = False
    params.ui = False
    params.verbosity = 2
    server = xllamacpp.Server(params)
    signal.sigwait({signal.SIGINT})
    del server


if __name__ == "__main__":
    # Before the server's threads, which inherit it: the signal is for the wait alone.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    main()
