"""The application: every part is made and wired here, and nowhere else."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import APIRouter, FastAPI

from trainsanity import __version__
from trainsanity_server.api import channels as channels_api
from trainsanity_server.api import health, problems, runs
from trainsanity_server.channels import configured
from trainsanity_server.live import LiveHub
from trainsanity_server.parts import Clock, Parts
from trainsanity_server.services.channels import Channels
from trainsanity_server.services.outbox import Outbox
from trainsanity_server.services.runs import Runs
from trainsanity_server.settings import Settings
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.schema import prepare
from trainsanity_server.worker import Worker

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(settings: Settings, *, clock: Clock = time.time) -> FastAPI:
    """A server that begins its work when its lifespan begins, and leaves nothing behind."""
    app = FastAPI(
        title="trainsanity",
        version=__version__,
        lifespan=_lifespan(settings, clock),
        generate_unique_id_function=lambda route: route.name,
    )
    problems.install(app)
    app.include_router(health.router)
    app.include_router(_api())
    return app


def _api() -> APIRouter:
    api = APIRouter(prefix="/api/v1")
    api.include_router(runs.router)
    api.include_router(channels_api.router)
    return api


def _lifespan(settings: Settings, clock: Clock) -> Lifespan:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        database = Database(settings.database_url, sqlite_synchronous=settings.sqlite_synchronous)
        try:
            prepare(database)
            app.state.parts = parts = _wire(settings, clock, database)
            workers = _workers(parts)
            for worker in workers:
                worker.start()
            try:
                yield
            finally:
                for worker in reversed(workers):
                    worker.stop()
        finally:
            database.close()

    return lifespan


def _wire(settings: Settings, clock: Clock, database: Database) -> Parts:
    hub = LiveHub()
    base_url = settings.base_url
    channels = Channels(database, configured(settings), base_url=base_url, clock=clock)
    outbox = Outbox(database, channels, base_url=base_url, clock=clock)
    return Parts(
        settings=settings,
        clock=clock,
        database=database,
        hub=hub,
        runs=Runs(database),
        channels=channels,
        outbox=outbox,
    )


def _workers(parts: Parts) -> list[Worker]:
    """Threads, in the order in which they start."""
    return [parts.outbox]
