"""What people do with alerts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body
from pydantic import Field

from trainsanity_server.api import shapes
from trainsanity_server.parts import PartsOf
from trainsanity_server.services.alerts import MAX_REASON

router = APIRouter(prefix="/alerts/{alert_id}", tags=["alerts"], responses=shapes.PROBLEMS)


class Why(shapes.Body):
    """Optional words for the record."""

    reason: str = Field("", max_length=MAX_REASON)


class Mute(Why):
    """Every mute has an end: after 24 hours where none is given."""

    until: datetime | None = Field(None, description="With a time zone; UTC where there is none.")


OptionalWhy = Annotated[Why | None, Body()]


@router.get("", response_model=shapes.AlertWithHistory)
def get_alert(parts: PartsOf, alert_id: str) -> Any:
    alert = shapes.Alert.model_validate(parts.runs.alert(alert_id))
    return {**alert.model_dump(), "transitions": parts.runs.transitions(alert_id)}


@router.post("/acknowledge", response_model=shapes.Alert)
def acknowledge_alert(parts: PartsOf, alert_id: str, why: OptionalWhy = None) -> Any:
    """Somebody looks after it."""
    return parts.alerts.acknowledge(alert_id, reason=(why or Why()).reason)


@router.post("/mute", response_model=shapes.Alert)
def mute_alert(parts: PartsOf, alert_id: str, mute: Annotated[Mute | None, Body()] = None) -> Any:
    """Nobody hears of it for a while; what is hidden is counted."""
    mute = mute or Mute()
    until = _seconds(mute.until) if mute.until else None
    return parts.alerts.mute(alert_id, reason=mute.reason, until=until)


@router.post("/unmute", response_model=shapes.Alert)
def unmute_alert(parts: PartsOf, alert_id: str, why: OptionalWhy = None) -> Any:
    return parts.alerts.unmute(alert_id, reason=(why or Why()).reason)


@router.post("/resolve", response_model=shapes.Alert)
def resolve_alert(parts: PartsOf, alert_id: str, why: OptionalWhy = None) -> Any:
    """It is over; found again, it opens again."""
    return parts.alerts.resolve(alert_id, reason=(why or Why()).reason)


def _seconds(moment: datetime) -> float:
    """Since the epoch."""
    # Python takes a moment without a zone for one of the zone that this computer is set to.
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
