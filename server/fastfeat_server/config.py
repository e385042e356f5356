"""Settings of the server, each from the first place that has it: flag, environment, TOML file, default.

flag --port 7077      environment FASTFEAT_PORT=7077      file  [server] port = 7077
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal, Self

from fastfeat.errors import DataError
from fastfeat.protocol import DEFAULT_PORT, FRAME_SIZE_MAX, FRAME_SIZE_MIN

FSYNC = ("always", "interval", "off")
WORKERS_MAX = 256
NOUNS = {int: "a whole number", float: "a number", str: "text"}  # of a setting's type, for people


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where the server listens, what it allows, and where its store lies.

    host:               a loopback address; "" for no TCP.
    port:               0 takes a free one.
    unix_socket:        a path, or "" for none.
    frame_size_max:     bytes of one frame, either way.
    entities_max:       entities of one GET; bounds how long one request keeps all others waiting.
    connections_max:    open at one time; one more is told so and closed.
    plans_max:          prepared plans of one connection.
    loads_max:          loads at one time; each has a thread.
    handshake_seconds:  until HELLO must have come.
    drain_seconds:      at a stop, for answers under way.

    workers:            reader processes that answer, beside one process that writes; 0: one process does both.
                        `connections_max`, `plans_max` and the like then hold for each of them.
    name:               of the shared memory between them, in /dev/shm; one with a "/" is the path of a directory.
    group:              whose members may read it, and talk to the writer, too; "": this user alone.

    directory:          of the store's log, snapshots and history; "" for a store in memory alone.
    fsync:              "always": a write is answered when the disk has it; "interval": when the log has it, which is
                        synced every `fsync_interval` seconds; "off": the log is synced when the system likes.
    snapshot_seconds:   between snapshots.
    snapshots, history: pyarrow.fs URLs where these lie instead, such as s3://bucket/prefix; "" for in the directory.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    unix_socket: str = ""
    frame_size_max: int = FRAME_SIZE_MAX
    entities_max: int = 16_384
    connections_max: int = 1024
    plans_max: int = 1024
    loads_max: int = 4
    handshake_seconds: float = 10.0
    drain_seconds: float = 10.0
    workers: int = 0
    name: str = "fastfeat"
    group: str = ""
    directory: str = ""
    fsync: Literal["always", "interval", "off"] = "always"
    fsync_interval: float = 0.1
    snapshot_seconds: float = 900.0
    snapshots: str = ""
    history: str = ""

    def __post_init__(self) -> None:
        if not self.host and not self.unix_socket:
            raise DataError("config: no host and no unix_socket, so nobody could connect; set one")
        check_host(self.host)
        check_range("port", self.port, 0, 65_535)
        check_range("frame_size_max", self.frame_size_max, FRAME_SIZE_MIN, 1 << 30)
        check_range("entities_max", self.entities_max, 1, 1 << 24)
        for name in ("connections_max", "plans_max", "loads_max"):
            check_range(name, getattr(self, name), 1, 1 << 20)
        check_range("workers", self.workers, 0, WORKERS_MAX)
        if not self.name:
            raise DataError("config: name is empty; the shared memory needs one")
        for name in ("handshake_seconds", "drain_seconds"):
            check_range(name, getattr(self, name), 0, 3600)
        self._check_storage()

    def _check_storage(self) -> None:
        check_range("fsync_interval", self.fsync_interval, 0.001, 60)
        check_range("snapshot_seconds", self.snapshot_seconds, 1, 30 * 86_400)
        if self.fsync not in FSYNC:
            raise DataError(f"config: fsync={self.fsync!r} is not one of {', '.join(FSYNC)}")
        for name in ("snapshots", "history"):
            url = getattr(self, name)
            if url and not self.directory:
                raise DataError(f"config: {name}={url!r} without a directory, where the log must be; set one")

    @classmethod
    def read(
        cls,
        flags: Mapping[str, Any] | None = None,
        *,
        file: str | Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Self:
        """The settings in force. A flag that is None was not given; `file` may also come from FASTFEAT_CONFIG.

        Raises DataError that names the setting, where it came from and what it must be.
        """
        environ = os.environ if environ is None else environ
        file = file or environ.get("FASTFEAT_CONFIG")
        flags = {name: value for name, value in (flags or {}).items() if value is not None}
        from_file = read_file(Path(file)) if file else {}
        known = {field.name: type(field.default) for field in fields(cls)}
        values: dict[str, Any] = {}
        for given, where in (
            (from_file, f"file {file}"),
            (environment(environ, known), "environment"),
            (flags, "flag"),
        ):
            for name, value in given.items():
                if name not in known:
                    raise DataError(f"config: {where} sets {name!r}, which is unknown; known are {', '.join(known)}")
                values[name] = convert(name, value, known[name], where)
        return cls(**values)


def as_environment(config: Config) -> dict[str, str]:
    """The environment in which Config.read() gives these settings again, for a process of our own."""
    outer = {key: value for key, value in os.environ.items() if key != "FASTFEAT_CONFIG"}
    return outer | {f"FASTFEAT_{field.name.upper()}": str(getattr(config, field.name)) for field in fields(config)}


def environment(environ: Mapping[str, str], known: Mapping[str, type]) -> dict[str, str]:
    return {name: environ[key] for name in known if (key := f"FASTFEAT_{name.upper()}") in environ}


def read_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            section = tomllib.load(file).get("server", {})
    except OSError as error:
        raise DataError(f"config: {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"config: {path} is not TOML: {error}") from None
    if not isinstance(section, dict):
        raise DataError(f"config: {path} has server = ..., not a table [server]")
    return section


def convert(name: str, value: Any, kind: type, where: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise DataError(f"config: {name}={value!r} ({where}) is not {NOUNS[kind]}")
    if kind is str and not isinstance(value, str):
        raise DataError(f"config: {name}={value!r} ({where}) is not {NOUNS[str]}")
    try:
        converted = kind(value)
    except (ValueError, OverflowError):
        raise DataError(f"config: {name}={value!r} ({where}) is not {NOUNS[kind]}") from None
    if kind is int and isinstance(value, float) and converted != value:
        raise DataError(f"config: {name}={value!r} ({where}) is not {NOUNS[int]}")
    return converted


def check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise DataError(f"config: {name}={value} is not within {low} to {high}")


def check_host(host: str) -> None:
    """Raises DataError where others than this machine could connect: there is no access control yet."""
    if host in ("", "localhost"):
        return
    try:
        is_loopback = ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise DataError(
            f"config: host {host!r} is not a loopback address, and this version has no access control;"
            " use 127.0.0.1, ::1 or localhost (and a tunnel, such as ssh -L, from elsewhere)"
        )
