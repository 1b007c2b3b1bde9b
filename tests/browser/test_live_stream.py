"""The live stream: one for all tabs, and gone when nobody listens."""

from __future__ import annotations

import threading
import time

import pytest
import urllib3
from feed import HTTP
from playwright.sync_api import BrowserContext, Page, expect
from scene import PATIENCE, LiveServer

TABS = 10
NOTE_STATES = """() => {
  window.states = [];
  const element = document.getElementById("link-state");
  const note = () => window.states.push(element.dataset.state);
  new MutationObserver(note).observe(element, { attributeFilter: ["data-state"] });
}"""
WATCH = """async (topics) => {
  const { LiveStream } = await import("/static/js/live_stream.js");
  window.heard = [];
  window.look = () => {};
  new LiveStream((message) => {
    window.heard.push(message);
    window.look();
  }).watch(topics);
}"""
# Not `wait_for_function`: it asks again by `eval`, which the policy of the pages forbids.
HEARD = """([key, value]) => new Promise((resolve, reject) => {
  window.look = () => window.heard.some((message) => message[key] === value) && resolve();
  window.look();
  setTimeout(() => reject(`no message with ${key} ${value}`), 30_000);
})"""


def test_ten_tabs_load_and_all_are_live(
    context: BrowserContext, server: LiveServer, wrong_run: str
) -> None:
    """A browser opens six connections to a server; a stream in each tab would be too many."""
    feed = server.feed("in ten tabs")
    feed.send({"loss/reported": [1.0]})
    pages = []
    for _ in range(TABS):
        page = context.new_page()
        page.goto(f"/runs/{feed.run_id}")
        pages.append(page)
    for page in pages:
        expect(page.locator("#link-state")).to_contain_text("Live")
    _until(lambda: server.parts.hub.watchers == 1)  # those of earlier tests may only be leaving
    feed.send({"loss/reported": [1.0, 0.9]})
    for page in pages:
        expect(page.locator("#head")).to_contain_text("3 steps")


def test_the_stream_ends_when_the_last_page_closes(page: Page, server: LiveServer) -> None:
    page.goto("/")
    expect(page.locator("#link-state")).to_contain_text("Live")
    _until(lambda: server.parts.hub.watchers == 1)
    page.goto("about:blank")
    _until(lambda: server.parts.hub.watchers == 0)


def test_a_stream_holds_no_database_connection(server: LiveServer) -> None:
    streams = [_stream(server, "*") for _ in range(30)]
    try:
        for stream in streams:
            assert next(_lines(stream)) == b"event: ready"
        _until(lambda: server.parts.hub.watchers == len(streams))
        # The server's own threads use one now and then.
        _until(lambda: server.parts.database.engine.pool.checkedout() == 0)
    finally:
        for stream in streams:
            stream.close()
    _until(lambda: server.parts.hub.watchers == 0)


def test_tells_only_of_the_run_that_is_watched(server: LiveServer) -> None:
    watched, other = server.feed("watched"), server.feed("other")
    stream = _stream(server, watched.run_id)
    lines = _lines(stream)
    assert next(lines) == b"event: ready"
    other.send({"loss/reported": [1.0]})
    watched.send({"loss/reported": [1.0]})
    data = next(line for line in lines if line.startswith(b"data: ") and b"run" in line)
    assert watched.run_id.encode() in data
    stream.close()


def test_needs_to_know_what_to_watch(server: LiveServer) -> None:
    answer = HTTP.request("GET", f"{server.address}/live", headers={"Accept": "text/html"})
    assert answer.status == 422
    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.fixture
def short_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainsanity_server.pages.stream.LIFE_SECONDS", 0.3)


@pytest.mark.usefixtures("short_life")
def test_a_stream_ends_itself_and_the_page_comes_again(page: Page, server: LiveServer) -> None:
    """What happened in between is not missed."""
    feed = server.feed("across streams")
    feed.send({"loss/reported": [1.0]})
    page.goto(f"/runs/{feed.run_id}")
    for steps in (2, 3, 4):
        with page.expect_response(lambda response: "/live?" not in response.url):
            feed.send({"loss/reported": [0.9]})
        expect(page.locator("#head")).to_contain_text(f"{steps} steps")


@pytest.mark.usefixtures("short_life")
def test_shows_nothing_of_a_stream_that_ends_in_good_order(page: Page, server: LiveServer) -> None:
    page.goto("/")
    expect(page.locator("#link-state")).to_contain_text("Live")
    page.evaluate(NOTE_STATES)
    for _ in range(3):  # the list is asked for anew whenever a stream opens
        with page.expect_response(lambda response: "/live?" not in response.url):
            pass
    assert page.evaluate("window.states") == []


def test_more_tabs_than_the_server_takes_topics_hear_of_all_runs(
    page: Page, server: LiveServer
) -> None:
    page.goto("/rules")
    feed = server.feed("the last of many")
    topics = [*(f"00000000-0000-0000-0000-{n:012}" for n in range(100)), feed.run_id]
    page.evaluate(WATCH, topics)
    page.evaluate(HEARD, ["type", "open"])
    feed.send({"loss/reported": [1.0]})
    page.evaluate(HEARD, ["run", feed.run_id])


def _stream(server: LiveServer, topic: str) -> urllib3.BaseHTTPResponse:
    pool = urllib3.PoolManager()
    return pool.request(
        "GET", f"{server.address}/live", fields={"watch": topic}, preload_content=False
    )


def _lines(stream: urllib3.BaseHTTPResponse):
    rest = b""
    while True:
        rest += stream.read1(65536)
        *whole, rest = rest.split(b"\n")
        yield from whole


def _until(is_so) -> None:
    """Waits for what another thread does next."""
    tick = threading.Event()
    end = time.monotonic() + PATIENCE / 1000
    while not is_so():
        assert time.monotonic() < end, "it did not come to that"
        tick.wait(0.02)
