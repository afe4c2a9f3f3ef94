"""Builds csrc/cuda as plain C++ (see cuda_host.h) into a library whose operators take CPU tensors."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from mi_pruner._dispatch import BACKENDS, Backend

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
CUDA = ROOT / "csrc" / "cuda"
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")  # the pragmas are nvcc's
# As nvcc is told: sums are fused where the source says so and nowhere else.
FLAGS = ("-std=c++20", "-fPIC", "-fvisibility=hidden", "-g1", "-ffp-contract=off", *WARNINGS, "-DMI_PRUNER_CUDA_HOST")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-O1")
# The thread sanitizer sees what the kernels do; the harness tells it what that means (races.h).
RACES = ("-O1", "-DMI_PRUNER_HOST_RACES")
SEEN = ("-fsanitize=thread",)


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


def run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{done.args}\n{done.stdout}\n{done.stderr}")


def torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    return Path(spec.submodule_search_locations[0])


LIBRARY = ROOT / "build/cuda_host/cuda_host.so"  # the one that MI_PRUNER_CUDA_HOST=1 loads


def build(folder: Path, *flags: str, of_kernels: tuple[str, ...] = ()) -> Path:
    """Compiles what has changed since the last time, the kernels with flags of their own; returns the library."""
    folder.mkdir(parents=True, exist_ok=True)
    kernels = sorted((CUDA / "launch").glob("*.cu"))
    sources = [*kernels, CUDA / "host" / "register.cpp", *(HERE / name for name in ("cuda_host.cpp", "matrices.cpp"))]
    headers = [path for top in (CUDA.parent, HERE) for path in top.rglob("*") if path.suffix in (".h", ".cuh")]
    newest = max(path.stat().st_mtime for path in headers)
    includes = (f"-I{CUDA.parent}", f"-I{HERE}", "-isystem", torch_folder() / "include")
    objects = [folder / f"{source.stem}.o" for source in sources]

    def compile_one(source: Path, target: Path) -> None:
        if not target.exists() or target.stat().st_mtime < max(newest, source.stat().st_mtime):
            defines = "-DTORCH_TARGET_VERSION=0x020b000000000000"
            own = of_kernels if source in kernels else ()
            run(compiler(), *FLAGS, *flags, *own, defines, *includes, "-x", "c++", "-c", source, "-o", target)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        list(threads.map(compile_one, sources, objects))
    library = folder / "cuda_host.so"
    if not library.exists() or library.stat().st_mtime < max(path.stat().st_mtime for path in objects):
        lib, staged = torch_folder() / "lib", folder / "cuda_host.new"  # half a file would pass for a fresh one
        run(compiler(), "-shared", *flags, "-o", staged, *objects, f"-L{lib}", "-ltorch", "-ltorch_cpu")
        staged.replace(library)
    return library


def backend(library: Path) -> Backend:
    """The backend "cuda" on a library that `build` made: its operators take CPU tensors."""
    torch.ops.load_library(library)
    return dataclasses.replace(BACKENDS["cuda"], device="cpu", missing=None, probe=lambda index: None)
