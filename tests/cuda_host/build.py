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


@dataclasses.dataclass(frozen=True)
class Way:
    """To build: where, and what a sanitizer sees. What the harness does, it tells it itself."""

    folder: Path
    harness: tuple[str, ...] = ()  # flags
    sanitizer: tuple[str, ...] = ()  # flags of what is seen
    seen: tuple[str, ...] = ()  # stems of sources, beside the kernels

    @property
    def library(self) -> Path:
        return self.folder / "cuda_host.so"

    def compile(self, source: Path, target: Path, *flags: object) -> None:
        is_seen = source.suffix == ".cu" or source.stem in self.seen
        own = self.sanitizer if is_seen else ()
        run(compiler(), *FLAGS, "-O2", *self.harness, *own, *flags, "-x", "c++", "-c", source, "-o", target)

    def link(self, target: Path, *what: object) -> None:
        run(compiler(), *self.sanitizer[:1], *what, "-o", target)


PLAIN = Way(ROOT / "build/cuda_host")  # what MI_PRUNER_CUDA_HOST=1 loads
ADDRESSES = Way(
    ROOT / "build/cuda_host_sanitized",
    ("-DMI_PRUNER_HOST_ADDRESSES",),
    ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-Og"),
    ("register", "instructions", "faults"),
)
RACES = Way(ROOT / "build/cuda_host_races", ("-DMI_PRUNER_HOST_RACES",), ("-fsanitize=thread", "-O1"), ("faults",))
HARNESS = tuple(HERE / f"{name}.cpp" for name in ("cuda_host", "instructions"))


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


def build(way: Way) -> Path:
    """Compiles what has changed since the last time; returns the library."""
    folder = way.folder
    folder.mkdir(parents=True, exist_ok=True)
    sources = [*sorted((CUDA / "launch").glob("*.cu")), CUDA / "host" / "register.cpp", *HARNESS]
    headers = [path for top in (CUDA.parent, HERE) for path in top.rglob("*") if path.suffix in (".h", ".cuh")]
    newest = max(path.stat().st_mtime for path in headers)
    includes = (f"-I{CUDA.parent}", f"-I{HERE}", "-isystem", torch_folder() / "include")
    objects = [folder / f"{source.stem}.o" for source in sources]

    def compile_one(source: Path, target: Path) -> None:
        if not target.exists() or target.stat().st_mtime < max(newest, source.stat().st_mtime):
            way.compile(source, target, "-DTORCH_TARGET_VERSION=0x020b000000000000", *includes)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        list(threads.map(compile_one, sources, objects))
    library = way.library
    if not library.exists() or library.stat().st_mtime < max(path.stat().st_mtime for path in objects):
        lib, staged = torch_folder() / "lib", folder / "cuda_host.new"  # half a file would pass for a fresh one
        way.link(staged, "-shared", *objects, f"-L{lib}", "-ltorch", "-ltorch_cpu")
        staged.replace(library)
    return library


def build_faults(way: Way, folder: Path) -> Path:
    """The program of faults.cpp."""
    objects = [folder / f"{source.stem}.o" for source in (HERE / "faults.cpp", *HARNESS)]
    for source, target in zip((HERE / "faults.cpp", *HARNESS), objects, strict=True):
        way.compile(source, target)
    way.link(folder / "faults", *objects)
    return folder / "faults"


def backend(library: Path) -> Backend:
    """The backend "cuda" on a library that `build` made: its operators take CPU tensors."""
    torch.ops.load_library(library)
    return dataclasses.replace(BACKENDS["cuda"], device="cpu", missing=None, probe=lambda index: None)
