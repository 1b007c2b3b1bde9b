"""A server with keys lets people in with one of them, and out again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from scene import LiveServer, Watched, run_server


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[LiveServer]:
    yield from run_server(tmp_path, api_keys="k3y")


@pytest.fixture
def visitor(browser: Browser, locked: LiveServer, watched: Watched) -> Iterator[Page]:
    with browser.new_context(base_url=locked.address) as context:
        page = context.new_page()
        watched.watch(page, locked.address)
        yield page


def enter(page: Page, key: str) -> None:
    page.get_by_label("Key").fill(key)
    page.get_by_role("button", name="Sign in").click()


def test_a_key_opens_the_page_that_was_wanted_until_one_signs_out(
    visitor: Page, locked: LiveServer
) -> None:
    answer = visitor.goto("/settings?from=a link")
    assert answer is not None
    assert answer.status == 401
    enter(visitor, "wr0ng")
    told = visitor.get_by_role("alert")
    expect(told).to_have_text("This is not one of the server's keys.")
    soft = visitor.locator(".start p").first.evaluate("p => getComputedStyle(p).color")
    expect(told).not_to_have_css("color", soft)
    enter(visitor, "k3y")
    expect(visitor).to_have_url(f"{locked.address}/settings?from=a%20link")
    visitor.get_by_role("button", name="Sign out").click()
    expect(visitor.get_by_role("heading", name="This server asks for a key")).to_be_visible()


def test_the_first_lines_show_that_a_key_is_needed(visitor: Page, locked: LiveServer) -> None:
    visitor.goto("/")
    enter(visitor, "k3y")
    lines = visitor.locator("#first-steps pre")
    expect(lines).to_contain_text(f'SanityCallback("{locked.address}", api_key="...")')
