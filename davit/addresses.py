"""Tell requests for a server of ours from those that a browser was made to send, and open its port.

A browser that visits another site may be made to ask this machine: under a name of that site which suddenly means
127.0.0.1 (DNS rebinding), or by a form sent across origins. So the address of each request must be one of the
server's own, and so must the origin that a browser tells.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence

from .text import as_line

READING = ("GET", "HEAD", "OPTIONS")

_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:@/\s]+)(?::(\d{1,5}))?", re.IGNORECASE | re.ASCII)
_ORIGIN = re.compile(r"(https?)://(.+)", re.IGNORECASE)
_SHOWN = 100  # signs of a wrong address in the answer
_PORTS = {"http": 80, "https": 443}


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class OwnAddresses:
    """Know by which addresses a server is asked: this machine's own name for itself, and what it is served at.

    Args:
        host: at which it is served; 0.0.0.0 and :: stand for the addresses and the name of this machine. Which
            addresses these are is not looked up, as a site cannot take an address as it can take a name.
        port: at which it is served.
        more: other addresses, NAME or NAME:PORT, of a proxy or a tunnel.

    Raises:
        ValueError: `more` holds what is no address.
    """

    def __init__(self, host: str, port: int, more: Sequence[str] = ()) -> None:
        self._host = _plain(host)
        self._port = port
        self._takes_any_number = self._host in ("0.0.0.0", "::")
        self._names = {self._host}
        if self._takes_any_number:
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
        self._more = set()
        for address in more:
            match = _AUTHORITY.fullmatch(address)
            if match is None:
                raise ValueError(f"`also_at={address}` is no address: NAME or NAME:PORT, such as lab.example.org")
            self._more.add((_plain(match[1]), int(match[2]) if match[2] else None))

    def has(self, authority: str, default_port: int = 80) -> bool:
        """Tell whether an address as browsers write it, NAME:PORT, is the server's own."""
        match = _AUTHORITY.fullmatch(authority)
        if match is None:
            return False
        name, port = _plain(match[1]), int(match[2] or default_port)
        if (name, port) in self._more or (name, None) in self._more:
            return True
        own = is_loopback(name) or name in self._names or (self._takes_any_number and _is_number(name))
        return own and port == self._port

    def has_origin(self, origin: str) -> bool:
        """Tell whether the value of an Origin header is the server's own; "null" is not."""
        match = _ORIGIN.fullmatch(origin)
        return match is not None and self.has(match[2], _PORTS[match[1].lower()])

    def refusal(self, hosts: Sequence[str], origins: Sequence[str]) -> tuple[int, str] | None:
        """Return the status and the sentence for a request by its Host and Origin headers; None where it is right."""
        if len(hosts) != 1:
            return 400, f"a request has one Host, and this one has {len(hosts)}"
        if not self.has(hosts[0]):
            host = as_line(hosts[0])[:_SHOWN]
            remedy = f": --also-at {host} would make it one" if _AUTHORITY.fullmatch(host) else ""
            return 400, f"{host!r} is not an address that this server was started with{remedy}"
        if any(not self.has_origin(origin) for origin in origins):
            return 403, "another site may not ask this server"
        return None


def open_port(host: str, port: int) -> socket.socket:
    """Listen at an address of this machine; port 0 takes a free one.

    Raises:
        ValueError: the port is taken, or the host is not of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{host}:{port} cannot be served ({reason}); --port 0 takes a free one.") from error


def _plain(host: str) -> str:
    return host.strip("[]").rstrip(".").lower()


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
