"""Inside vLLM: what it gains, and checkpoints, a server and an environment for it."""
