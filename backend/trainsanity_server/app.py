"""The application: every part is made and wired here, and nowhere else."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import APIRouter, Depends, FastAPI
from fastapi.middleware.gzip import GZipMiddleware

from trainsanity import __version__
from trainsanity_server import guard, pages, path_prefix, problems
from trainsanity_server.access import Keys, require_key
from trainsanity_server.api import alerts as alerts_api
from trainsanity_server.api import channels as channels_api
from trainsanity_server.api import health, ingest, runs, signals
from trainsanity_server.channels import configured
from trainsanity_server.live import LiveHub
from trainsanity_server.metrics import Metrics
from trainsanity_server.parts import Background, Clock, Parts
from trainsanity_server.services.alerts import Alerts
from trainsanity_server.services.channels import Channels
from trainsanity_server.services.deletion import Deletion
from trainsanity_server.services.ingest import Ingest
from trainsanity_server.services.judge import Judge
from trainsanity_server.services.outbox import Outbox
from trainsanity_server.services.relay import Relay
from trainsanity_server.services.rulebook import Rulebook
from trainsanity_server.services.runs import Runs
from trainsanity_server.services.signals import Signals
from trainsanity_server.services.watchman import Watchman
from trainsanity_server.settings import Settings
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.runs import counts_by_state
from trainsanity_server.storage.schema import prepare
from trainsanity_server.storage.sql_points import SqlPointStore

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(
    settings: Settings, *, clock: Clock = time.time, rulebook: Rulebook | None = None
) -> FastAPI:
    """A server that begins its work when its lifespan begins, and leaves nothing behind.

    Args:
        clock: seconds since the epoch.
        rulebook: the rules that judge; all of them where none is given.
    """
    metrics = Metrics()
    app = FastAPI(
        title="trainsanity",
        summary="Checks whether what Keras training shows is true.",
        version=__version__,
        lifespan=_lifespan(settings, clock, metrics, rulebook),
        generate_unique_id_function=lambda route: route.name,
        docs_url=None,  # their scripts would come from elsewhere
        redoc_url=None,
    )
    app.state.keys = Keys(key.get_secret_value() for key in settings.api_keys)
    problems.install(app)
    app.include_router(health.router)
    app.include_router(_api())
    pages.install(app)
    path_prefix.install(app, settings.path_prefix)
    # It leaves streams alone, and what is compressed already.
    app.add_middleware(GZipMiddleware, minimum_size=2000, compresslevel=4)
    app.add_middleware(guard.Guard, settings=settings, metrics=metrics)
    return app


def _api() -> APIRouter:
    api = APIRouter(prefix="/api/v1", dependencies=[Depends(require_key)])
    for part in (ingest, runs, signals, alerts_api, channels_api):
        api.include_router(part.router)
    return api


def _lifespan(
    settings: Settings, clock: Clock, metrics: Metrics, rulebook: Rulebook | None
) -> Lifespan:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        database = Database(settings.database_url, sqlite_synchronous=settings.sqlite_synchronous)
        try:
            prepare(database)
            app.state.parts = parts = _wire(settings, clock, metrics, rulebook, database)
            started: list[Background] = []
            try:
                for thread in parts.threads:
                    thread.start()
                    started.append(thread)
                yield
            finally:
                for thread in reversed(started):
                    thread.stop()
        finally:
            database.close()

    return lifespan


def _wire(
    settings: Settings,
    clock: Clock,
    metrics: Metrics,
    rulebook: Rulebook | None,
    database: Database,
) -> Parts:
    hub = LiveHub()
    points = SqlPointStore(database)
    channels = Channels(database, configured(settings), base_url=settings.base_url, clock=clock)
    outbox = Outbox(database, channels, base_url=settings.base_url, clock=clock)
    alerts = Alerts(
        database,
        hub,
        clock,
        channels=channels.names,
        notify_from=settings.notify_from,
        mute_seconds=settings.mute_hours * 3600.0,
        on_news=outbox.wake,
    )
    judge = Judge(
        database,
        points,
        alerts,
        hub,
        clock,
        rulebook=rulebook or Rulebook(heuristics=settings.heuristics),
        interval_seconds=settings.judge_interval_seconds,
        lease_seconds=settings.judge_lease_seconds,
        histories=settings.histories_in_memory,
        metrics=metrics,
    )
    ingest_service = Ingest(database, points, hub, clock, metrics, on_stored=judge.wake)
    watchman = Watchman(database, alerts, hub, clock, on_silent=judge.wake)
    deletion = Deletion(database, points, hub, clock)
    _watch(metrics, database, hub)
    # The judge starts before packets can come; whoever makes news stops before who delivers it.
    threads: list[Background] = [outbox, judge, watchman, deletion, ingest_service]
    if not database.is_sqlite:
        relay = Relay(database, hub)
        hub.relay = relay.tell
        threads.insert(0, relay)
    return Parts(
        settings=settings,
        clock=clock,
        database=database,
        hub=hub,
        metrics=metrics,
        ingest=ingest_service,
        runs=Runs(database),
        signals=Signals(database, points),
        alerts=alerts,
        deletion=deletion,
        channels=channels,
        outbox=outbox,
        threads=threads,
    )


def _watch(metrics: Metrics, database: Database, hub: LiveHub) -> None:
    def states() -> dict[str, int]:
        with database.read() as session:
            return counts_by_state(session)

    def connections() -> dict[str, float]:
        return {"in_use": database.connections_in_use}

    metrics.watch("trainsanity_runs", "Runs by state.", "state", states)
    metrics.watch("trainsanity_database_connections", "Connections.", "state", connections)
    metrics.watch(
        "trainsanity_streams", "Open live streams.", "kind", lambda: {"sse": hub.watchers}
    )
