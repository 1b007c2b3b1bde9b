"""The list of runs in a browser."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import APIResponse, Browser, Locator, Page, Response, Route, expect
from scene import LiveServer, Watched


def row(page: Page, run_id: str) -> Locator:
    return page.locator(f"#run-{run_id}")


def test_shows_what_was_found_in_each_run(page: Page, wrong_run: str, right_run: str) -> None:
    page.goto("/")
    wrong, right = row(page, wrong_run), row(page, right_run)
    expect(wrong).to_contain_text("Finished")
    expect(wrong.locator(".run-findings .is-critical")).to_contain_text("1 critical")
    expect(right.locator(".run-findings")).to_contain_text("nothing found")
    expect(wrong.locator(".run-steps")).to_contain_text("500")
    expect(wrong.get_by_role("img")).to_have_attribute(
        "aria-label", re.compile("^loss/reported: from")
    )


def test_filters_while_one_types_and_keeps_the_address(
    page: Page, wrong_run: str, right_run: str
) -> None:
    page.goto("/")
    page.get_by_label("Name, tag or id").fill("written x")
    expect(row(page, right_run)).to_have_count(0)
    expect(row(page, wrong_run)).to_be_visible()
    expect(page).to_have_url(re.compile(r"/\?q=written\+x"))
    page.reload()
    expect(page.get_by_label("Name, tag or id")).to_have_value("written x")
    expect(row(page, right_run)).to_have_count(0)


def test_filters_by_project_and_state(page: Page, wrong_run: str, right_run: str) -> None:
    page.goto("/")
    page.get_by_label("Project").select_option("right")
    expect(row(page, wrong_run)).to_have_count(0)
    expect(row(page, right_run)).to_be_visible()
    page.locator(".segments").get_by_text("Failed").click()
    expect(page.get_by_text("No run fits these filters")).to_be_visible()


def open_with_a_list_on_its_way(page: Page) -> list[tuple[Route, APIResponse]]:
    """Answers with a list, the first there already; none reaches the page before it is let go."""
    held: list[tuple[Route, APIResponse]] = []
    page.goto("/")
    expect(page.locator("#link-state")).to_contain_text("Live")
    page.route(is_list, lambda route: hold(route, held))
    ask_for_the_list(page)
    until_held(page, held, 1)
    return held


def test_keeps_to_the_filters_whatever_was_on_its_way_when_they_changed(
    page: Page, wrong_run: str, right_run: str
) -> None:
    held = open_with_a_list_on_its_way(page)
    page.get_by_label("Project").select_option("right")
    until_held(page, held, 2)
    assert parse_qs(urlsplit(held[1][0].request.url).query) == {"project": ["right"]}
    for route, answer in reversed(held):
        route.fulfill(response=answer)
    expect(row(page, wrong_run)).to_have_count(0)
    ask_for_the_list(page)
    until_held(page, held, 3)
    assert parse_qs(urlsplit(held[2][0].request.url).query) == {"project": ["right"]}
    held[2][0].fulfill(response=held[2][1])
    expect(row(page, right_run)).to_be_visible()
    expect(row(page, wrong_run)).to_have_count(0)


def is_list(address: str) -> bool:
    return urlsplit(address).path == "/"


def ask_for_the_list(page: Page) -> None:
    """As when another run appears."""
    page.evaluate("document.body.dispatchEvent(new CustomEvent('live-unknown-run'))")


def until_held(page: Page, held: list[tuple[Route, APIResponse]], count: int) -> None:
    while len(held) < count:
        page.evaluate("1")  # lets the request get here


def test_updates_a_line_in_place(page: Page, server: LiveServer) -> None:
    feed = server.feed("goes on")
    feed.send({"loss/reported": [2.0, 1.9]})
    page.goto("/")
    line = row(page, feed.run_id)
    expect(line.locator(".run-steps")).to_contain_text("2")
    line.evaluate("element => { element.mark = 'same' }")
    feed.send({"loss/reported": [1.8, 1.7, 1.6]}, state="finished")
    expect(line.locator(".run-steps")).to_contain_text("5")
    expect(line).to_contain_text("Finished")
    assert line.evaluate("element => element.mark") == "same"


def test_shows_a_new_run_by_itself(page: Page, server: LiveServer, right_run: str) -> None:
    page.goto("/")
    expect(page.locator("#link-state")).to_contain_text("Live")
    feed = server.feed("just begun")
    feed.send({"loss/reported": [2.0]})
    expect(row(page, feed.run_id)).to_be_visible()


def test_a_run_that_ended_without_samples_waits_for_none(page: Page, server: LiveServer) -> None:
    going, failed = server.feed("just begun"), server.feed("failed at once")
    going.send()
    failed.send(state="failed")
    page.goto("/")
    expect(row(page, going.run_id).locator(".run-findings")).to_have_text("waiting for data")
    expect(row(page, failed.run_id).locator(".run-findings")).to_have_text("nothing measured")


def test_drops_the_line_of_a_deleted_run(page: Page, server: LiveServer) -> None:
    feed = server.feed("goes away")
    feed.send({"loss/reported": [2.0]})
    page.goto("/")
    expect(page.locator("#link-state")).to_contain_text("Live")
    expect(row(page, feed.run_id)).to_be_visible()
    server.parts.deletion.delete(feed.run_id)
    expect(row(page, feed.run_id)).to_have_count(0)


def test_does_not_bring_back_a_run_that_was_deleted_while_the_list_was_on_its_way(
    page: Page, server: LiveServer
) -> None:
    feed = server.feed("goes away")
    feed.send({"loss/reported": [2.0]})
    held = open_with_a_list_on_its_way(page)
    page.evaluate(f"void (window.heard = {heard('document.body', f'live-run-{feed.run_id}')})")
    page.evaluate(f"void (window.swapped = {heard('document', 'htmx:after:swap', 'runs')})")
    server.parts.deletion.delete(feed.run_id)
    page.evaluate("window.heard")
    page.evaluate(f"fetch('/runs/{feed.run_id}/row').then(answer => answer.text())")
    for route, answer in held:
        route.fulfill(response=answer)
    page.evaluate("window.swapped")
    expect(row(page, feed.run_id)).to_have_count(0)


def heard(target: str, event: str, source: str = "") -> str:
    """A promise in JavaScript of an event, where given of one that an element of htmx caused."""
    check = f"event.detail.ctx.sourceElement.id === '{source}'" if source else "true"
    listener = f"event => {check} && done(true)"
    return f"new Promise(done => {{ {target}.addEventListener('{event}', {listener}) }})"


def hold(route: Route, held: list[tuple[Route, APIResponse]]) -> None:
    """Keeps the answer that the server gives now."""
    held.append((route, route.fetch()))


def test_begins_with_three_lines_and_goes_on_by_itself(
    browser: Browser, empty_server: LiveServer, watched: Watched
) -> None:
    with browser.new_context(base_url=empty_server.address) as context:
        page = context.new_page()
        watched.watch(page, empty_server.address)
        page.goto("/")
        expect(page.get_by_text(f'SanityCallback("{empty_server.address}")')).to_be_visible()
        expect(page.locator("#link-state")).to_contain_text("Live")
        feed = empty_server.feed("the first")
        feed.send({"loss/reported": [2.0]})
        expect(row(page, feed.run_id)).to_be_visible()


def test_pages_through_many_runs(browser: Browser, empty_server: LiveServer) -> None:
    for number in range(33):
        empty_server.feed(f"run {number}", started_at=1_700_000_000 + number).send()
    with browser.new_context(base_url=empty_server.address) as context:
        page = context.new_page()
        page.goto("/")
        expect(page.locator(".run")).to_have_count(30)
        expect(page.locator(".run").first).to_contain_text("run 32")
        is_again = re.compile("/[?]cursor=")
        with page.expect_response(lambda r: is_script(r) and is_again.search(r.url)) as again:
            page.get_by_role("link", name="Older").click()
        # What has happened before the page was live is looked at, on older pages too.
        assert again.value.status == 200
        expect(page.locator(".run")).to_have_count(3)
        expect(page.locator(".run").last).to_contain_text("run 0")


def is_script(response: Response) -> bool:
    return response.request.resource_type == "fetch"
