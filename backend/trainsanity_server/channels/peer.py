"""Who may be talked to: checked by the address that answered, not by what a name said before.

A name may resolve to one address when it is checked and to another when it is connected to, so the
only check that holds is the one on the connected peer, before a byte is sent.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from trainsanity_server.channels.channel import DeliveryError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address


@dataclass(frozen=True)
class Allowed:
    """The hosts an operator trusts.

    A name allows that name; an address or a network allows what is not public. So a trusted name
    that suddenly resolves to the machine next door is still refused.

    Attributes:
        names: host names and addresses as they may stand in a URL, in lower case.
        networks: addresses that may be connected to although they are not public.
        setting: which setting to change, for the message.
    """

    names: frozenset[str]
    networks: tuple[Network, ...]
    setting: str

    @classmethod
    def parse(cls, builtin: Collection[str], extra: Collection[str], *, setting: str) -> Allowed:
        entries = [entry.strip().lower().strip("[]") for entry in extra if entry.strip()]
        networks = tuple(net for entry in entries if (net := _network(entry)) is not None)
        return cls(frozenset({*builtin, *entries}), networks, setting)

    def has_host(self, host: str) -> bool:
        host = host.lower().strip("[]")
        return host in self.names or self._covers(host)

    def _covers(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return any(address in network for network in self.networks)

    def check_peer(self, peer: str) -> None:
        """Refuses an address that is neither public nor allowed.

        Raises:
            DeliveryError: permanent; names the address and the setting.
        """
        address = plain(peer)
        if any(address in network for network in self.networks) or is_public(address):
            return
        raise DeliveryError(
            f"the host answered from {address}, which is not a public address, so nothing was "
            f"sent. If that is meant, add {address} to {self.setting}.",
            permanent=True,
        )

    def trace(self) -> Callable[[str, dict[str, Any]], None]:
        """A hook for httpx2's `trace` extension that checks the peer before a byte is sent."""

        def on_event(name: str, info: dict[str, Any]) -> None:
            if not name.endswith("connect_tcp.complete"):
                return
            stream = info["return_value"]
            try:
                self.check_peer(stream.get_extra_info("server_addr")[0])
            except DeliveryError:
                stream.close()
                raise

        return on_event


def plain(peer: str) -> Address:
    """The address without a zone (`fe80::1%eth0`) or an IPv6 wrapping (`::ffff:10.0.0.1`)."""
    address = ipaddress.ip_address(peer.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _network(entry: str) -> Network | None:
    try:
        return ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return None


def is_public(address: Address) -> bool:
    """Whether the address belongs to the public internet, also where it hides an IPv4 address."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.sixtofour or _nat64(address)
        if inner is not None:
            return is_public(inner)
        if address.teredo is not None:
            return False
    return address.is_global and not address.is_multicast


def _nat64(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address not in NAT64:
        return None
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
