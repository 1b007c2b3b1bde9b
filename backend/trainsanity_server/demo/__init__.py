"""`trainsanity demo`: a real server, four real trainings, and what each of them hid."""

from trainsanity_server.demo.command import demo

__all__ = ["demo"]
