"""A test that did not run proves nothing: a skipped test, or one expected to fail, fails the session."""

import pytest


def _without_result(reporter: pytest.TerminalReporter | None) -> int:
    return sum(len(reporter.stats.get(key, [])) for key in ("skipped", "xfailed")) if reporter else 0


def pytest_sessionfinish(session: pytest.Session) -> None:
    # A session with no test at all fails by itself, with pytest's exit code 5.
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.exitstatus == pytest.ExitCode.OK and _without_result(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if count := _without_result(terminalreporter):
        terminalreporter.write_line(f"{count} skipped or expected to fail: that counts as a failure here", red=True)
