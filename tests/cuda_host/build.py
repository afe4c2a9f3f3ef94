"""Builds csrc/cuda as plain C++ (see cuda_host.h) into a library whose operators take CPU tensors."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mi_pruner._dispatch import Backend

CUDA_ON_HOST = os.environ.get("MI_PRUNER_CUDA_HOST") == "1"
ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
CUDA = ROOT / "csrc" / "cuda"
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")  # the pragmas are nvcc's
# As nvcc is told: sums are fused where the source says so and nowhere else.
FLAGS = ("-std=c++20", "-fPIC", "-fvisibility=hidden", "-O2", "-g1", "-ffp-contract=off", *WARNINGS)
DEFINES = ("-DMI_PRUNER_CUDA_HOST", "-DTORCH_TARGET_VERSION=0x020b000000000000")


@dataclasses.dataclass(frozen=True)
class Way:
    """To build: where, and what a sanitizer sees. What the harness does, it tells it itself."""

    folder: Path
    harness_flags: tuple[str, ...] = ()
    sanitizer_flags: tuple[str, ...] = ()  # of what is seen
    seen: tuple[str, ...] = ()  # stems of sources, beside the kernels

    @property
    def library(self) -> Path:
        return self.folder / "cuda_host.so"

    def compiled(self, source: Path) -> Path:
        """Compiles it, if it has changed since the last time: what has no flags of its own, for all ways."""
        seen = source.suffix == ".cu" or source.stem in self.seen
        flags = (*(self.harness_flags if source.parent == HERE else ()), *(self.sanitizer_flags if seen else ()))
        target = (self.folder if flags else PLAIN.folder) / f"{source.stem}.o"
        if older(target, (source, *headers())):
            includes = (f"-I{CUDA.parent}", f"-I{HERE}", "-isystem", torch_folder() / "include")
            target.parent.mkdir(parents=True, exist_ok=True)
            make(target, *FLAGS, *DEFINES, *flags, *includes, "-x", "c++", "-c", source)
        return target

    def link(self, target: Path, sources: Iterable[Path], *flags: object) -> Path:
        """The library or program `target` of the folder, if it is older than what it is made of."""
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            objects = list(threads.map(self.compiled, sources))
        if older(target, objects):
            make(target, *self.sanitizer_flags[:1], *objects, *flags)
        return target


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


def make(target: Path, *flags: object) -> None:
    """By the compiler, in one piece: half a file, or one of two processes, would pass for a fresh one."""
    staged = target.with_name(f"{target.name}.{os.getpid()}")
    command = [str(part) for part in (compiler(), *flags, "-o", staged)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{done.args}\n{done.stdout}\n{done.stderr}")
    staged.replace(target)


def torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    return Path(spec.submodule_search_locations[0])


def older(target: Path, sources: Iterable[Path]) -> bool:
    return not target.exists() or target.stat().st_mtime < max(path.stat().st_mtime for path in sources)


def headers() -> list[Path]:
    """What all is made by, with the flags that stand here."""
    return [Path(__file__)] + [
        path for top in (CUDA.parent, HERE) for path in top.rglob("*") if path.suffix in (".h", ".cuh")
    ]


def build(way: Way) -> Path:
    """The library with the operators."""
    sources = (*sorted((CUDA / "launch").glob("*.cu")), CUDA / "host" / "register.cpp", *HARNESS)
    return way.link(way.library, sources, "-shared", f"-L{torch_folder() / 'lib'}", "-ltorch", "-ltorch_cpu")


def build_faults(way: Way) -> Path:
    """The program of faults.cpp."""
    return way.link(way.folder / "faults", (HERE / "faults.cpp", *HARNESS))


def backend(library: Path) -> Backend:
    """The backend "cuda" on a library that `build` made: its operators take CPU tensors."""
    import torch

    from mi_pruner._dispatch import BACKENDS

    torch.ops.load_library(library)
    return dataclasses.replace(BACKENDS["cuda"], device="cpu", missing=None, probe=lambda index: None)
