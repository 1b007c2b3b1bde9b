"""A run's page in a browser."""

from __future__ import annotations

import re

import pytest
from feed import Feed, setup_audits, tagger
from playwright.sync_api import Locator, Page, expect
from scene import LiveServer, wait_until_settled
from sqlalchemy import update

from trainsanity.rules import all_rules
from trainsanity_server.storage.models import RunRow

# Milliseconds from a batch to its alert on the page: two seconds, and what a busy machine may add.
SOON = 10_000


def go_to(page: Page, run_id: str) -> None:
    page.goto(f"/runs/{run_id}")
    expect(page.locator("#link-state")).to_contain_text("Live")


def test_begins_with_what_is_wrong(page: Page, wrong_run: str) -> None:
    go_to(page, wrong_run)
    verdict = page.locator(".verdict-text")
    expect(verdict).to_have_text(
        re.compile(
            r"1 contradiction: Keras reports accuracy 0\.\d+; over real positions it is 0\.\d+"
        )
    )
    assert verdict.bounding_box()["y"] < 300


def test_shows_both_witnesses_and_what_to_do(page: Page, wrong_run: str) -> None:
    go_to(page, wrong_run)
    alert = page.locator(".alert").first
    expect(alert.locator(".witness")).to_have_count(2)
    expect(alert.locator(".witness").nth(0)).to_contain_text("what Keras shows")
    expect(alert.locator(".witness").nth(1)).to_contain_text("over real positions only")
    expect(alert.locator(".alert-do")).to_contain_text("Add()")
    expect(alert.locator(".alert-facts")).to_contain_text("times the")
    expect(alert.locator("figure")).to_have_attribute("data-live-state", "ready")
    expect(alert.locator("figure .plot")).to_contain_text("they part")


def test_says_what_was_compared_when_nothing_is_wrong(page: Page, right_run: str) -> None:
    go_to(page, right_run)
    expect(page.locator(".verdict-text")).to_have_text("No contradiction found")
    expect(page.locator(".verdict-detail")).to_have_text(
        re.compile(r"\d+ of \d+ rules compared their witnesses; \d+ could not be tested\.")
    )


def test_shows_an_alert_soon_and_without_loading_again(page: Page, server: LiveServer) -> None:
    feed = server.feed("goes wrong")
    feed.send(audits=setup_audits(lost=True))
    feed.send({"loss/reported": [2.3] * 20})
    go_to(page, feed.run_id)
    page.evaluate("window.mark = 'same page'")
    expect(page.locator(".alert")).to_have_count(0)
    page.evaluate(
        """() => { window.seen = new Promise(resolve => {
            const look = () => document.querySelector('.alert') && resolve(performance.now());
            new MutationObserver(look).observe(document.body, {childList: true, subtree: true});
        }) }"""
    )
    before = page.evaluate("performance.now()")
    feed.send(tagger(100, lost=True, after=20))
    assert page.evaluate("window.seen") - before < SOON
    expect(page.locator(".verdict-text")).to_contain_text("1 contradiction")
    assert page.evaluate("window.mark") == "same page"


def test_keeps_the_place_while_it_updates(page: Page, server: LiveServer) -> None:
    """Nothing that a reader looks at moves when samples arrive."""
    feed = server.feed("steady")
    feed.send(audits=setup_audits(lost=True))
    feed.send(tagger(200, lost=True))
    wait_for_alert = page.locator(".alert figure[data-live-state=ready]")
    go_to(page, feed.run_id)
    expect(wait_for_alert).to_have_count(1)
    page.locator("#signals").scroll_into_view_if_needed()
    expect(page.locator("#signals figure[data-live-state=ready]").first).to_be_visible()
    page.evaluate(
        """() => { window.shifts = 0; new PerformanceObserver(list => {
            for (const entry of list.getEntries()) window.shifts += entry.value;
        }).observe({type: 'layout-shift', buffered: false}) }"""
    )
    for after in (200, 300, 400):
        feed.send(tagger(100, lost=True, after=after))
    expect(page.locator("#head")).to_contain_text("500 steps")
    expect(page.locator("#signals figure").first).to_have_attribute("data-live-last", "500")
    assert page.evaluate("window.shifts") < 0.01


def test_an_alert_is_acknowledged_and_muted_with_a_reason(page: Page, server: LiveServer) -> None:
    feed = server.feed("to be muted")
    feed.send(audits=setup_audits(lost=True))
    feed.send(tagger(100, lost=True))
    go_to(page, feed.run_id)
    alert = page.locator(".alert")
    alert.get_by_role("button", name="Acknowledge").press("Enter")
    expect(alert.locator(".alert-head .tag")).to_have_text("acknowledged")
    mute = alert.locator("summary", has_text="Mute")
    expect(mute).to_be_focused()  # its neighbour is gone
    mute.click()
    alert.get_by_label("For", exact=True).select_option("8")
    alert.get_by_label("Because").fill("<b>known</b>")
    feed.send(tagger(50, lost=True, after=100))  # a live update must not close the panel
    expect(page.locator("#head")).to_contain_text("150 steps")
    alert.get_by_role("button", name="Mute", exact=True).click()
    expect(page.locator("#handled")).to_contain_text("1 finding muted or resolved")
    expect(page.locator("#handled > summary")).to_be_focused()
    page.locator("#handled summary").first.click()
    expect(alert.locator(".alert-note")).to_contain_text("<b>known</b>")
    expect(page.locator(".verdict-detail")).to_contain_text("1 muted, not counted here")
    stored = server.parts.runs.alerts(feed.run_id)[0]
    assert stored.state == "muted"
    assert stored.muted_until is not None
    assert 7.9 * 3600 < stored.muted_until - server.parts.clock() < 8 * 3600


def test_an_alert_is_resolved(page: Page, server: LiveServer) -> None:
    feed = server.feed("to be resolved")
    feed.send(audits=setup_audits(lost=True))
    feed.send(tagger(100, lost=True), state="finished")
    go_to(page, feed.run_id)
    page.locator(".alert").get_by_role("button", name="Resolve").click()
    expect(page.locator("#alerts")).to_contain_text("Nothing found")
    assert server.parts.runs.alerts(feed.run_id)[0].state == "resolved"


def test_an_action_that_came_too_late_says_so_and_leaves_the_page(
    page: Page, server: LiveServer
) -> None:
    feed = server.feed("too late")
    feed.send(audits=setup_audits(lost=True))
    feed.send(tagger(100, lost=True), state="finished")
    wait_until_settled(server, feed.run_id)
    # The news of it is late: the page stays as it was read.
    page.route("**/parts/alerts", lambda route: route.fulfill(status=204))
    go_to(page, feed.run_id)
    expect(page.locator(".alert")).to_have_count(1)
    server.parts.alerts.resolve(server.parts.runs.alerts(feed.run_id)[0].id)
    page.locator(".alert").get_by_role("button", name="Acknowledge").click()
    expect(page.locator("#alerts-problem")).to_contain_text("resolved")
    expect(page.locator(".alert")).to_have_count(1)


def test_a_part_that_cannot_be_fetched_stays_and_comes_back(page: Page, server: LiveServer) -> None:
    feed = server.feed("server in trouble")
    feed.send(audits=setup_audits(lost=True))
    feed.send(tagger(100, lost=True))
    go_to(page, feed.run_id)
    expect(page.locator("#head")).to_contain_text("100 steps")
    trouble = "**/parts/run_head"
    page.route(trouble, lambda route: route.fulfill(status=503, body="<p>no</p>"))
    with page.expect_response(trouble):
        feed.send(tagger(10, lost=True, after=100))
    expect(page.locator("#head")).to_contain_text("100 steps")
    page.unroute(trouble)
    feed.send(tagger(10, lost=True, after=110))
    expect(page.locator("#head")).to_contain_text("120 steps")


def test_an_open_page_says_that_its_run_was_deleted(page: Page, server: LiveServer) -> None:
    feed = server.feed("deleted while read")
    feed.send({"loss/reported": [1.0]})
    go_to(page, feed.run_id)
    server.parts.deletion.delete(feed.run_id)
    expect(page.locator("#content")).to_contain_text("Not Found")
    expect(page.locator("#content")).to_contain_text(feed.run_id)


def page_at_rest(page: Page, server: LiveServer, name: str) -> Feed:
    """With all that a page asks for as it goes live: the next answer is to what happens next."""
    feed = server.feed(name)
    feed.send(tagger(10, lost=False))
    go_to(page, feed.run_id)
    expect(page.locator(".htmx-request")).to_have_count(0)
    return feed


def let_an_alert_arrive(page: Page, feed: Feed) -> None:
    """At the browser; what the page makes of it comes after."""
    with page.expect_response(lambda answer: "/parts/alerts" in answer.url):
        feed.send(audits=setup_audits(lost=True))
        feed.send(tagger(100, lost=True, after=10))
    for _ in range(20):  # frames, in which it would be shown
        page.evaluate("() => new Promise((done) => setTimeout(() => requestAnimationFrame(done)))")


def press(page: Page, selector: str) -> Locator:
    """Also where the page still moves as the mouse comes."""
    for _ in range(50):
        page.locator(selector).hover()
        page.mouse.down()
        if page.locator(f"{selector}:active").count():
            return page.locator(selector)
        page.mouse.move(0, 0)  # nothing else is to be clicked
        page.mouse.up()
    pytest.fail(f"{selector} never stood still")


def point(page: Page, *kinds: str) -> None:
    page.evaluate(
        "(kinds) => kinds.forEach((kind) => document.dispatchEvent(new PointerEvent(kind)))",
        list(kinds),
    )


def test_nothing_moves_while_a_button_is_pressed(page: Page, server: LiveServer) -> None:
    feed = page_at_rest(page, server, "pressed")
    button = press(page, "#delete-run > summary")
    before = button.bounding_box()
    let_an_alert_arrive(page, feed)
    assert page.locator(".alert").count() == 0
    assert button.bounding_box() == before
    page.mouse.up()
    expect(page.get_by_role("button", name="Delete for good")).to_be_visible()
    expect(page.locator(".alert")).to_have_count(1)


def test_a_press_right_after_another_holds_the_page_too(page: Page, server: LiveServer) -> None:
    feed = page_at_rest(page, server, "pressed twice")
    point(page, "pointerdown", "pointerup", "pointerdown")
    let_an_alert_arrive(page, feed)
    assert page.locator(".alert").count() == 0
    point(page, "pointerup")
    expect(page.locator(".alert")).to_have_count(1)


def test_a_press_holds_an_answer_that_is_being_read(page: Page, server: LiveServer) -> None:
    feed = page_at_rest(page, server, "pressed while read")
    page.evaluate(
        "() => document.addEventListener('htmx:before:response', ({ detail }) => {"
        "  if (detail.ctx.request.action.includes('/parts/alerts'))"
        "    document.dispatchEvent(new PointerEvent('pointerdown')); })"
    )
    let_an_alert_arrive(page, feed)
    assert page.locator(".alert").count() == 0
    point(page, "pointerup")
    expect(page.locator(".alert")).to_have_count(1)


def test_a_run_is_deleted_after_a_second_look(page: Page, server: LiveServer) -> None:
    feed = server.feed("not wanted any more")
    feed.send({"loss/reported": [1.0]}, state="finished")
    wait_until_settled(server, feed.run_id)  # or verdicts come, and all moves, as it is clicked
    go_to(page, feed.run_id)
    page.get_by_text("Delete this run").click()
    page.get_by_role("button", name="Delete for good").click()
    expect(page).to_have_url(f"{server.address}/")
    expect(page.locator(f"#run-{feed.run_id}")).to_have_count(0)
    assert page.goto(f"/runs/{feed.run_id}").status == 404


def test_draws_where_the_mask_ends(page: Page, wrong_run: str) -> None:
    go_to(page, wrong_run)
    mask = page.locator("#mask")
    expect(mask.locator(".mask-verdict").first).to_contain_text(
        "The mask is lost at add, tagger.py:41"
    )
    expect(mask.locator(".layer")).to_have_count(4)
    lost = mask.locator(".layer.is-lost")
    expect(lost).to_contain_text("add")
    expect(lost.locator("path.rail-masked")).to_have_count(2)
    expect(lost.locator("path.rail")).to_have_count(1)


@pytest.mark.parametrize("width", [1280, 390])
def test_a_deep_model_adds_no_empty_page(page: Page, server: LiveServer, width: int) -> None:
    source = {"name": "layer 0", "class": "Embedding", "produced": True, "mask_out": 0.5}
    readers = [
        {"name": f"layer {i}", "inputs": [f"layer {i - 1}"], "mask_in": 0.5, "mask_out": 0.5}
        for i in range(1, 100)
    ]
    feed = server.feed("deep")
    feed.send(audits=[("mask_flow", {"layers": [source, *readers], "outputs": {}})])
    page.set_viewport_size({"width": width, "height": 900})
    go_to(page, feed.run_id)
    expect(page.locator("#mask .layer")).to_have_count(100)
    below = page.evaluate(
        "document.documentElement.scrollHeight"
        " - scrollY - document.querySelector('#setup').getBoundingClientRect().bottom"
    )
    assert below < 200
    expect(page.locator("#mask .layer").first).to_contain_text("Mask made here")
    assert page.locator("#mask .layer-fate").first.evaluate("e => e.checkVisibility()")


def test_shows_the_mask_as_soon_as_it_is_known(page: Page, server: LiveServer) -> None:
    feed = server.feed("mask comes late")
    feed.send({"loss/reported": [2.0]})
    go_to(page, feed.run_id)
    expect(page.locator("#mask")).to_contain_text("has not been looked at yet")
    feed.send({"loss/reported": [1.9]}, audits=setup_audits(lost=False))
    expect(page.locator("#mask .layer")).to_have_count(4)


def test_lists_every_rule_and_says_why_it_was_not_tested(page: Page, wrong_run: str) -> None:
    go_to(page, wrong_run)
    lines = page.locator("#verdicts .sheet li")
    expect(lines).to_have_count(len(all_rules()))
    for text in lines.all_inner_texts():
        assert len(text.split("\n", 1)[-1].strip()) > 10, f"a rule without a reason: {text!r}"


def test_a_rule_that_only_advises_is_not_shown_as_a_contradiction(
    page: Page, server: LiveServer
) -> None:
    feed = server.feed("inputs not scaled")
    feed.send({"inputs/mean": [128.0] * 25, "inputs/std": [70.0] * 25}, state="finished")
    wait_until_settled(server, feed.run_id)
    go_to(page, feed.run_id)
    line = page.locator("#verdicts li", has_text="input-not-normalized")
    expect(line.locator(".sign")).to_have_class("sign is-advice")
    expect(line).to_contain_text("Advice:")


def test_a_number_is_not_broken_on_a_phone(page: Page, server: LiveServer) -> None:
    feed = server.feed("a rate of seven digits")
    rates = {"learning_rate/declared": [0.0001875] * 25, "learning_rate/applied": [0.003] * 25}
    feed.send(rates, state="finished")
    wait_until_settled(server, feed.run_id)
    page.set_viewport_size({"width": 390, "height": 900})
    go_to(page, feed.run_id)
    numbers = page.locator(".witness dd")
    expect(numbers).to_have_text(["0.0001875", "0.003000"])
    rate, applied = (numbers.nth(i).bounding_box() for i in (0, 1))
    assert rate is not None
    assert applied is not None
    assert rate["height"] == applied["height"] < 40
    assert rate["y"] == applied["y"]


def test_many_findings_can_be_seen_at_a_glance(page: Page, server: LiveServer) -> None:
    feed = server.feed("five embeddings")
    words = {"id_max": 120.0, "id_min": 0.0, "input_dim": 100.0}
    columns = {f"embedding:e{i}/{word}": [n] * 5 for i in range(5) for word, n in words.items()}
    feed.send(columns, state="finished")
    wait_until_settled(server, feed.run_id)
    go_to(page, feed.run_id)
    lines = page.locator(".alert-index li")
    expect(lines).to_have_count(5)
    expect(lines.nth(4)).to_contain_text("Ids beyond the table of embedding e4")
    assert lines.nth(4).bounding_box()["y"] < 900  # of the window
    lines.nth(4).get_by_role("link").click()
    expect(page.locator(".alert").nth(4)).to_be_in_viewport()


def test_few_findings_need_no_list(page: Page, wrong_run: str) -> None:
    go_to(page, wrong_run)
    expect(page.locator(".alert").first).to_be_visible()
    expect(page.locator(".alert-index")).to_have_count(0)


def test_shows_epochs_as_they_end(page: Page, server: LiveServer) -> None:
    feed = server.feed("two epochs")
    feed.send({"loss/reported": [2.0] * 50})
    go_to(page, feed.run_id)
    facts = {"first_step": 1, "last_step": 50, "batches": 50, "seconds": 3.5}
    values = {"reported": {"loss": 2.0}, "recomputed": {"loss": 1.9}}
    feed.send(audits=[("epoch", {"epoch": 1, **facts, **values})])
    line = page.locator("#epochs tbody tr")
    expect(line).to_have_count(1)
    expect(line).to_contain_text("recomputed 1.900")


def test_shows_how_the_run_was_set_up(page: Page, wrong_run: str) -> None:
    go_to(page, wrong_run)
    setup = page.locator("#setup")
    expect(setup).to_contain_text("optimizer.learning_rate")
    expect(setup).to_contain_text("0.001")
    expect(setup).to_contain_text("3.11.2")


MARKUP = "<img src=x onerror=\"document.title='owned'\"><script>alert(1)</script>"


@pytest.mark.parametrize("path", ["/", "/runs/{run_id}", "/alerts"])
def test_names_with_markup_are_text(page: Page, server: LiveServer, path: str) -> None:
    feed = server.feed(
        MARKUP, project=MARKUP, tags=[MARKUP], backend=MARKUP, config={MARKUP: MARKUP}
    )
    layers = [{"name": MARKUP, "class": MARKUP, "inputs": [], "produced": True, "mask_out": 0.5}]
    embedding = f"embedding:{MARKUP}"
    feed.send(
        {
            f"{MARKUP}/reported": [1.0, 2.0],
            f"{embedding}/id_max": [100, 8000],
            f"{embedding}/id_min": [1, 1],
            f"{embedding}/input_dim": [5000, 5000],
        },
        audits=[("mask_flow", {"layers": layers, "outputs": {MARKUP: {"mask": 0.5}}})],
        state="finished",
    )
    page.goto(path.format(run_id=feed.run_id))
    expect(page.locator("#link-state")).to_contain_text("Live")
    expect(page.get_by_text(MARKUP).locator("visible=true").first).to_be_visible()
    if "run_id" in path:
        for chart in page.locator("figure[data-chart]").all():
            chart.scroll_into_view_if_needed()
            expect(chart).to_have_attribute("data-live-state", "ready")
    assert page.locator("img").count() == 0
    assert page.title() != "owned"


def test_a_damaged_run_says_so(page: Page, server: LiveServer) -> None:
    feed = server.feed("damaged")
    feed.send({"loss/reported": [1.0]}, state="finished")
    note = "chunk 3 of group 0 cannot be read"
    statement = update(RunRow).where(RunRow.id == feed.run_id).values(damage=note)
    server.parts.database.write(lambda session: session.execute(statement) and None)
    go_to(page, feed.run_id)
    expect(page.locator("#head .notice")).to_contain_text(note)
    page.goto("/")
    expect(page.locator(f"#run-{feed.run_id}")).to_contain_text("damaged")
