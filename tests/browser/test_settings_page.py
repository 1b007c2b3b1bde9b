"""Channels on the settings page: the other side's own status and words."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from feed import PATIENCE_SECONDS, setup_audits, tagger
from playwright.sync_api import Browser, Page, expect
from scene import LiveServer, Watched, run_server


class Receiver(ThreadingHTTPServer):
    """Answers every message with what it was told to answer."""

    answer = (200, b"ok")
    messages = 0

    def __init__(self, *address: Any) -> None:
        super().__init__(*address)
        self.may_answer = threading.Event()
        self.may_answer.set()


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.messages += 1
        self.server.may_answer.wait(PATIENCE_SECONDS)
        status, body = self.server.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver(("127.0.0.1", 0), _Handler) as receiver:
        thread = threading.Thread(target=receiver.serve_forever, daemon=True)
        thread.start()
        yield receiver
        receiver.shutdown()
        thread.join()


@pytest.fixture
def telling_server(receiver: Receiver, tmp_path: Path) -> Iterator[LiveServer]:
    """A server whose alerts go to the receiver."""
    webhook = f"http://127.0.0.1:{receiver.server_port}/services/T0/B0/hushhush"
    yield from run_server(tmp_path, slack_webhook_url=webhook, slack_allowed_hosts=["127.0.0.1"])


@pytest.fixture
def settings_page(browser: Browser, telling_server: LiveServer, watched: Watched) -> Iterator[Page]:
    with browser.new_context(base_url=telling_server.address) as context:
        page = context.new_page()
        watched.watch(page, telling_server.address)
        page.goto("/settings")
        yield page


def test_a_test_message_that_arrives_shows_the_answer(settings_page: Page) -> None:
    channel = settings_page.locator("#channel-slack")
    channel.get_by_role("button", name="Send a test message").click()
    notice = channel.get_by_role("status")
    expect(notice).to_contain_text("The test message arrived.")
    expect(notice).to_contain_text("200")
    expect(notice).to_contain_text("ok")


def test_a_button_pressed_twice_sends_one_message_and_keeps_the_keyboard(
    settings_page: Page, receiver: Receiver
) -> None:
    receiver.may_answer.clear()
    channel = settings_page.locator("#channel-slack")
    button = channel.get_by_role("button", name="Send a test message")
    button.press("Enter")
    button.press("Enter")
    receiver.may_answer.set()
    expect(channel.get_by_role("status")).to_contain_text("The test message arrived.")
    expect(button).to_be_focused()
    assert receiver.messages == 1


def test_a_test_message_that_is_refused_shows_the_other_sides_words(
    settings_page: Page, receiver: Receiver
) -> None:
    receiver.answer = (404, b"<b>no_service</b>")
    channel = settings_page.locator("#channel-slack")
    channel.get_by_role("button", name="Send a test message").click()
    notice = channel.get_by_role("status")
    expect(notice).to_contain_text("did not arrive")
    expect(notice).to_contain_text("404")
    expect(notice).to_contain_text("<b>no_service</b>")
    expect(channel.locator("header")).to_contain_text("Off")


def test_news_that_was_given_up_is_shown_with_the_answer_and_tried_again(
    settings_page: Page, telling_server: LiveServer, receiver: Receiver
) -> None:
    receiver.answer = (400, b"invalid_blocks")
    feed = telling_server.feed("tagger")
    feed.send(audits=setup_audits(lost=True))
    feed.send(tagger(100, lost=True), state="finished")
    channel = settings_page.locator("#channel-slack")
    until_given_up(settings_page)
    expect(channel).to_contain_text("Slack answered 400 invalid_blocks")
    receiver.answer = (200, b"ok")
    channel.get_by_role("button", name="Try again").click()
    expect(channel).to_contain_text("tried again now")
    # It looks by itself what became of them.
    expect(channel).to_contain_text("0 waiting, 0 held back, 0 given up")
    expect(channel.get_by_role("button", name="Try again")).to_have_count(0)


def until_given_up(page: Page) -> None:
    """Loads the page until news stands there as given up, and none waits."""
    for _ in range(100):
        page.reload()
        text = page.locator("#channel-slack").inner_text()
        if "given up\n" in text and "0 waiting" in text and "0 given up" not in text:
            return
        page.wait_for_timeout(200)
    raise AssertionError(text)


def test_the_secret_of_a_webhook_is_never_shown(settings_page: Page) -> None:
    expect(settings_page.locator("#channel-slack")).to_contain_text("127.0.0.1")
    assert "hushhush" not in settings_page.content()


def test_a_channel_that_is_not_set_up_says_what_to_set(page: Page, server: LiveServer) -> None:
    page.goto("/settings")
    expect(page.locator("#channel-slack")).to_contain_text("TRAINSANITY_SLACK_WEBHOOK_URL")
