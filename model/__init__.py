"""The WavLLM network: tensors in, tensors out. Knows nothing of requests, HTTP or threads."""
