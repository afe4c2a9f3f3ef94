"""Builds the extension module; everything else about the package is in pyproject.toml.

MI_PRUNER_BUILD chooses what is compiled: `auto` (the default: the CPU kernels, and the CUDA kernels where torch has
CUDA and nvcc is found), `cpu`, `cuda`, or `none` (a pure Python package with every operator in plain PyTorch).
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.dist_info import dist_info

ROOT = Path(__file__).resolve().parent
BUILD_DIR = ROOT / "build" / "cmake"  # one for every way of building, so that a second build compiles only the changes
MODES = ("auto", "cpu", "cuda", "none")


def build_mode() -> str:
    mode = os.environ.get("MI_PRUNER_BUILD", "auto")
    if mode not in MODES:
        raise SystemExit(f"MI_PRUNER_BUILD: expected one of {', '.join(MODES)}, got {mode!r}.")
    if mode == "auto" and not sys.platform.startswith("linux"):
        return "none"  # the compiled backends are for Linux; elsewhere the reference serves
    return mode


def require_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise SystemExit(
            "torch is not importable in this build environment: use `pip install --no-build-isolation .` "
            "(or MI_PRUNER_BUILD=none for an installation without compiled kernels)."
        )


def require_wheel() -> None:
    """The command that makes wheels: a part of setuptools since 70.1, of the package wheel before."""
    if not any(map(importlib.util.find_spec, ("setuptools.command.bdist_wheel", "wheel"))):
        raise SystemExit(f"setuptools {setuptools.__version__} is too old: `pip install 'setuptools>=70.1'`.")


def torch_has_cuda() -> bool:
    """Whether the torch that is here is built for CUDA: asked of its file of versions, without importing it."""
    (folder,) = importlib.util.find_spec("torch").submodule_search_locations
    return runpy.run_path(f"{folder}/version.py")["cuda"] is not None


def find_tool(name: str) -> str:
    """A build tool from this Python's own folder (an environment need not be activated) or from PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    found = shutil.which(name, path=path)
    if found is None:
        raise SystemExit(f"{name} is not found: `pip install cmake ninja`, or use MI_PRUNER_BUILD=none.")
    return found


def find_nvcc() -> str | None:
    if os.environ.get("CUDACXX"):
        return shutil.which(os.environ["CUDACXX"])
    homes = [f"{os.environ[name]}/bin" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    path = [*homes, os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]
    return shutil.which("nvcc", path=os.pathsep.join(path))


def cuda_options() -> list[str]:
    mode = build_mode()
    nvcc = find_nvcc() if mode == "cuda" or (mode == "auto" and torch_has_cuda()) else None
    if nvcc is not None:
        return [f"-DMI_PRUNER_CUDA={'ON' if mode == 'cuda' else 'AUTO'}", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    if mode == "cuda":
        raise SystemExit("MI_PRUNER_BUILD=cuda, but nvcc is not found: set CUDA_HOME, or use MI_PRUNER_BUILD=cpu.")
    return ["-DMI_PRUNER_CUDA=OFF"]


def cmake_commands() -> tuple[list[str], list[str]]:
    """Configure and build; raises SystemExit, with what to do about it, where something that they need is missing."""
    require_torch()
    cmake, ninja = find_tool("cmake"), find_tool("ninja")
    configure = [
        *(cmake, "-S", str(ROOT), "-B", str(BUILD_DIR), "-G", "Ninja"),
        *(f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DPython_EXECUTABLE={sys.executable}"),
        *cuda_options(),
        *shlex.split(os.environ.get("CMAKE_ARGS", "")),
    ]
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(len(os.sched_getaffinity(0)))
    return configure, [cmake, "--build", str(BUILD_DIR), "--target", "_C", "--parallel", jobs]


class CMakeBuild(build_ext):
    """Has CMake build `_C.abi3.so` and puts it where setuptools expects the extension module."""

    def build_extension(self, ext: Extension) -> None:
        for command in cmake_commands():
            if subprocess.run(command, check=False).returncode:
                raise SystemExit("CMake failed (see above). MI_PRUNER_BUILD=none installs without compiling.")
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # Replaced, not overwritten: a process that has the old file loaded keeps it intact.
        staged = target.with_suffix(".new")
        shutil.copyfile(BUILD_DIR / target.name, staged)
        staged.replace(target)


class DistInfo(dist_info):
    """The first step of an installation: stops here, before pip fetches what the metadata asks for (a second torch)."""

    def run(self) -> None:
        cmake_commands()
        super().run()


require_wheel()
extension = {
    "ext_modules": [Extension("mi_pruner._C", sources=[], py_limited_api=True)],
    "cmdclass": {"build_ext": CMakeBuild, "dist_info": DistInfo},
    "options": {"bdist_wheel": {"py_limited_api": "cp310"}},  # no libpython in it: any Python >= 3.10 loads it
}
setup(license="Apache-2.0", **({} if build_mode() == "none" else extension))
