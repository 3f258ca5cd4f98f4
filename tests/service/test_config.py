"""Settings: where they come from, which of two wins, and what a wrong one is told."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from twinport_service.config import ENVIRONMENT_PREFIX, ConfigError, Settings, flag_of, kind_of, load_settings

FIELDS = {item.name: item for item in dataclasses.fields(Settings)}


def toml(tmp_path: Path, text: str) -> Path:
    """A configuration file."""
    file = tmp_path / "twinport.toml"
    file.write_text(text)
    return file


def test_the_defaults_are_the_documented_ones() -> None:
    settings = load_settings({}, {}, None)
    assert settings == Settings()
    assert (settings.root, settings.host) == (Path("server_files"), "127.0.0.1")
    assert (settings.control_port, settings.data_port, settings.classic) == (5001, 5002, None)


def test_every_setting_can_come_from_the_file_the_environment_and_a_flag(tmp_path: Path) -> None:
    samples: dict[str, tuple[Any, Any]] = {}
    for name, item in FIELDS.items():
        default = item.default
        if kind_of(item) is bool:
            samples[name] = (not default, str(not default))
        elif "choices" in item.metadata:
            other = next(choice for choice in item.metadata["choices"] if choice != default)
            samples[name] = (other, other)
        elif isinstance(default, int | float):
            samples[name] = (type(default)(7), "7")
        else:
            samples[name] = (kind_of(item)("elsewhere"), "elsewhere")
    for name, (value, word) in samples.items():
        written = (
            str(value).lower() if isinstance(value, bool) else repr(str(value) if isinstance(value, Path) else value)
        )
        file = toml(tmp_path, f"{flag_of(FIELDS[name])} = {written}\n")
        variable = {ENVIRONMENT_PREFIX + name.upper(): word}
        for settings in (
            load_settings({}, {}, file),
            load_settings({}, variable, None),
            load_settings({name: value}, {}, None),
        ):
            assert getattr(settings, name) == value
            others = [other for other in FIELDS if other != name]
            assert all(getattr(settings, other) == FIELDS[other].default for other in others)


def test_a_flag_wins_over_the_environment_and_the_environment_over_the_file(tmp_path: Path) -> None:
    file = toml(tmp_path, "control-port = 1\ndata-port = 1\nworkers = 1\n")
    environment = {"TWINPORT_SERVE_CONTROL_PORT": "2", "TWINPORT_SERVE_DATA_PORT": "2"}
    settings = load_settings({"control_port": 3, "data_port": None}, environment, file)
    assert (settings.control_port, settings.data_port, settings.workers) == (3, 2, 1)


def test_what_decides_by_itself_can_be_told_to(tmp_path: Path) -> None:
    switched_on = toml(tmp_path, "classic = true\n")
    assert load_settings({}, {ENVIRONMENT_PREFIX + "CLASSIC": "auto"}, switched_on).classic is None


def test_a_list_may_be_one_text_or_several(tmp_path: Path) -> None:
    listed = toml(tmp_path, 'tls-name = ["a.example", "192.0.2.1"]\n')
    assert load_settings({}, {}, listed).tls_name == "a.example,192.0.2.1"
    assert load_settings({"tls_name": ("b.example", "c.example,d.example")}, {}, listed).tls_name == (
        "b.example,c.example,d.example"
    )
    assert load_settings({"tls_name": ()}, {}, listed).tls_name == "a.example,192.0.2.1"
    with pytest.raises(ConfigError, match="tls-name"):
        load_settings({}, {}, toml(tmp_path, "tls-name = [5]\n"))


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("1", True),
        ("true", True),
        ("YES", True),
        ("On", True),
        ("0", False),
        ("false", False),
        ("no", False),
        ("off", False),
    ],
)
def test_yes_and_no(word: str, value: bool) -> None:
    assert load_settings({}, {"TWINPORT_SERVE_CLASSIC": word}, None).classic is value


@pytest.mark.parametrize(
    ("variable", "word", "told"),
    [
        ("CONTROL_PORT", "x", "TWINPORT_SERVE_CONTROL_PORT: 'x' is not a whole number."),
        ("CONTROL_PORT", "", "is not a whole number"),
        ("CONTROL_PORT", "5.0", "is not a whole number"),
        ("CONTROL_PORT", "5_0", "is not a whole number"),
        ("CONTROL_PORT", " 5", "is not a whole number"),
        ("CONTROL_PORT", "１２", "is not a whole number"),
        ("CONTROL_PORT", "-1", "out of range; it must be at least 0 and at most 65535"),
        ("CONTROL_PORT", "65536", "out of range; it must be at least 0 and at most 65535"),
        ("WORKERS", "0", "at least 1 and at most 256"),
        ("MAX_SESSIONS", "0", "at least 1"),
        ("IDLE_SECONDS", "soon", "is not a number of seconds"),
        ("IDLE_SECONDS", "nan", "is not a number of seconds"),
        ("IDLE_SECONDS", "inf", "is not a number of seconds"),
        ("IDLE_SECONDS", "1e999", "is not a number of seconds"),
        ("IDLE_SECONDS", "0", "at least 0.01"),
        ("CLASSIC", "maybe", "is not a yes or no"),
        ("LOG_FORMAT", "xml", "is none of human, json"),
        ("LOG_LEVEL", "loud", "is none of debug, info, warning, error"),
    ],
)
def test_a_wrong_variable_is_told_with_what_it_may_be(variable: str, word: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_settings({}, {ENVIRONMENT_PREFIX + variable: word}, None)
    assert ENVIRONMENT_PREFIX + variable in str(refused.value)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("control-port = true\n", "control-port: True is not a whole number"),
        ("control-port = 5.5\n", "control-port: 5.5 is not a whole number"),
        ("control-port = []\n", "is not a whole number"),
        ("host = 5\n", "host: 5 is not a text"),
        ("root = 5\n", "root: 5 is not a path"),
        ("idle-seconds = nan\n", "is not a number of seconds"),
        ("idle-seconds = true\n", "is not a number of seconds"),
        ("classic = 'perhaps'\n", "is not a yes or no"),
        ("control_port = 1\n", "there is no setting 'control_port'. Known are: attach-seconds,"),
        ("[server]\ncontrol-port = 1\n", "there is no setting 'server'"),
        ("control-port = \n", "is not valid TOML"),
        ("control-port = 1\ncontrol-port = 2\n", "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_told_with_its_name(tmp_path: Path, text: str, told: str) -> None:
    file = toml(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        load_settings({}, {}, file)
    assert str(file) in str(refused.value)
    assert told in str(refused.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(ConfigError, match=r"cannot read .*: .*\. Check --config"):
            load_settings({}, {}, path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load_settings({}, {}, tmp_path / "binary.toml")


def test_a_wrong_flag_is_named() -> None:
    with pytest.raises(ConfigError, match="--control-port: 70000 is out of range"):
        load_settings({"control_port": "70000"}, {}, None)


def test_every_setting_says_what_it_is_and_has_a_bound() -> None:
    for name, item in FIELDS.items():
        assert item.metadata["help"].endswith("."), name
        if isinstance(item.default, int | float) and not isinstance(item.default, bool):
            assert item.metadata["least"] <= item.default, name
