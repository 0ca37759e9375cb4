"""Whether a server is on this very machine: only then do its counters, such as those of energy, tell of the server."""

import re
import socket
from collections.abc import Iterator
from ipaddress import ip_address

import psutil

from ferryman.addresses import is_loopback, split_address

_SOCKET_FILE = re.compile("unix(-abstract)?:")
_RESOLVER = re.compile("dns:(//[^/]*/)?|ipv[46]:")  # gRPC's names of ways to resolve what follows


def is_nearby(address: str) -> bool:
    """Whether all that an address of a gRPC channel stands for are addresses of this machine.

    A name that nothing resolves is another machine's. A port that is forwarded, as by ssh or kubectl, looks like this
    machine's own: nothing here tells.
    """
    if _SOCKET_FILE.match(address):
        return True
    places = _RESOLVER.sub("", address, count=1).split(",")
    return all(_is_own(host) for host in map(_host_of, places))


def _host_of(place: str) -> str:
    try:
        return split_address(place)[0]
    except ValueError:  # without a port, which gRPC takes too
        return place.strip("[]")


def _is_own(host: str) -> bool:
    if is_loopback(host):
        return True
    try:
        found = {str(place[0]) for *_, place in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return False
    own = set(_list_own())
    return all(is_loopback(one) or ip_address(one.partition("%")[0]).is_unspecified or one in own for one in found)


def _list_own() -> Iterator[str]:
    for addresses in psutil.net_if_addrs().values():
        yield from (one.address for one in addresses)
