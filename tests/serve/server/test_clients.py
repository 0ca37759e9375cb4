"""What one client may have inside, and how fast it may send."""

from collections.abc import Generator
from contextlib import contextmanager

import pytest

from ferryman.errors import OverloadedError, UsageError
from ferryman.server.clients import ClientLimits, Clients


@contextmanager
def admit(clients: Clients, client: str, images: int) -> Generator[None]:
    clients.enter(client, images)
    yield
    clients.leave(client, images)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_without_limits_all_are_let_in() -> None:
    clients = Clients(ClientLimits())
    for _ in range(1000):
        with admit(clients, "a", 100), admit(clients, "a", 100):
            pass


def test_a_client_may_have_so_many_inside() -> None:
    clients = Clients(ClientLimits(client_images=3))
    with admit(clients, "a", 2):
        with (
            pytest.raises(OverloadedError, match="has 2 images to be answered already, its limit is 3"),
            admit(clients, "a", 2),
        ):
            pass
        with admit(clients, "a", 1), admit(clients, "b", 3):
            pass
    with (
        pytest.raises(UsageError, match="4 images at a time are more than a client's limit of 3"),
        admit(clients, "a", 4),
    ):
        pass
    with admit(clients, "a", 3):
        pass


def test_a_client_may_send_so_fast() -> None:
    clock = Clock()
    clients = Clients(ClientLimits(client_rate=10, client_burst=5), clock)

    def send(client: str, images: int) -> None:
        with admit(clients, client, images):
            pass

    for _ in range(5):
        send("a", 1)
    with pytest.raises(OverloadedError, match="more than 10 images a second") as caught:
        send("a", 1)
    assert caught.value.retry_after_s == pytest.approx(0.1)
    send("b", 8)  # its tokens are its own, and what is larger than the bucket leaves a debt
    clock.now += 0.3
    send("a", 1)
    with pytest.raises(OverloadedError) as caught:
        send("b", 1)
    assert caught.value.retry_after_s == pytest.approx(0.1)
    clock.now += 3600
    for _ in range(5):  # no more than the burst has gathered
        send("a", 1)
    with pytest.raises(OverloadedError):
        send("a", 1)


def test_clients_that_left_are_forgotten() -> None:
    clock = Clock()
    clients = Clients(ClientLimits(client_rate=10, client_images=5), clock)
    for number in range(3000):
        clock.now += 1
        with admit(clients, f"client-{number}", 1):
            pass
    assert clients.known <= 1025
