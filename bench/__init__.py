"""Benchmarks of mi_pruner: ``python -m bench``; see bench/README.md."""
