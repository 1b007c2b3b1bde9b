"""Slack's incoming webhooks.

Others' webhooks have taught: `text` is always set, user strings are escaped, Block Kit's limits are
kept, a message tells of one state only, and Slack's answer is passed on word for word.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, ClassVar, Self
from urllib.parse import SplitResult, urlsplit

import httpx2
from slack_sdk.errors import SlackObjectFormationError

from trainsanity_server.channels.channel import (
    Answer,
    Channel,
    DeliveryError,
    MessageRejectedError,
)
from trainsanity_server.channels.message import Message
from trainsanity_server.channels.peer import Allowed
from trainsanity_server.channels.slack_blocks import payload

if TYPE_CHECKING:
    from trainsanity_server.settings import Settings

HOSTS = ("hooks.slack.com", "hooks.slack-gov.com")
ALLOWED_HOSTS_SETTING = "TRAINSANITY_SLACK_ALLOWED_HOSTS"
URL_SETTING = "TRAINSANITY_SLACK_WEBHOOK_URL"
TIMEOUT = httpx2.Timeout(10.0, connect=5.0)  # seconds; Slack answers within one
MAX_ANSWER_BYTES = 2000  # of Slack's answer that are read; it is one word
# Answers after which this webhook will never work again, whatever status they come with.
# Source: docs.slack.dev, "Sending messages using incoming webhooks", handling errors.
PERMANENT_WORDS = {
    "invalid_token",
    "no_active_hooks",
    "no_service",
    "no_service_id",
    "no_team",
    "team_disabled",
    "channel_not_found",
    "channel_is_archived",
    "action_prohibited",
    "posting_to_general_channel_denied",
    "user_not_found",
}
PERMANENT_STATUS = {401, 403, 404, 410}
REJECTED_STATUS = {400, 413, 422}


class SlackChannel(Channel):
    """A Slack channel, by an incoming webhook."""

    name: ClassVar[str] = "slack"
    title: ClassVar[str] = "Slack"
    setting: ClassVar[str] = URL_SETTING
    # Slack takes one message a second per webhook; more, for long, gets an app switched off.
    rate: ClassVar[float] = 1.0

    def __init__(
        self,
        webhook_url: str,
        *,
        allowed_hosts: Collection[str] = (),
        proxy: str | None = None,
        timeout: httpx2.Timeout = TIMEOUT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._url = webhook_url.strip()
        self._allowed = Allowed.parse(HOSTS, allowed_hosts, setting=ALLOWED_HOSTS_SETTING)
        self._proxy = proxy
        self._timeout = timeout
        self._clock = clock
        # The transport, not a client: it follows no redirect, takes no proxy from the environment
        # and, unlike a client, does not write the webhook's URL into the log.
        self._transport = httpx2.HTTPTransport(proxy=proxy)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self | None:
        secret = settings.slack_webhook_url
        if secret is None or not secret.get_secret_value().strip():
            return None
        return cls(
            secret.get_secret_value(),
            allowed_hosts=settings.slack_allowed_hosts,
            proxy=settings.slack_proxy,
        )

    @property
    def address(self) -> str:
        return self._url

    @property
    def masked_address(self) -> str:
        parts = _parted(self._url)
        if parts is None:
            return "an address that cannot be read"
        tail = parts.path[-4:] if len(parts.path) >= 20 else ""
        return f"{parts.scheme}://{parts.hostname}/…{tail}"

    def check(self) -> None:
        parts = _parted(self._url)
        if parts is None:
            raise DeliveryError(
                f"{URL_SETTING} must be an address as Slack shows it for an incoming webhook. "
                "Received: one that cannot be read.",
                permanent=True,
            )
        host = parts.hostname or ""
        if not self._allowed.has_host(host):
            received = f"{parts.scheme}://{host}" if host else "one that does not begin so"
            raise DeliveryError(
                f"{URL_SETTING} must begin with https:// and one of {', '.join(HOSTS)}. "
                f"Received: {received}. "
                f"To send elsewhere, add the host to {ALLOWED_HOSTS_SETTING}.",
                permanent=True,
            )
        if parts.scheme != "https" and not (parts.scheme == "http" and host not in HOSTS):
            raise DeliveryError(
                f"{URL_SETTING} must begin with https://. Received: {parts.scheme}://{host}.",
                permanent=True,
            )

    def send(self, message: Message) -> Answer:
        self.check()
        try:
            body = payload(message)
        except SlackObjectFormationError as error:
            raise MessageRejectedError(f"the message breaks a limit of Slack's: {error}") from error
        answer, headers = self._post(body)
        if answer.status == 200 and answer.body == "ok":
            return answer
        raise self._failure(answer, headers)

    def close(self) -> None:
        self._transport.close()

    def _post(self, body: Mapping[str, object]) -> tuple[Answer, httpx2.Headers]:
        request = httpx2.Request(
            "POST", self._url, json=body, extensions={"timeout": self._timeout.as_dict()}
        )
        if self._proxy is None:
            # With a proxy the peer is the proxy, which the operator has chosen.
            request.extensions["trace"] = self._allowed.trace()
        try:
            response = self._transport.handle_request(request)
            try:
                return Answer(response.status_code, self._read(response)), response.headers
            finally:
                response.close()
        except httpx2.TimeoutException as error:
            raise DeliveryError(
                f"{self.masked_address} did not answer in time ({_words(error)})"
            ) from error
        except httpx2.HTTPError as error:
            raise DeliveryError(
                f"{self.masked_address} was not reached: {_words(error)}"
            ) from error

    def _read(self, response: httpx2.Response) -> str:
        """The beginning of the body: all that Slack ever says, and no more of what others do."""
        body = bytearray()
        for chunk in response.iter_raw():
            body += chunk
            if len(body) >= MAX_ANSWER_BYTES:
                break
        text = bytes(body[:MAX_ANSWER_BYTES]).decode(errors="replace")
        return "".join(c if c.isprintable() else " " for c in text).strip()

    def _failure(self, answer: Answer, headers: httpx2.Headers) -> DeliveryError:
        said = f"Slack answered {answer}"
        if answer.body in PERMANENT_WORDS or answer.status in PERMANENT_STATUS:
            return DeliveryError(
                f"{said}. The webhook is gone or may not post: "
                f"make a new one and set {URL_SETTING}.",
                permanent=True,
                answer=answer,
            )
        if answer.status in REJECTED_STATUS:
            return MessageRejectedError(f"{said}: it refuses this message", answer=answer)
        if 300 <= answer.status < 400:
            return DeliveryError(f"{said}: a redirect, which is not followed", answer=answer)
        wait = _retry_after(headers.get("retry-after"), now=self._clock())
        return DeliveryError(said, retry_after=wait, answer=answer)


def _parted(url: str) -> SplitResult | None:
    """None for what is no address."""
    try:
        httpx2.URL(url)  # it is what will be asked to send there
        parts = urlsplit(url)
        return None if parts.port == 0 else parts
    except (ValueError, httpx2.InvalidURL):
        return None


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _retry_after(value: str | None, *, now: float) -> float | None:
    """Seconds to wait, from either form of the header; None where it is absent or senseless."""
    if value is None:
        return None
    if re.fullmatch("[0-9]{1,9}", value.strip()):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except ValueError:
        return None
