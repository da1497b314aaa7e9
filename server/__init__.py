"""The inference server around `model`: admission, the batching engine, REST and gRPC."""
