"""A server behind a proxy that serves it under a path of its own, as in host/team/sanity/."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from feed import HTTP, setup_audits, tagger
from playwright.sync_api import Browser, Page, expect
from proxy import PATH, proxy
from scene import LiveServer, Watched, run_server, serving, wait_until_settled

from trainsanity.remote import Remote
from trainsanity_server.pages import front_end


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server whose address is the one that its visitors have."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}{PATH}"
        for server in run_server(tmp_path_factory.mktemp("behind"), base_url=address):
            with serving(proxy(server.address), listener):
                yield LiveServer(address, server.parts)


@pytest.fixture
def page(browser: Browser, behind: LiveServer, watched: Watched) -> Iterator[Page]:
    with browser.new_context(base_url=behind.address) as context:
        page = context.new_page()
        watched.watch(page, f"{behind.address}/")
        yield page


def test_pages_forms_and_live_updates_stay_under_the_path(page: Page, behind: LiveServer) -> None:
    """The page fails its test where it asks for anything outside."""
    page.goto(f"{PATH}/")
    expect(page.locator("#first-steps pre")).to_contain_text(f'SanityCallback("{behind.address}")')
    expect(page.locator("#link-state")).to_have_text("Live")
    feed = behind.feed("behind a proxy")
    feed.send(tagger(40, lost=True), audits=setup_audits(lost=True))
    page.get_by_role("link", name="behind a proxy").click()
    expect(page).to_have_url(f"{behind.address}/runs/{feed.run_id}")
    expect(page.locator("#link-state")).to_have_text("Live")
    expect(page.locator(".plot svg.main-svg").first).to_be_visible()
    feed.send(tagger(40, lost=True, after=40), state="finished")
    expect(page.locator("#head")).to_contain_text("80 steps")
    wait_until_settled(behind, feed.run_id)
    page.locator(".alert").first.get_by_role("button", name="Resolve").click()
    expect(page.locator(".alert").first).to_contain_text("Resolved")
    page.get_by_role("link", name="Settings").click()
    page.get_by_role("link", name="HTTP API").click()
    expect(page.get_by_text(f"{PATH}/api/v1/runs", exact=True).first).to_be_visible()
    page.goto(f"{behind.address}/runs/{feed.run_id}")
    page.get_by_text("Delete this run").click()
    page.get_by_role("button", name="Delete").click()
    expect(page).to_have_url(f"{behind.address}/")


def test_a_page_without_script_follows_its_forms(browser: Browser, behind: LiveServer) -> None:
    feed = behind.feed("without script")
    feed.send(tagger(40, lost=True), audits=setup_audits(lost=True), state="finished")
    wait_until_settled(behind, feed.run_id)
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(f"{behind.address}/runs/{feed.run_id}")
        page.locator(".alert").first.get_by_role("button", name="Acknowledge").click()
        alert = behind.parts.runs.alerts(feed.run_id)[0]
        expect(page).to_have_url(f"{behind.address}/runs/{feed.run_id}#alert-{alert.id}")


def test_clients_name_the_address_with_its_path(behind: LiveServer) -> None:
    feed = behind.feed("by its path")
    feed.send({"loss/reported": [1.0]})
    assert feed.run_url == f"{behind.address}/runs/{feed.run_id}"
    assert Remote(behind.address).run("by its path")["id"] == feed.run_id


def test_the_api_tells_programs_its_path(behind: LiveServer) -> None:
    answer = HTTP.request("GET", f"{behind.address}/openapi.json")
    assert answer.json()["servers"] == [{"url": PATH}]


def test_no_template_leaves_the_path_out() -> None:
    address = re.compile(r'\b(?:href|src|action|hx-get|hx-post)="(?!{{ root }}|{{ address }}|#)')
    for template in (front_end.FOLDER / "templates").rglob("*.html"):
        assert not address.findall(template.read_text(encoding="utf-8")), template


def test_keys_are_kept_from_other_programs_on_the_host(tmp_path: Path) -> None:
    for server in run_server(tmp_path, base_url=f"https://team.example{PATH}", api_keys="k3y"):
        answer = HTTP.request(
            "POST", f"{server.address}/sign-in", fields={"key": "k3y"}, encode_multipart=False,
            headers={"Origin": "https://team.example"}, redirect=False,
        )  # fmt: skip
        assert (answer.status, answer.headers["Location"]) == (303, f"{PATH}/")
        assert f"Path={PATH};" in f"{answer.headers['Set-Cookie']};"
