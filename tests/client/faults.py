"""Everything that can be wrong with a network or a server, each as a server on loopback."""

from __future__ import annotations

import itertools
import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager

import trustme
from loopback import (
    BlackHole,
    Exchange,
    Loopback,
    answers_a_page,
    closed_port,
    drips,
    fails,
    half_closes,
    is_too_busy,
    refuses_evidence,
    resets,
    right,
    says_nothing,
    stores_and_resets,
    talks_garbage,
)

Server = Callable[[], AbstractContextManager[str]]


def behaving(behaviour: Callable[[Exchange], None]) -> Server:
    @contextmanager
    def serve() -> Iterator[str]:
        with closing(Loopback(behaviour)) as server:
            yield server.url

    return serve


@contextmanager
def refused() -> Iterator[str]:
    yield closed_port()


@contextmanager
def black_hole() -> Iterator[str]:
    with closing(BlackHole()) as hole:
        yield hole.url


@contextmanager
def redirected() -> Iterator[str]:
    with closing(Loopback()) as other:
        send_away = behaving(lambda exchange: exchange.answer(302, {}, Location=other.url))
        with send_away() as url:
            yield url
        assert other.requests == []


@contextmanager
def wrongly_certified() -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("another.example").configure_cert(context)
    with closing(Loopback(tls=context)) as server:
        yield server.url


@contextmanager
def on_another_database() -> Iterator[str]:
    """Has taken the first packet of a run, and knows nothing of it when the second comes."""
    requests = itertools.count(1)

    def behaviour(exchange: Exchange) -> None:
        if next(requests) == 2:
            exchange.server.ledger.forget()
        right(exchange)

    with behaving(behaviour)() as url:
        yield url


# All that was measured waits in the spool.
FAULTS: dict[str, Server] = {
    "refused": refused,
    "black hole": black_hole,
    "says nothing": behaving(says_nothing),
    "slow": behaving(drips),
    "reset": behaving(resets),
    "stored, then reset": behaving(stores_and_resets),
    "half-closed": behaving(half_closes),
    "500": behaving(fails),
    "429": behaving(is_too_busy),
    "garbage": behaving(talks_garbage),
    "a page": behaving(answers_a_page),
    "redirect": redirected,
    "wrong certificate": wrongly_certified,
}
# The server has the run in the end.
OVERCOME: dict[str, Server] = {
    "right": behaving(right),
    "413": behaving(refuses_evidence),
    "another database": on_another_database,
}
