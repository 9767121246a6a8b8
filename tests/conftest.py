"""What all tests share: GPU tests run only where there is one, and CI may demand that nothing else is skipped.

Tests of the codec can ask to be run with its compiled loops and again without them.
"""

from __future__ import annotations

import importlib.util
import os

import pytest

from polstore.codec import native


@pytest.fixture(scope="module", params=["compiled", "numpy"])
def loops(request):
    """Have a module's tests run twice: both ways of doing the codec's inner loops must give the same bits."""
    if request.param == "compiled" and native.compiled is None:
        pytest.skip("the codec's loops are not compiled here, or POLSTORE_NATIVE=0")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "numpy":
            patch.setattr(native, "compiled", None)
        yield request.param


def _has_gpu() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave GPU tests out, and say so, where there is no GPU: that is no fault of the machine's set-up."""
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu and not _has_gpu():
        config.hook.pytest_deselected(items=gpu)
        items[:] = [item for item in items if item not in gpu]
        config.stash[_LEFT_OUT] = len(gpu)


_LEFT_OUT = pytest.StashKey[int]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash.get(_LEFT_OUT, 0):
        terminalreporter.write_line(f"{config.stash[_LEFT_OUT]} GPU tests left out: no CUDA device here")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With POLSTORE_NO_SKIP set, a skipped test is a failure: CI installs all that tests need."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = len(reporter.stats.get("skipped", [])) if reporter is not None else 0
    if os.environ.get("POLSTORE_NO_SKIP") and skipped and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
