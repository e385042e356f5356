"""Where a server is: `fastfeat://host:port` or `fastfeat+unix:///path/to/socket`."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from ..errors import ConnectFailed
from ..protocol import DEFAULT_PORT


@dataclass(frozen=True)
class Address:
    """A TCP host and port, or the path of a unix socket (then host is "")."""

    host: str
    port: int
    path: str

    @staticmethod
    def parse(url: str) -> Address:
        """Raises ConnectFailed that shows both forms."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except (ValueError, TypeError, AttributeError):
            raise bad_url(url) from None
        if parts.scheme == "fastfeat" and parts.hostname and parts.path in ("", "/"):
            return Address(parts.hostname, DEFAULT_PORT if port is None else port, "")
        if parts.scheme == "fastfeat+unix" and not parts.netloc and len(parts.path) > 1:
            return Address("", 0, unquote(parts.path))
        raise bad_url(url)

    def __str__(self) -> str:
        if self.path:
            return f"fastfeat+unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"fastfeat://{host}:{self.port}"

    def connect(self, timeout: float | None) -> socket.socket:
        """A connected blocking socket. Raises ConnectFailed."""
        try:
            if self.path:
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    sock.settimeout(timeout)
                    sock.connect(self.path)
                except BaseException:
                    sock.close()
                    raise
            else:
                sock = socket.create_connection((self.host, self.port), timeout)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise ConnectFailed(f"no server at {self}: {error}; is `fastfeat serve` running there?") from error
        return sock


def bad_url(url: object) -> ConnectFailed:
    return ConnectFailed(f"{url!r} is not fastfeat://host:port, fastfeat+unix:///path or fastfeat+shm://NAME")
