"""The wheels, built and used as users do: from outside the checkout, in a process of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import setuptools

from mi_pruner import _native

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
STABLE_SYMBOLS = Path(__file__).with_name("torch_2_11_stable_symbols.txt")
TOOLS_PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])

# All operators, the packed ones against the dense; arguments: where the package has to be, the backend.
USE = """
import sys, torch, mi_pruner
assert mi_pruner.__file__.startswith(sys.argv[1]), mi_pruner.__file__
ops = torch.ops.mi_pruner
torch.manual_seed(0)
visual, text = torch.randn(2, 9, 16), torch.randn(2, 3, 16)
cu_visual, cu_text, cu_keep = (torch.tensor([0, n, 2 * n], dtype=torch.int32) for n in (9, 3, 4))
packed = visual.flatten(0, 1), text.flatten(0, 1)
with mi_pruner.backend(sys.argv[2]):
    scores = ops.mi_scores(visual, text)
    tokens, indices, gains = ops.prune(visual, text, 4)
    assert torch.equal(ops.greedy_select(scores, visual, 4)[0].sort().values, indices)
    assert torch.equal(ops.mi_scores_varlen(*packed, cu_visual, cu_text, 9, 3), scores.flatten())
    picks, _ = ops.greedy_select_varlen(scores.flatten(), packed[0], cu_visual, cu_keep, 9, 4, 8)
    assert torch.equal(picks.view(2, 4).sort().values, indices)
    assert ops.histogram_mi_scores(visual, text).shape == (2, 9)
    assert torch.equal(ops.prune_varlen(*packed, cu_visual, cu_text, cu_keep, 9, 3, 4, 8)[0], tokens.flatten(0, 1))
assert gains.shape == (2, 4) and gains.isfinite().all()
assert torch.equal(tokens, visual.gather(1, indices[..., None].expand(-1, -1, 16)))
mi_pruner.show_backends()
"""


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PATH": TOOLS_PATH, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def succeed(*command: object, cwd: Path, **environment: str) -> str:
    done = run(*command, cwd=cwd, **environment)
    assert done.returncode == 0, f"{done.args}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def asked_of_setup(expression: str, **environment: str) -> str:
    """What an expression in setup.py is, printed, where nothing is set up."""
    program = f"""
import runpy, setuptools
setuptools.setup = lambda **_: None
print(eval({expression!r}, runpy.run_path("setup.py")))
"""
    return succeed(sys.executable, "-c", program, cwd=ROOT, **environment).strip()


def need(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool, path=TOOLS_PATH) is None]
    if missing:
        pytest.skip(f"not found: {', '.join(missing)}")


def leftovers_in(folder: Path) -> Path:
    """A configuration that sends setuptools' leftovers to `folder`: nothing of an older build gets into an archive."""
    config = folder / "setup.cfg"
    config.write_text(f"[build]\nbuild_base = {folder / 'build'}\n[egg_info]\negg_base = {folder}\n")
    return config


def build_wheel(folder: Path, **environment: str) -> Path:
    environment["DIST_EXTRA_CONFIG"] = str(leftovers_in(folder))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    options = ["--no-build-isolation", "--no-deps", "--wheel-dir", folder]
    succeed(*pip, *options, ROOT, cwd=folder, **environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


def unpack(wheel: Path) -> Path:
    site = wheel.parent / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


@pytest.fixture(scope="module")
def compiled_wheel(tmp_path_factory):
    need("cmake", "ninja", "c++")
    if os.environ.get("MI_PRUNER_BUILD") == "none":
        pytest.skip("MI_PRUNER_BUILD=none")
    # As the installed library, where it can be: what both have in common is compiled once.
    cuda = _native.cuda_kernels_missing() is None and asked_of_setup("find_nvcc()") != "None"
    return build_wheel(tmp_path_factory.mktemp("compiled"), MI_PRUNER_BUILD="cuda" if cuda else "cpu")


@pytest.fixture(scope="module")
def compiled_site(compiled_wheel):
    return unpack(compiled_wheel)


@pytest.fixture(scope="module")
def pure_wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("pure"), MI_PRUNER_BUILD="none")


def test_compiled_wheel_serves_every_python_from_3_10(compiled_wheel):
    assert "-cp310-abi3-linux" in compiled_wheel.name


def test_compiled_wheel_works_outside_the_checkout(compiled_site, tmp_path):
    succeed(sys.executable, "-c", USE, compiled_site, "cpu", cwd=tmp_path, PYTHONPATH=str(compiled_site))


def test_pure_wheel_has_every_operator(pure_wheel, tmp_path):
    assert pure_wheel.name.endswith("-py3-none-any.whl")
    site = unpack(pure_wheel)
    assert not list(site.rglob("*.so"))
    shown = succeed(sys.executable, "-c", USE, site, "reference", cwd=tmp_path, PYTHONPATH=str(site))
    assert "MI_PRUNER_BUILD=none" in next(line for line in shown.splitlines() if line.split()[0] == "cpu")


@pytest.mark.parametrize("wheel", ["compiled_wheel", "pure_wheel"])
def test_wheel_holds_the_whole_package(wheel, request):
    with zipfile.ZipFile(request.getfixturevalue(wheel)) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name and not name.endswith(".so")}
    wanted = {"**/*.py", "**/py.typed", "**/*.safetensors"}
    sources = {f.relative_to(ROOT).as_posix() for pattern in wanted for f in (ROOT / "mi_pruner").glob(pattern)}
    kernels = {f"mi_pruner/{f.relative_to(ROOT).as_posix()}" for f in (ROOT / "triton_kernels").glob("**/*.py")}
    assert packed == sources | kernels


def test_sdist_holds_what_the_build_needs(tmp_path):
    environment = {"DIST_EXTRA_CONFIG": str(leftovers_in(tmp_path)), "MI_PRUNER_BUILD": "none"}
    succeed(sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", tmp_path, cwd=ROOT, **environment)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert packed >= sources | {"CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE", "README.md"}


def test_import_is_lean(compiled_site, tmp_path):
    program = """
import sys, torch
before = set(sys.modules)
import mi_pruner, mi_pruner.triton_kernels
heavy = {"triton", "triton_kernels", "transformers", "matplotlib", "PIL", "sklearn", "skimage", "safetensors", "numpy"}
print(*sorted(heavy & (set(sys.modules) - before)), torch.cuda.is_initialized())
"""
    assert succeed(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(compiled_site)).split() == ["False"]


def test_the_package_can_be_imported_again(compiled_site, tmp_path):
    """Deleted from `sys.modules`, as reloaders do; what still holds the first one goes on working."""
    program = """
import sys, torch, mi_pruner
first, visual = mi_pruner, torch.randn(2, 9, 16)
held = torch.ops.mi_pruner.prune.default
exported = torch.export.export(first.MIPruner(keep=0.5), (visual, visual)).module()
expected = first.prune(visual, visual, 0.5)
for name in [name for name in sys.modules if name.partition(".")[0] == "mi_pruner"]:
    del sys.modules[name]
import mi_pruner
assert mi_pruner is not first
compiled = torch.compile(mi_pruner.MIPruner(keep=0.5), backend="eager", fullgraph=True)
calls = (
    lambda: mi_pruner.prune(visual, visual, 0.5),
    lambda: first.prune(visual, visual, 0.5),
    lambda: held(visual, visual, 5, ratio=0.5),
    lambda: compiled(visual, visual),
    lambda: exported(visual, visual),
)
for call in calls:
    assert all(map(torch.equal, call(), expected))
for package in (first, mi_pruner):
    with package.backend("reference"):
        assert mi_pruner._dispatch.choose("cpu").name == "reference"
"""
    succeed(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(compiled_site))


def test_a_library_that_was_loaded_stays_when_the_package_is_imported_again(compiled_site, tmp_path):
    program = """
import os, sys, torch, mi_pruner
visual = torch.randn(1, 9, 16)
mi_pruner.prune(visual, visual, 5)
for name in [name for name in sys.modules if name.partition(".")[0] == "mi_pruner"]:
    del sys.modules[name]
os.environ["MI_PRUNER_LIBRARY"] = "/nonexistent"
import mi_pruner
from mi_pruner import reference
assert mi_pruner._dispatch.choose("cpu").name == "cpu"
served, compute = [], reference.prune
reference.prune = lambda *a, **o: served.append("reference") or compute(*a, **o)
mi_pruner.prune(visual, visual, 5)
assert served == []
with mi_pruner.backend("reference"):
    mi_pruner.prune(visual, visual, 5)
assert served == ["reference"]
try:
    mi_pruner.prune(visual, visual, 10)
except ValueError as error:
    print(error)
"""
    printed = succeed(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(compiled_site))
    assert printed == "keep: expected 1 <= keep <= N = 9, got 10\n"


def test_triton_kernels_is_not_a_top_level_package():
    done = run(sys.executable, "-c", "import triton_kernels", cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: this folder holds mi_pruner's kernels")


def test_library_that_cannot_be_loaded_leaves_the_reference(compiled_site, tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    compiler = os.environ.get("CXX", "g++")
    succeed(compiler, "-shared", "-x", "c++", os.devnull, "-o", tmp_path / "old.so", cwd=tmp_path)
    program = "import mi_pruner; mi_pruner.show_backends()"
    for path, reason in (
        (broken, "broken.so cannot be loaded"),
        (tmp_path / "absent.so", "MI_PRUNER_LIBRARY: no file"),
        ("old.so", "old.so was built from another version of mi_pruner: build it again"),
    ):
        environment = {"PYTHONPATH": str(compiled_site), "MI_PRUNER_LIBRARY": str(path)}
        lines = succeed(sys.executable, "-c", program, cwd=tmp_path, **environment).splitlines()
        states = {line.split()[0]: line for line in lines}
        assert reason in states["cpu"]
        assert states["reference"].endswith(" available")


def undefined_symbols(library: Path) -> set[str]:
    """The strong undefined symbols that carry no version: those of torch, not of the C and C++ runtimes."""
    lines = succeed("nm", "-D", "--undefined-only", library, cwd=library.parent).splitlines()
    return {name for kind, name in map(str.split, lines) if kind == "U" and "@" not in name}


def test_library_needs_only_symbols_of_torch_2_11(compiled_site):
    need("nm")
    stable = {line for line in STABLE_SYMBOLS.read_text().splitlines() if not line.startswith("#")}
    assert undefined_symbols(compiled_site / "mi_pruner" / "_C.abi3.so") <= stable


def test_library_remembers_no_path_of_the_build_machine(compiled_site):
    content = (compiled_site / "mi_pruner" / "_C.abi3.so").read_bytes()
    assert str(ROOT).encode() not in content
    assert b"site-packages" not in content


def test_kernels_share_no_inline_function_across_instruction_sets(compiled_site):
    """The linker keeps one copy of a weak symbol: it could keep the AVX-512 one for the code of every processor."""
    need("nm")
    objects = [*ROOT.glob("build/cmake/CMakeFiles/kernels_*.dir/csrc/**/*.o")]
    assert objects
    for path in objects:
        lines = succeed("nm", "--defined-only", path, cwd=ROOT).splitlines()
        assert not [line for line in lines if line.split()[-2] in "uVW"], path


def test_isolated_build_says_what_to_do(tmp_path):
    """An environment with setuptools alone, as pip makes it, stops before pip would fetch a second torch."""
    packages = Path(setuptools.__file__).parents[1]
    for pattern in ("setuptools", "setuptools-*.dist-info", "pkg_resources", "_distutils_hack"):
        for found in packages.glob(pattern):
            (tmp_path / found.name).symlink_to(found)
    command = [sys.executable, "-S", "setup.py", "-q", "dist_info", "--output-dir", tmp_path]
    environment = {"PYTHONPATH": str(tmp_path), "MI_PRUNER_BUILD": "auto"}
    done = run(*command, cwd=ROOT, **environment)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "torch is not importable in this build environment: use `pip install --no-build-isolation .` "
        "(or MI_PRUNER_BUILD=none for an installation without compiled kernels)."
    ]


def test_setuptools_that_make_no_wheels_are_refused_in_one_line(tmp_path):
    program = """
import runpy, sys
sys.modules["wheel"] = sys.modules["setuptools.command.bdist_wheel"] = None
sys.argv[0] = "setup.py"
runpy.run_path("setup.py", run_name="__main__")
"""
    for build in ("auto", "none"):
        done = run(sys.executable, "-c", program, "-q", "dist_info", cwd=ROOT, MI_PRUNER_BUILD=build)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line == f"setuptools {setuptools.__version__} is too old: `pip install 'setuptools>=70.1'`."


@pytest.mark.parametrize(
    ("cuda", "build", "expected"), [(None, "auto", "OFF"), ("13.0", "auto", "AUTO"), (None, "cuda", "ON")]
)
def test_cuda_kernels_are_compiled_where_torch_has_cuda_or_by_request(cuda, build, expected, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('torch need not be imported')")
    (tmp_path / "torch" / "version.py").write_text(f"cuda = {cuda!r}")
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh")
    nvcc.chmod(0o755)
    environment = {"PYTHONPATH": str(tmp_path), "CUDACXX": str(nvcc), "MI_PRUNER_BUILD": build}
    assert f"-DMI_PRUNER_CUDA={expected}" in asked_of_setup("' '.join(cuda_options())", **environment).split()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"MI_PRUNER_BUILD": "gpu"}, "MI_PRUNER_BUILD: expected one of auto, cpu, cuda, none, got 'gpu'."),
        ({"MI_PRUNER_BUILD": "cuda", "CUDACXX": "/absent/nvcc"}, "MI_PRUNER_BUILD=cuda, but nvcc is not found:"),
    ],
)
def test_bad_build_option_is_one_line(environment, message, tmp_path):
    need("cmake", "ninja")
    done = run(sys.executable, "setup.py", "-q", "dist_info", "--output-dir", tmp_path, cwd=ROOT, **environment)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(message)
