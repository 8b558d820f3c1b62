"""Settings as people, compose files and Kubernetes give them: what counts, what is named, and what stops the start."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from model_store import BUNDLED
from service.web.operations.environment import ELSEWHERE, read_environment
from service.web.operations.settings import Settings, environment, sentences

ROOT = Path(__file__).parents[2]
KEY = "0123456789abcdef-0123"
OF_KEYS = ("api_keys", "api_keys_file", "admin_keys", "admin_keys_file")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine that tests has set."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"LOGPX_{name.upper()}", raising=False)


def refusals(**given: Any) -> list[str]:
    """What stops a start with these arguments, and the environment as it is."""
    with pytest.raises(ValidationError) as caught:
        Settings(**given)
    return sentences(caught.value)


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if name not in OF_KEYS])
@pytest.mark.parametrize("empty", ["", "  ", "\r\n"])
def test_an_empty_variable_is_as_good_as_none(name: str, empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"LOGPX_{name.upper()}", empty)
    assert Settings() == Settings.model_construct()
    assert Settings().host == "127.0.0.1"  # not every interface there is


@pytest.mark.parametrize("name", OF_KEYS)
def test_an_empty_variable_for_keys_stops_the_start(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = f"LOGPX_{name.upper()}"
    monkeypatch.setenv(variable, " ")
    assert refusals() == [f"{variable}: is empty: unset it, or give it a key"]


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("LOGPX_LOG_LEVEL", "INFO", "info"),
        ("LOGPX_LOG_LEVEL", " Warning\r", "warning"),
        ("LOGPX_LOG_FORMAT", "Console", "console"),
        ("LOGPX_EXECUTION_PROVIDER", "CPU", "cpu"),
        ("LOGPX_PORT", " 9000 ", 9000),
        ("logpx_port", "9000", 9000),
        ("LOGPX_TIMEOUT_SECONDS", "\t2.5\n", 2.5),
        ("LOGPX_MODEL", "mnist\r", "mnist"),
        ("LOGPX_MODEL", "Mnist", "Mnist"),  # a name is a name: only words that are chosen from a list have no case
        ("LOGPX_MODEL_STORE", " /models\r\n", Path("/models")),
        ("LOGPX_CORS_ORIGINS", "https://a.org, https://b.org", ("https://a.org", "https://b.org")),
    ],
)
def test_case_and_white_space_do_not_matter(
    variable: str, text: str, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    assert getattr(Settings(), variable.lower().removeprefix("logpx_")) == expected


def test_an_argument_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGPX_PORT", "9000")
    assert Settings(port=8001).port == 8001


@pytest.mark.parametrize("address", ["tcp://10.43.161.118:8000", "udp://10.43.161.118:53", "tcp://[fd00::1]:8000"])
def test_what_kubernetes_sets_for_a_service_called_logpx_changes_nothing(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {
        "LOGPX_PORT": address,
        "LOGPX_SERVICE_HOST": "10.43.161.118",
        "LOGPX_SERVICE_PORT": "8000",
        "LOGPX_SERVICE_PORT_HTTP": "8000",
        "LOGPX_PORT_8000_TCP": address,
        "LOGPX_PORT_8000_TCP_ADDR": "10.43.161.118",
        "LOGPX_PORT_8000_TCP_PORT": "8000",
        "LOGPX_PORT_8000_TCP_PROTO": "tcp",
        "LOGPX_GPU_PORT": address,  # of another Service, called logpx-gpu
        "LOGPX_GPU_SERVICE_HOST": "10.43.161.119",
        "LOGPX_API_KEYS_SERVICE_HOST": "10.43.161.120",
    }.items():
        monkeypatch.setenv(name, text)
    assert Settings() == Settings.model_construct()
    assert [notice.variable for notice in environment().ignored] == ["LOGPX_PORT"]
    assert environment().warnings == ()


def test_a_port_that_is_neither_a_number_nor_of_kubernetes_still_stops_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOGPX_PORT", "http://10.43.161.118:8000")
    (told,) = refusals()
    assert told.startswith("LOGPX_PORT: Input should be a valid integer")


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("LOGPX_PROT", "LOGPX_PORT"),
        ("LOGPX_MODELS", "LOGPX_MODEL"),
        ("LOGPX_NUM_SAMPLE", "LOGPX_NUM_SAMPLES"),
        ("LOGPX_TIMEOUT", "LOGPX_TIMEOUT_SECONDS"),
        ("LOGPX_CORS", "LOGPX_CORS_ORIGINS"),
        ("LOGPX_LOGLEVEL", "LOGPX_LOG_LEVEL"),
        ("logpx_prot", "LOGPX_PORT"),
        ("LOGXP_PORT", "LOGPX_PORT"),
        ("LOGPX_STOER", "LOGPX_MODEL_STORE"),
        ("LOGPX_PROVIDER", "LOGPX_EXECUTION_PROVIDER"),
        ("LOGPX_DRIAN", "LOGPX_DRAIN_SECONDS"),
        ("LOGPX_FILE", None),  # not that of keys, which would stop the start
        ("LOGPX_WORKERS", None),
    ],
)
def test_a_variable_that_is_no_setting_is_named_with_what_may_be_meant(variable: str, meant: str | None) -> None:
    found = read_environment({variable: "9000"}, Settings.model_fields)
    (notice,) = found.warnings
    assert notice.variable == variable
    words = f"did you mean {meant}?" if meant else "docs/operations.md lists them all"
    assert notice.sentence == f"is no setting; {words}"
    assert (found.values, found.refusals) == ({}, ())


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("LOGPX_API_KEY", "LOGPX_API_KEYS"),
        ("LOGPX_APIKEYS", "LOGPX_API_KEYS"),
        ("LOGPX_API_KYES", "LOGPX_API_KEYS"),
        ("LOGPX_ADMIN_KEY", "LOGPX_ADMIN_KEYS"),
        ("LOGPX_API_KEY_FILE", "LOGPX_API_KEYS_FILE"),
        ("LOGPX_KEYS", "LOGPX_API_KEYS"),
        ("LOGPX_KYES", "LOGPX_API_KEYS"),
        ("LOGPIX_API_KEYS", "LOGPX_API_KEYS"),
        ("LOGPXAPI_KEYS", "LOGPX_API_KEYS"),
        ("LOGPX_AUTH_TOKEN", None),
        ("LOGPX_PASSWORD", None),
    ],
)
@pytest.mark.parametrize("text", [KEY, ""])
def test_what_looks_like_keys_and_is_no_setting_stops_the_start_and_is_not_told(
    variable: str, meant: str | None, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    (told,) = refusals()
    words = f"did you mean {meant}?" if meant else "docs/operations.md lists them all"
    assert told == f"{variable}: is no setting, so it would not close the service; {words}"


@pytest.mark.parametrize("variable", ["LOG_LEVEL", "LOG_PORT", "LOGNAME", "PORT", "API_KEY", *sorted(ELSEWHERE)])
def test_other_programs_variables_are_not_ours_to_judge(variable: str) -> None:
    found = read_environment({variable: "value-of-theirs"}, Settings.model_fields)
    assert (found.values, found.warnings, found.ignored, found.refusals) == ({}, (), (), ())


def test_the_variables_passed_over_are_those_of_the_compose_file() -> None:
    used = set(re.findall(r"\$\{(LOGPX_[A-Z_]+)", (ROOT / "docker-compose.yml").read_text()))
    assert used == ELSEWHERE
    assert not used & {f"LOGPX_{name.upper()}" for name in Settings.model_fields}


@pytest.mark.parametrize("name", OF_KEYS)
def test_no_sentence_tells_a_key(name: str, tmp_path: Path) -> None:
    contents = (KEY[:15].encode(), f"{KEY},short".encode(), f"{KEY} \u00fc{KEY}".encode(), KEY.encode() + b"\xff")
    for number, content in enumerate(contents):
        file = tmp_path / str(number)
        file.write_bytes(content)
        (told,) = refusals(**{name: file if name.endswith("_file") else content.decode("utf-8", "surrogateescape")})
        assert told.startswith(f"LOGPX_{name.upper()}: ")
        assert KEY[:15] not in told
        assert "0xff" not in told


@pytest.mark.parametrize("name", ["api_keys_file", "admin_keys_file"])
def test_a_key_given_for_the_file_of_keys_is_not_told(name: str) -> None:
    assert refusals(**{name: KEY}) == [
        f"LOGPX_{name.upper()}: Value error, the file of keys cannot be read: No such file or directory"
    ]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"num_samples": 3}, "LOGPX_NUM_SAMPLES: 3 is too few for some proposals; they take at least 4"),
        ({"num_samples": 200, "max_num_samples": 100}, "LOGPX_MAX_NUM_SAMPLES: 100 is less than the 200 samples"),
        ({"max_num_samples": 399}, "LOGPX_MAX_NUM_SAMPLES: 399 is less than the 400 samples"),
        ({"max_rows": 399}, "LOGPX_MAX_ROWS: 399 is less than the 400 samples"),
        ({"max_rows": 11_000_000}, "LOGPX_MAX_ROWS: 11000000 is more than LOGPX_MAX_QUEUED_ROWS (10000000)"),
        ({"max_queued_rows": 1000}, "LOGPX_MAX_ROWS: 5000000 is more than LOGPX_MAX_QUEUED_ROWS (1000)"),
        (
            {"max_json_bytes": 2000, "max_body_bytes": 1000},
            "LOGPX_MAX_JSON_BYTES: 2000 is more than LOGPX_MAX_BODY_BYTES (1000)",
        ),
        ({"max_answer_bytes": 1663}, "LOGPX_MAX_ANSWER_BYTES: 1663 is less than the 1664 that one estimate may have"),
    ],
)
def test_settings_that_contradict_one_another_stop_the_start(given: dict[str, int], problem: str) -> None:
    (told,) = refusals(**given)
    assert told.startswith(problem)


def test_every_contradiction_is_told_at_once() -> None:
    assert [told.split(":")[0] for told in refusals(num_samples=3, max_num_samples=2, max_rows=11_000_000)] == [
        "LOGPX_NUM_SAMPLES",
        "LOGPX_MAX_NUM_SAMPLES",
        "LOGPX_MAX_ROWS",
    ]


def test_settings_at_their_bounds_are_taken() -> None:
    assert Settings(num_samples=4, max_num_samples=4, max_rows=4, max_queued_rows=4).num_samples == 4
    assert Settings(max_body_bytes=1000).max_json_bytes > 1000  # a default says nothing against it: both bound JSON
    assert Settings(max_json_bytes=1000, max_body_bytes=1000).model_store == BUNDLED
    assert Settings(max_answer_bytes=1664).max_answer_bytes == 1664
