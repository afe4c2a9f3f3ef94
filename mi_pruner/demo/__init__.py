"""A small vision-language model, its scenes and the `python -m mi_pruner demo` command.

Imported only by that command, by `bench/quality` and by the tests; needs the extra `mi_pruner[demo]`.
"""
