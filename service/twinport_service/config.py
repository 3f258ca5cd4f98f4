"""Settings: one table of them, read from a TOML file, ``TWINPORT_SERVE_*`` variables and flags, each overriding the
one before."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .log import FORMAT_NAMES, LEVEL_NAMES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENVIRONMENT_PREFIX = "TWINPORT_SERVE_"
MAX_PORT = 65535


class ConfigError(Exception):
    """A setting cannot be used; the message names it, where it came from and what it may be."""


def _setting(default: Any, text: str, **extra: Any) -> Any:
    return field(default=default, metadata={"help": text, **extra})


@dataclass(frozen=True)
class Settings:
    """Every setting of ``twinportd serve``. Flag ``--control-port``, variable ``TWINPORT_SERVE_CONTROL_PORT``, TOML
    key ``control-port``."""

    root: Path = _setting(Path("server_files"), "The directory whose files are served; made if missing.")
    require_used: bool = _setting(
        False, "Refuse a root that no twinportd has used before, such as the empty directory below a missing mount."
    )
    host: str = _setting(
        "127.0.0.1", "The address to listen on. One that others can reach needs TLS and an account, or --open."
    )
    control_port: int = _setting(5001, "The port of control connections; 0 picks a free one.", least=0, most=MAX_PORT)
    data_port: int = _setting(5002, "The port of data connections; 0 picks a free one.", least=0, most=MAX_PORT)
    classic: bool | None = _setting(
        None,
        "Serve the classic dialect too, which knows neither TLS nor login. The data port is then classic only, and "
        "channels use the control port. On by itself on loopback without accounts, and with --open.",
        kind=bool,
    )
    tls: str = _setting(
        "auto",
        "TLS alone (on), none (off), or TLS, and plaintext too on loopback (auto).",
        choices=("auto", "on", "off"),
    )
    tls_name: str = _setting(
        "", "DNS names and addresses that the server's own certificate shall bear besides this host's.", many=True
    )
    tls_certificate: Path | None = _setting(
        None, "A certificate from elsewhere, with its chain (PEM), instead of the server's own.", kind=Path
    )
    tls_key: Path | None = _setting(None, "The key of that certificate (PEM).", kind=Path)
    open: bool = _setting(False, "Let anybody use the server, without login and without TLS.")
    congestion: str = _setting(
        "auto",
        "Congestion control: bbr on long lines and none that paces on loopback (auto), or what the system has set.",
        choices=("auto", "system"),
    )
    log_format: str = _setting("human", "Lines for people, or one JSON object a line.", choices=FORMAT_NAMES)
    log_level: str = _setting("info", "The least severe log lines to write.", choices=LEVEL_NAMES)
    max_sessions: int = _setting(10_000, "Control connections in all.", least=1)
    max_channels: int = _setting(1024, "Data connections in all, one thread each.", least=1)
    max_unattached: int = _setting(64, "Data connections that have not shown a good ticket yet.", least=1)
    max_sessions_per_address: int = _setting(
        512, "Control connections of one IPv4 address or IPv6 /64; loopback has no such bound.", least=1
    )
    max_sessions_per_user: int = _setting(256, "Control connections of one user who has logged in.", least=1)
    max_unauthenticated: int = _setting(
        512, "Control connections that have not logged in where they must; from half of it on some give way.", least=1
    )
    max_channels_per_address: int = _setting(
        256, "Data connections of one IPv4 address or IPv6 /64; loopback has no such bound.", least=1
    )
    max_channels_per_user: int = _setting(128, "Data connections of one user who has logged in.", least=1)
    limit_loopback: bool = _setting(
        False, "Let the bounds for an address hold for loopback addresses too, behind which tunnels and proxies stand."
    )
    max_bytes_per_second: int = _setting(0, "Bytes per second of all transfers together; 0 is no bound.", least=0)
    max_bytes_per_second_per_user: int = _setting(
        0, "Bytes per second of one user's transfers together; 0 is no bound.", least=0
    )
    audit_max_bytes: int = _setting(64 * 1024 * 1024, "The size at which the audit log is rotated.", least=1)
    audit_keep: int = _setting(8, "Rotated audit logs that are kept.", least=1)
    max_file_bytes: int = _setting(2**63 - 1, "The largest file that is accepted, in bytes.", least=0)
    max_open_uploads: int = _setting(100_000, "Unfinished uploads of one user.", least=1)
    max_reserved_bytes_per_user: int = _setting(2**63 - 1, "What they may hold together, in bytes.", least=0)
    min_free_bytes: int = _setting(
        -1, "What uploads leave free on the disk; -1 is a hundredth of it, at most 256 MiB.", least=-1
    )
    min_free_files: int = _setting(
        -1, "How many inodes uploads and directories leave free; -1 is a hundredth, at most 16,384.", least=-1
    )
    workers: int = _setting(8, "Threads for commands that may wait for the disk.", least=1, most=256)
    greeting_seconds: float = _setting(10.0, "How long a new connection may take to say what it is.", least=0.01)
    login_seconds: float = _setting(20.0, "How long a login may take where one is required.", least=0.01)
    login_delays: bool = _setting(True, "Delay further passwords after wrong ones; off for measurements only.")
    attach_seconds: float = _setting(5.0, "How long a data connection may take to show a good ticket.", least=0.01)
    idle_seconds: float = _setting(300.0, "Silence after which a connection is closed.", least=0.01)
    stall_seconds: float = _setting(30.0, "Silence in mid transfer after which it is given up.", least=0.01)
    drain_seconds: float = _setting(
        1.0, "How long transfers may take to reach a stopping place at SIGTERM.", least=0.01
    )
    classic_grace_seconds: float = _setting(
        1.0, "How long classic transfers may go on at SIGTERM; they cannot be resumed.", least=0.0
    )
    classic_pair_seconds: float = _setting(
        10.0, "How long a classic client may take to open its data connection.", least=0.01
    )
    classic_pair_busy_seconds: float = _setting(3.0, "The same while another client of its address waits.", least=0.01)
    ticket_seconds: int = _setting(3600, "How long a ticket may wait before a channel shows it.", least=1)
    unsent_seconds: float = _setting(
        60.0, "How long an upload of which nothing was sent outlives its control connection.", least=0.0
    )
    upload_keep_seconds: int = _setting(7 * 24 * 3600, "How long an unfinished upload is kept for resuming.", least=1)


def flag_of(item: dataclasses.Field[Any]) -> str:
    """The flag (without dashes) and TOML key of a setting."""
    return item.name.replace("_", "-")


def kind_of(item: dataclasses.Field[Any]) -> type:
    """The type of a setting's values; that of its default, unless the default is to have none."""
    kind: type = item.metadata.get("kind", type(item.default))
    return kind


def load_settings(flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None) -> Settings:
    """The settings in force: flags over environment over file over defaults. Raises ``ConfigError``."""
    values: dict[str, Any] = {}
    known = {flag_of(item): item for item in dataclasses.fields(Settings)}
    for key, value in (_read(file) if file else {}).items():
        if key not in known:
            raise ConfigError(f"{file}: there is no setting {key!r}. Known are: {', '.join(sorted(known))}.")
        values[known[key].name] = _convert(known[key], value, f"{file}: {key}")
    for item in known.values():
        variable = ENVIRONMENT_PREFIX + item.name.upper()
        if variable in environment:
            values[item.name] = _convert(item, environment[variable], variable)
        if flags.get(item.name) not in (None, ()):
            values[item.name] = _convert(item, flags[item.name], f"--{flag_of(item)}")
    return Settings(**values)


def _read(file: Path) -> Mapping[str, Any]:
    try:
        with file.open("rb") as stream:
            values: Mapping[str, Any] = tomllib.load(stream)
            return values
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}. Check --config.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from None


_INTEGER = re.compile("-?[0-9]{1,19}", re.ASCII)
_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def _convert(item: dataclasses.Field[Any], value: Any, origin: str) -> Any:
    kind: Any = kind_of(item)
    meta = item.metadata
    if kind is bool and item.default is None and value == "auto":
        return None
    try:
        if kind is bool:
            converted: Any = value if isinstance(value, bool) else _WORDS[str(value).lower()]
        elif issubclass(kind, Path):
            converted = Path(value)
        elif meta.get("many") and isinstance(value, (list, tuple)):
            converted = ",".join(_plain(kind, part) for part in value)
        else:
            converted = _plain(kind, value)
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{origin}: {value!r} is not {_article(kind)}.") from None
    choices = meta.get("choices")
    if choices and converted not in choices:
        raise ConfigError(f"{origin}: {value!r} is none of {', '.join(choices)}.")
    least, most = meta.get("least"), meta.get("most")
    if (least is not None and converted < least) or (most is not None and converted > most):
        bounds = f"at least {least}" + ("" if most is None else f" and at most {most}")
        raise ConfigError(f"{origin}: {converted} is out of range; it must be {bounds}.")
    return converted


def _plain(kind: type, value: Any) -> Any:
    """``value`` as ``kind``. What Python would take besides (5.7 for 5, 1_0, nan, infinity) is somebody's mistake."""
    if isinstance(value, bool) or (kind is str and not isinstance(value, str)):
        raise ValueError
    if kind is int and not (isinstance(value, int) or (isinstance(value, str) and _INTEGER.fullmatch(value))):
        raise ValueError
    converted = kind(value)
    if kind is float and not math.isfinite(converted):
        raise ValueError
    return converted


def _article(kind: type) -> str:
    names = {bool: "a yes or no", int: "a whole number", float: "a number of seconds", str: "a text"}
    return names.get(kind, "a path")
