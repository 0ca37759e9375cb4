"""HOST:PORT."""

from ipaddress import ip_address


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT. Raises ValueError for anything else."""
    host, colon, port = address.rpartition(":")
    plain = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not plain or (":" in host) != (plain != host) or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"address {address!r} is not HOST:PORT, such as 127.0.0.1:8001 or [::1]:8001")
    return plain, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host. A name is taken for another machine's, but for `localhost`."""
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"
