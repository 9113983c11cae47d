"""Pictures and videos from the network: only from hosts that the operator names, at addresses that were checked."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import httpx2

from foveate.serve.options import MediaOptions
from foveate.serve.problems import RequestError

NAT64 = ipaddress.ip_network("64:ff9b::/96")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Target:
    """An address on the network, taken apart."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """As the `Host` header has it."""
        usual = {"http": 80, "https": 443}[self.scheme]
        return self.host if self.port == usual else f"{self.host}:{self.port}"

    def at(self, address: Address) -> str:
        """The same, with the name resolved."""
        host = f"[{address}]" if address.version == 6 else str(address)
        return f"{self.scheme}://{host}:{self.port}{self.path}"


class Fetcher:
    """Fetches from listed hosts. The address that was checked is the one connected to, so that a name which resolves
    to another address a moment later gains nothing; a redirect is checked as the first address was.

    Args:
        options: hosts, limits.
        kind: `image` or `video`, for the host and for messages.
    """

    def __init__(self, options: MediaOptions, kind: str = "image") -> None:
        self.options, self.kind = options, kind
        self._domains = {domain.lower() for domain in options.domains}

    async def get(self, url: str) -> bytes:
        """The bytes behind an address.

        Raises:
            RequestError: not allowed, not there, too slow or too large.
        """
        try:
            async with asyncio.timeout(self.options.seconds):
                return await self._follow(url)
        except TimeoutError as error:
            raise self._refused("it took too long to fetch") from error
        except httpx2.HTTPError as error:
            raise self._refused("it cannot be fetched") from error

    async def _follow(self, url: str) -> bytes:
        for _ in range(self.options.redirects + 1):
            target = self.parse(url)
            found = await self._once(target, await self._resolve(target))
            if isinstance(found, bytes):
                return found
            url = urljoin(url, found)
        raise self._refused("it redirects too often")

    def parse(self, url: str) -> Target:
        """Take an address apart.

        Raises:
            RequestError: not one of the operator's hosts.
        """
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port
        except ValueError as error:
            raise self._refused("this is no address") from error
        plain = url.isascii() and url.isprintable() and not set(url) & set(" \\")
        if parts.scheme not in ("http", "https") or not plain or parts.username is not None or "@" in parts.netloc:
            raise self._refused("this is no address that can be fetched")
        number = port or {"http": 80, "https": 443}[parts.scheme]
        listed = f"{host}:{number}" in self._domains or (host in self._domains and number in (80, 443))
        if not host or not listed:
            raise self._refused("this server does not fetch from there; send a data URI")
        return Target(parts.scheme, host, number, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))

    async def _resolve(self, target: Target) -> Address:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise self._refused("its host has no address") from error
        addresses = [ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in found]
        if not addresses or not (self.options.private or all(map(is_public, addresses))):
            raise self._refused("its host has an address that is not public")
        return addresses[0]

    async def _once(self, target: Target, address: Address) -> bytes | str:
        """The body, or where it redirects to."""
        headers = {"Host": target.authority, "Accept": f"{self.kind}/*", "Accept-Encoding": "identity"}
        names = {"sni_hostname": target.host}
        client = httpx2.AsyncClient(timeout=self.options.seconds, follow_redirects=False, trust_env=False)
        async with client, client.stream("GET", target.at(address), headers=headers, extensions=names) as response:
            if response.has_redirect_location:
                return str(response.headers["location"])
            if response.status_code != 200:
                raise self._refused(f"its host answered {response.status_code}")
            found = bytearray()
            async for piece in response.aiter_raw():
                found += piece
                if len(found) > self.options.most_bytes:
                    raise self._refused(f"more than {self.options.megabytes:g} MB; send a smaller {self.kind}")
            return bytes(found)

    def _refused(self, why: str) -> RequestError:
        return RequestError(f"{self.kind}_url: {why}.", param="messages", code=f"invalid_{self.kind}")


def is_public(address: Address) -> bool:
    """Whether an address, or the IPv4 address that it stands for, belongs to the open internet."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address.sixtofour is not None or address.teredo is not None:  # tunnels, which nobody needs today
            return False
    closed = address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback
    return address.is_global and not closed
