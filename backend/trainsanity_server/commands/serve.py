"""`trainsanity serve`."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click
import uvicorn
from fastapi import FastAPI

from trainsanity_server.app import create_app
from trainsanity_server.commands.terminal import (
    Refusal,
    database_option,
    log_to_terminal,
    opened,
    plain_refusals,
    read_settings,
    warn_of_unknown_variables,
)
from trainsanity_server.live import LiveHub
from trainsanity_server.settings import Settings, check_bind
from trainsanity_server.storage import schema

# Requests in hand are answered by then.
STOP_SECONDS = 5
BACKLOG = 2048
ANY_ADDRESS = {"0.0.0.0", "::"}


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8321,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@database_option
@click.option("--verbose", is_flag=True, help="Log every request.")
def serve(host: str, port: int, db: str | None, verbose: bool) -> None:
    """Start the server and its dashboard; Ctrl-C stops it."""
    log_to_terminal(verbose=verbose)
    warn_of_unknown_variables()
    with plain_refusals():
        settings = read_settings(db)
        check_bind(settings, host)
        _give_way(settings.niceness)
        _prepare(settings)
    with _listening(host, port) as listener:
        address = _address(host, listener)
        if "base_url" not in settings.model_fields_set:
            settings = settings.model_copy(update={"base_url": address})
        with plain_refusals():
            app = create_app(settings)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=verbose,
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        _run(Server(config, address, app), listener)


class Server(uvicorn.Server):
    """Says where it is as soon as it answers there, and does not wait for open pages to stop."""

    def __init__(self, config: uvicorn.Config, address: str, app: FastAPI) -> None:
        super().__init__(config)
        self._address = address
        self._app = app

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            click.echo(f"trainsanity is at {self._address}  (Ctrl-C stops it)")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        hub: LiveHub = self._app.state.parts.hub
        hub.close()
        await super().shutdown(sockets=sockets)


def _run(server: Server, listener: socket.socket) -> None:
    # uvicorn stops in order and then passes the signal on: to be stopped is no failure.
    signal.signal(signal.SIGTERM, _interrupt)
    # Where the shell has told background jobs to ignore Ctrl-C, it passes nothing on.
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    if server.started:
        click.echo("Stopped.")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Takes the port before anything is started, so that its loss is told in one sentence."""
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise Refusal(
            f"--host must be an address or name of this machine. Received: {host!r} ({error})"
        ) from error
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(place)
            listener.listen(BACKLOG)
        except OSError as error:
            raise Refusal(_why_not(host, port, error)) from error
        yield listener


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} on {host} is in use. Stop what listens there, or choose another port: "
            f"trainsanity serve --port {port + 1 if port < 65535 else port - 1}"
        )
    return f"port {port} on {host} cannot be listened on: {error.strerror}"


def _address(host: str, listener: socket.socket) -> str:
    """The address for a browser on this machine."""
    port = listener.getsockname()[1]
    shown = "127.0.0.1" if host in ANY_ADDRESS else host
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _give_way(niceness: int) -> None:
    """A training on the same machine goes first: where all processors work for it, each moment that
    one of them works for this server is lost to all of them. Threads inherit it.
    """
    if not hasattr(os, "nice") or niceness <= max(0, os.nice(0)):  # Windows has none
        return
    os.nice(niceness - os.nice(0))
    if os.getsid(0) == os.getpid():
        # Between sessions Linux may compare groups instead of processes (sched(7), autogroup). This
        # one is the server's own, unlike that of a shell, where a training may run too.
        with contextlib.suppress(OSError):  # there are no groups, or they must not be changed
            Path("/proc/self/autogroup").write_text(str(niceness), "ascii")


def _prepare(settings: Settings) -> None:
    """Opens the database once before the server starts, for an error in one sentence."""
    with opened(settings) as database:
        schema.prepare(database)
