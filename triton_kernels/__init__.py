"""The Triton kernels; installed as `mi_pruner.triton_kernels`.

Importing this package imports no Triton: the modules in it do. They import one another relatively only, because the
folder's own name belongs to another project.
"""

if __name__ == "triton_kernels":
    raise ImportError(
        "this folder holds mi_pruner's kernels and is not the package `triton_kernels`: "
        "import mi_pruner.triton_kernels, and run outside the checkout to reach the other package",
        name=__name__,
    )
