"""A test that did not run proves nothing: a skipped test, or one expected to fail, fails the session."""

import gc
import os
import signal

import pytest

from tests.browser import LEFT_OUT, is_left_out

# Threads that wait for another give their core away. Spinning, as by default, they keep it from the one they wait for
# where the machine is busy with something else too: the tests of training then take several times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# One thread for NumPy's BLAS, as in the service, and for torch: most matrices here are small. With two, and as many
# tests at a time as there are cores, tests of the engine take more than twice as much processor time. Set before NumPy
# is imported, and for every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts what runs in the background with SIGINT ignored, and so would be every process that a test starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _without_result(reporter: pytest.TerminalReporter | None) -> int:
    return sum(len(reporter.stats.get(key, [])) for key in ("skipped", "xfailed")) if reporter else 0


def pytest_collection_finish() -> None:
    """What is imported and collected by now stays: no search for garbage need look at it again.

    PyTorch's exporter sets off so many searches that they are an eighth of its processor time.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    # A session with no test at all fails by itself, with pytest's exit code 5.
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.exitstatus == pytest.ExitCode.OK and _without_result(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if count := _without_result(terminalreporter):
        terminalreporter.write_line(f"{count} skipped or expected to fail: that counts as a failure here", red=True)
    if is_left_out():
        terminalreporter.write_line(LEFT_OUT, yellow=True)
