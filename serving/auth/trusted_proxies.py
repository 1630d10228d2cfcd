"""Addresses of clients behind reverse proxies, with the semantics of uvicorn's `--forwarded-allow-ips`."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from ipaddress import ip_address, ip_network

_MAX_HOPS = 32
_MAX_REMEMBERED = 1024
_WITH_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([0-9.]{7,15}))(?::([0-9]{1,5}))?")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]{2,45}")

Address = tuple[str, int]
"""IP address and port; the port is 0 if it is unknown."""


class TrustedProxies:
    """The peers whose `X-Forwarded-…` headers are valid.

    Args:
        allowed: IP addresses and networks; `*` stands for every peer.
    """

    def __init__(self, allowed: Collection[str]) -> None:
        self._trusts_all = "*" in allowed
        self._networks = [ip_network(item) for item in allowed if item != "*"]
        self._trusts = lru_cache(_MAX_REMEMBERED)(self._contains)

    def trusts(self, peer: str | None) -> bool:
        """Check whether a peer is a trusted proxy; the peer of a Unix socket has no address."""
        return self._trusts_all or (peer is not None and self._trusts(peer))

    def client(self, forwarded_for: str) -> Address | None:
        """Return the address of the client from `X-Forwarded-For`; None if it contains no address.

        Each proxy appends the address of its own peer, so the client is the last one that is not a trusted
        proxy. Addresses before it, and before a malformed value, may be forged. If every peer is trusted,
        the client is the first address.
        """
        if self._trusts_all:
            return _parse(forwarded_for.partition(",")[0])
        client = None
        for text in reversed(forwarded_for.rsplit(",", _MAX_HOPS)[-_MAX_HOPS:]):
            if (address := _parse(text)) is None:
                break
            client = address
            if not self._trusts(address[0]):
                break
        return client

    def _contains(self, host: str) -> bool:
        try:
            address = ip_address(host)
        except ValueError:
            return False
        # A socket for both versions of IP has IPv4 peers such as ::ffff:10.0.0.1.
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._networks)


def _parse(text: str) -> Address | None:
    """Return an address of the forms `1.2.3.4`, `1.2.3.4:80`, `::1`, `[::1]` and `[::1]:80`."""
    text = text.strip()
    if match := _WITH_PORT.fullmatch(text):
        host, port = match[1] or match[2], int(match[3] or 0)
    elif _IPV6.fullmatch(text):
        host, port = text, 0
    else:
        return None
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return (str(getattr(address, "ipv4_mapped", None) or address), port) if port < 65536 else None
