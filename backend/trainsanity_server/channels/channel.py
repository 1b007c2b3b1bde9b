"""What a channel is: a way by which messages reach people."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from trainsanity_server.channels.message import Message
    from trainsanity_server.settings import Settings


@dataclass(frozen=True)
class Answer:
    """What the other side said, word for word: shown to people, never summed up."""

    status: int
    body: str

    def __str__(self) -> str:
        return f"{self.status} {self.body}".strip()


class DeliveryError(Exception):
    """A message did not arrive.

    Attributes:
        permanent: nothing sent this way will ever arrive, until a person changes something.
        retry_after: seconds to wait, where the other side said so.
        answer: what the other side said, where it said anything.
    """

    def __init__(
        self,
        reason: str,
        *,
        permanent: bool = False,
        retry_after: float | None = None,
        answer: Answer | None = None,
    ) -> None:
        super().__init__(reason)
        self.permanent = permanent
        self.retry_after = retry_after
        self.answer = answer


class MessageRejectedError(DeliveryError):
    """The other side refuses this one message: a fault of ours. Others may still arrive."""


class Channel(ABC):
    """Base of all channels: subclass it in a file named after the channel.

    A channel knows nothing of retries, queues or other channels: it sends one message once, or
    says why not.
    """

    name: ClassVar[str]  # as in the address of its page, and the file's name
    title: ClassVar[str]  # for people
    setting: ClassVar[str]  # which setting of the operator sets it up
    rate: ClassVar[float]  # messages a second that the other side takes

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: Settings) -> Self | None:
        """The channel as the operator configured it, or None where it is not."""

    @property
    @abstractmethod
    def address(self) -> str:
        """Where it sends to; may hold a secret, so it is only ever compared by its hash."""

    @property
    @abstractmethod
    def masked_address(self) -> str:
        """The address as people may see it in pages, logs and exports."""

    @abstractmethod
    def check(self) -> None:
        """Looks at its own configuration without touching the network.

        Raises:
            DeliveryError: permanent; nothing can be sent with this configuration.
        """

    @abstractmethod
    def send(self, message: Message) -> Answer:
        """Sends one message.

        Returns:
            What the other side answered.

        Raises:
            DeliveryError: it did not arrive.
        """

    def close(self) -> None:  # noqa: B027 - most channels hold nothing open
        """Lets go of connections."""
