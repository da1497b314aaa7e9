"""`wavllm bench`: open-loop load on a server, and what its users would have felt."""
