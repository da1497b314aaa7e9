"""`wavllm eval`: questions from a manifest, answers from a model, and what they are worth."""
