"""Channels on the settings page: the other side's own status and words."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from scene import LiveServer, Watched, run_server


class Receiver(ThreadingHTTPServer):
    """Answers every message with what it was told to answer."""

    answer = (200, b"ok")


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
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
def settings_page(
    browser: Browser, receiver: Receiver, tmp_path: Path, watched: Watched
) -> Iterator[Page]:
    webhook = f"http://127.0.0.1:{receiver.server_port}/services/T0/B0/hushhush"
    servers = run_server(tmp_path, slack_webhook_url=webhook, slack_allowed_hosts=["127.0.0.1"])
    for server in servers:
        with browser.new_context(base_url=server.address) as context:
            page = context.new_page()
            watched.watch(page, server.address)
            page.goto("/settings")
            yield page


def test_a_test_message_that_arrives_shows_the_answer(settings_page: Page) -> None:
    channel = settings_page.locator("#channel-slack")
    channel.get_by_role("button", name="Send a test message").click()
    notice = channel.get_by_role("status")
    expect(notice).to_contain_text("The test message arrived.")
    expect(notice).to_contain_text("200")
    expect(notice).to_contain_text("ok")


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


def test_the_secret_of_a_webhook_is_never_shown(settings_page: Page) -> None:
    expect(settings_page.locator("#channel-slack")).to_contain_text("127.0.0.1")
    assert "hushhush" not in settings_page.content()


def test_a_channel_that_is_not_set_up_says_what_to_set(page: Page, server: LiveServer) -> None:
    page.goto("/settings")
    expect(page.locator("#channel-slack")).to_contain_text("TRAINSANITY_SLACK_WEBHOOK_URL")
