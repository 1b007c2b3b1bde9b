"""All alert channels, found by walking this folder: one file is one channel."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil

from trainsanity_server.channels.channel import (
    Answer,
    Channel,
    DeliveryError,
    MessageRejectedError,
)
from trainsanity_server.channels.message import Message, News
from trainsanity_server.settings import Settings

__all__ = [
    "Answer",
    "Channel",
    "DeliveryError",
    "Message",
    "MessageRejectedError",
    "News",
    "channel_types",
    "configured",
]


@functools.cache
def channel_types() -> tuple[type[Channel], ...]:
    """Every channel there is, configured or not, sorted by name."""
    found: list[type[Channel]] = []
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        found.extend(
            value
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, Channel)
            and not inspect.isabstract(value)
            and value.__module__ == module.__name__
        )
    return tuple(sorted(found, key=lambda channel: channel.name))


def configured(settings: Settings) -> list[Channel]:
    """The channels that the operator has set up."""
    made = (channel.from_settings(settings) for channel in channel_types())
    return [channel for channel in made if channel is not None]
