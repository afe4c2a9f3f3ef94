"""How the tests are spread over processes, and in which order. What they share is in fixtures.py."""

from __future__ import annotations

import gc

import pytest

from .cuda_host import build as cuda_host

collect_ignore = ["vllm"]  # in an environment of its own, by `make test-vllm`

APART = {f"tests/test_{name}.py" for name in ("backends", "cuda_host", "histogram", "instruction_sets", "triton")}


def pytest_configure(config):
    """The process that only deals tests out to others builds for them, and spares itself torch."""
    is_worker = hasattr(config, "workerinput")
    if cuda_host.CUDA_ON_HOST and not is_worker:
        cuda_host.build(cuda_host.PLAIN)
    if is_worker or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("tests.fixtures")


@pytest.hookimpl(optionalhook=True)  # pytest-xdist need not be there
def pytest_xdist_make_scheduler(config, log):
    """A file goes to one worker, which builds once what its tests share; the long tests of some files one by one."""
    if config.getvalue("dist") != "loadscope":
        return None  # as was asked for
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            return nodeid if file in APART else file

    return Scheduler(config, log)


def pytest_collection_modifyitems(items):
    """What takes long begins first, so that no worker is left with it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish():
    """What was imported stays: it need not be looked at again and again."""
    gc.freeze()
    gc.enable()
