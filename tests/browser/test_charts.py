"""Charts: complete, live, and down to the single sample."""

from __future__ import annotations

import html
import math
import re
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from feed import setup_audits, tagger
from playwright.sync_api import Locator, Page, Response, expect
from scene import LiveServer, wait_until_settled
from sqlalchemy import update

from trainsanity_server.storage.models import AlertRow

LONG = 20_000  # steps
SPIKE_AT, SPIKE = 12_345, 99.0


@pytest.fixture(scope="module")
def long_run(server: LiveServer) -> str:
    feed = server.feed("long with a spike")
    loss = np.linspace(2.0, 0.5, LONG)
    loss[SPIKE_AT - 1] = SPIKE
    for part in np.split(loss, 4):
        feed.send({"loss/reported": part, "loss/recomputed": part})
    feed.send(state="finished")
    wait_until_settled(server, feed.run_id)
    return feed.run_id


def chart(page: Page, title: str) -> Locator:
    by_title = page.locator(".chart-title", has_text=title)
    found = page.locator("#signals figure[data-chart]").filter(has=by_title).first
    found.scroll_into_view_if_needed()
    expect(found).to_have_attribute("data-live-state", "ready")
    return found


def drawn(figure: Locator) -> list[dict]:
    """The curves as they are on the screen."""
    return figure.locator(".plot").evaluate(
        "plot => plot.data.map(({name, x, y}) => ({name, x: [...x], y: [...y]}))"
    )


def highest(figure: Locator) -> float:
    return max(value for trace in drawn(figure) for value in trace["y"] if value is not None)


def zoom(page: Page, figure: Locator, first: float, last: float) -> None:
    """Drags over a part of the plot; both ends are shares of its width."""
    box = figure.locator(".nsewdrag").first.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + first * box["width"], middle)
    page.mouse.down()
    page.mouse.move(box["x"] + last * box["width"], middle, steps=5)
    page.mouse.up()


def test_a_spike_of_one_step_is_seen_and_points_are_counted(page: Page, long_run: str) -> None:
    page.goto(f"/runs/{long_run}")
    figure = chart(page, "loss")
    assert highest(figure) == SPIKE
    expect(figure.locator(".chart-count")).to_contain_text("1,000 of 40,000 points shown")
    expect(figure.locator(".chart-count")).to_contain_text("shaded: lowest to highest")


def test_zooming_goes_down_to_single_samples_and_back(page: Page, long_run: str) -> None:
    page.goto(f"/runs/{long_run}")
    figure = chart(page, "loss")
    with page.expect_response(lambda response: "signals/data" in response.url):
        zoom(page, figure, 0.60, 0.64)
    expect(figure.locator(".chart-count")).to_have_text(
        re.compile(r"(1,[67]\d\d) of \1 points shown")
    )
    trace = next(trace for trace in drawn(figure) if trace["name"] == "loss/reported")
    assert np.diff(trace["x"]).tolist() == [1] * (len(trace["x"]) - 1)
    assert trace["y"][trace["x"].index(SPIKE_AT)] == SPIKE
    reset = page.locator("#zoom-reset")
    expect(reset).to_contain_text(re.compile(r"Steps 1\d,\d\d\d to 1\d,\d\d\d"))
    reset.click()
    expect(figure.locator(".chart-count")).to_contain_text("1,000 of 40,000 points shown")


def test_buttons_zoom_without_a_mouse(page: Page, long_run: str) -> None:
    page.goto(f"/runs/{long_run}")
    figure = chart(page, "loss")
    figure.get_by_role("button", name="Zoom into loss").press("Enter")
    expect(page.locator("#zoom-reset")).to_be_visible()
    expect(figure.locator(".chart-count")).to_have_text(re.compile("of (19|20),"))


def test_follows_the_run_by_asking_only_for_what_is_new(page: Page, server: LiveServer) -> None:
    feed = server.feed("followed")
    feed.send({"loss/reported": np.linspace(2, 1, 900), "loss/batch": np.linspace(2, 1, 900)})
    asked: list[Response] = []
    page.goto(f"/runs/{feed.run_id}")
    figure = chart(page, "loss")
    expect(page.locator("#link-state")).to_contain_text("Live")
    expect(figure).to_have_attribute("data-live-last", "900")
    page.on("response", lambda r: "signals/data" in r.url and asked.append(r))
    feed.send({"loss/reported": [1.0, 7.5], "loss/batch": [1.0, 1.0]})
    expect(figure).to_have_attribute("data-live-last", "902")
    assert highest(figure) == 7.5
    summary = figure.locator(".chart-summary")
    expect(summary).to_contain_text("7.500 at step 902; 902 points between 1 and 7.500.")
    drawn_to = figure.locator(".plot").evaluate("plot => plot._fullLayout.xaxis.range[1]")
    assert drawn_to >= 902
    for response in asked:
        assert parse_qs(urlsplit(response.url).query)["first_step"] == ["901"]
        assert len(response.body()) < 500


def test_draws_a_witness_that_is_read_later_than_another(page: Page, server: LiveServer) -> None:
    """The learning rate declared is known before a step, the one applied when a ring is read."""
    declared, applied = "learning_rate/declared", "learning_rate/applied"
    feed = server.feed("read later")
    feed.send({declared: [0.1, 0.1, 0.1], applied: [0.1, 0.1, 0.1]})
    page.goto(f"/runs/{feed.run_id}")
    figure = chart(page, "learning_rate")
    expect(page.locator("#link-state")).to_contain_text("Live")
    feed.send({declared: [0.1, 0.1]})
    expect(figure).to_have_attribute("data-live-last", "5")
    feed.send({applied: [0.2, 0.3]}, after=3)
    expect(figure).to_have_attribute("data-live-shown", "10")
    (late,) = [trace for trace in drawn(figure) if trace["name"] == applied]
    assert late["x"] == [1, 2, 3, 4, 5]


def test_the_drawing_stays_the_same_element_when_its_surroundings_are_replaced(
    page: Page, server: LiveServer
) -> None:
    feed = server.feed("grows a signal")
    feed.send({"loss/reported": [2.0, 1.9, 1.8]})
    page.goto(f"/runs/{feed.run_id}")
    figure = chart(page, "loss")
    expect(page.locator("#link-state")).to_contain_text("Live")
    plot = figure.locator(".plot svg.main-svg").first
    plot.evaluate("element => { element.mark = 'same' }")
    feed.send({"gradient/norm": [1.0, 1.0], "loss/reported": [1.7, 1.6]})
    expect(page.locator("#signals .chart-title", has_text="gradient")).to_be_visible()
    assert plot.evaluate("element => element.mark") == "same"
    chart(page, "gradient")
    expect(figure).to_have_attribute("data-live-last", "5")


def test_a_chart_draws_other_witnesses_when_its_alert_has_others(
    page: Page, server: LiveServer
) -> None:
    feed = server.feed("has other witnesses")
    feed.send(audits=setup_audits(lost=True))
    feed.send(tagger(100, lost=True), state="finished")
    wait_until_settled(server, feed.run_id)
    page.goto(f"/runs/{feed.run_id}")
    figure = page.locator(".alert figure[data-chart]")
    expect(figure).to_have_attribute("data-live-last", "100")
    assert names(figure) == {"accuracy/reported", "accuracy/unmasked"}
    logarithmic = figure.get_by_role("button", name="Logarithmic scale")
    logarithmic.click()
    others = [{"name": f"loss/{w}", "value": 0.5, "unit": "1"} for w in ("reported", "batch")]
    of_run = update(AlertRow).where(AlertRow.run_id == feed.run_id)
    server.parts.database.write(lambda s: s.execute(of_run.values(witnesses=others)) and None)
    server.parts.alerts.tell(feed.run_id)
    expect(figure.get_by_role("button", name="batch")).to_have_text(re.compile(r"batch\d"))
    assert names(figure) == {"loss/reported", "loss/batch"}
    expect(logarithmic).to_have_attribute("aria-pressed", "true")


def names(figure: Locator) -> set[str]:
    return {curve["name"] for curve in drawn(figure)}


def test_pointing_at_a_step_reads_it_out_on_every_chart(page: Page, server: LiveServer) -> None:
    feed = server.feed("pointed at")
    step = np.arange(1, 101)
    feed.send({"loss/reported": step, "accuracy/reported": 1000 + step}, state="finished")
    page.goto(f"/runs/{feed.run_id}")
    loss, accuracy = chart(page, "loss"), chart(page, "accuracy")
    expect(accuracy.locator(".legend .number")).to_have_text("1,100")
    box = loss.locator(".nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 49 / 99, box["y"] + box["height"] / 2)
    expect(loss.locator(".legend .number")).to_have_text("50")
    expect(accuracy.locator(".legend .number")).to_have_text("1,050")
    page.mouse.move(5, 5)
    expect(accuracy.locator(".legend .number")).to_have_text("1,100")


def test_nan_and_infinity_are_marked_not_hidden(page: Page, server: LiveServer) -> None:
    feed = server.feed("not finite")
    feed.send({"loss/reported": [1.0, float("nan"), 0.8, float("inf")]}, state="finished")
    page.goto(f"/runs/{feed.run_id}")
    figure = chart(page, "loss")
    expect(figure.locator(".chart-count")).to_contain_text("× marks NaN or infinity")
    marks = figure.locator(".plot").evaluate("plot => plot.data.at(-1).x")
    assert marks == [2, 4]
    shown = figure.locator(".legend .number")
    expect(shown).to_have_text("∞")
    for step, text in ((2, "NaN"), (4, "∞")):
        box = figure.locator(".nsewdrag").first.bounding_box()
        page.mouse.move(box["x"] + box["width"] * (step - 1) / 3, box["y"] + box["height"] / 2)
        expect(shown).to_have_text(text)


def test_buttons_of_a_chart_that_could_not_be_drawn_yet_do_no_harm(
    page: Page, long_run: str
) -> None:
    page.route("**/signals/data*", lambda route: route.fulfill(status=503, json={"detail": "busy"}))
    page.goto(f"/runs/{long_run}")
    figure = page.locator("#signals figure[data-chart]").first
    figure.scroll_into_view_if_needed()
    expect(figure.locator(".chart-count")).to_have_text("Not up to date: busy")
    figure.get_by_role("button", name="Zoom into loss").click()
    figure.get_by_role("button", name="Logarithmic scale for loss").click()
    expect(page.locator("#zoom-reset")).to_be_hidden()
    expect(figure.locator(".plot")).to_be_empty()


def test_a_table_stands_behind_each_chart(page: Page, long_run: str) -> None:
    page.goto(f"/runs/{long_run}")
    figure = chart(page, "loss")
    figure.locator(".chart-table summary").click()
    table = figure.locator("table")
    expect(table.locator("thead")).to_contain_text("loss/recomputed")
    expect(table).to_contain_text("99")
    expect(figure.locator(".chart-summary")).to_contain_text("20,000 points between 0.5000 and 99")


def test_is_told_in_the_words_of_the_server(page: Page, server: LiveServer) -> None:
    feed = server.feed("in words")
    signals = {
        "time/step": [0.25, 1.5, 12.0],
        "loss/reported": [math.nan, math.inf, math.nan],
        "gradient/norm": [math.nan, -2e-7, 1234.5],
    }
    feed.send(signals, state="finished")
    page.goto(f"/runs/{feed.run_id}")
    served = html.unescape(page.request.get(f"/runs/{feed.run_id}").text())
    figures = page.locator("#signals figure[data-chart]").all()
    assert len(figures) == 3
    for figure in figures:
        figure.scroll_into_view_if_needed()
        expect(figure).to_have_attribute("data-live-state", "ready")
        assert figure.locator(".chart-summary").text_content() in served


def test_charts_are_made_when_they_come_into_view(page: Page, server: LiveServer) -> None:
    feed = server.feed("many signals")
    names = [f"metric_{number:02}/reported" for number in range(40)]
    feed.send({name: [1.0, 2.0] for name in names}, state="finished")
    page.goto(f"/runs/{feed.run_id}")
    expect(page.locator("#link-state")).to_contain_text("Live")
    assert page.locator("#signals figure").count() == 40
    assert page.locator("#signals figure[data-live-state]").count() < 40
    last = page.locator("#signals figure").last
    last.scroll_into_view_if_needed()
    expect(last).to_have_attribute("data-live-state", "ready")


def test_follows_a_live_run_while_the_window_changes_its_size(
    page: Page, server: LiveServer
) -> None:
    """Down to a window narrower than the margins of a chart; an error on the way fails the test."""
    feed = server.feed("resized")
    feed.send(tagger(30, lost=True), audits=setup_audits(lost=True))
    page.goto(f"/runs/{feed.run_id}")
    figure = chart(page, "loss")
    for turn, width in enumerate((390, 1440, 60, 1440), 1):
        feed.send(tagger(30, lost=True, after=30 * turn))
        page.set_viewport_size({"width": width, "height": 700})
        figure.scroll_into_view_if_needed()
        expect(figure).to_have_attribute("data-live-last", str(30 + 30 * turn))
    room = figure.evaluate("figure => figure.querySelector('.plot').clientWidth")
    expect(figure.locator("svg.main-svg").first).to_have_attribute("width", str(room))


def test_many_signals_of_one_quantity_share_several_charts(page: Page, server: LiveServer) -> None:
    """Hundreds of curves in one could not be told apart; nor are so many given at once."""
    feed = server.feed("seventy layers")
    feed.send({f"norm/layer_{i:02}": [float(i)] * 3 for i in range(70)}, state="finished")
    page.goto(f"/runs/{feed.run_id}")
    expect(page.locator("#signals .chart-title")).to_have_text(
        ["norm, 1 to 24 of 70", "norm, 25 to 48 of 70", "norm, 49 to 70 of 70"]
    )
    figure = chart(page, "49 to 70")
    assert len(drawn(figure)) == 22
    expect(figure.locator(".chart-count")).to_have_text("66 of 66 points shown")


def test_few_steps_get_a_tick_each(page: Page, server: LiveServer) -> None:
    feed = server.feed("three steps")
    feed.send({"loss/reported": [3.0, 2.0, 1.0]}, state="finished")
    page.goto(f"/runs/{feed.run_id}")
    expect(chart(page, "loss").locator(".xtick")).to_have_text(["1", "2", "3"])


def test_long_names_stay_on_the_screen(page: Page, server: LiveServer) -> None:
    feed = server.feed("long names", project="p" * 200, tags=["t" * 60])
    name = "metric/" + "made_by_a_configuration_" * 10
    feed.send({name: [1.0, 2.0], f"{name[:240]}/reported": [1.0, 2.0]}, state="finished")
    page.set_viewport_size({"width": 390, "height": 900})
    page.goto(f"/runs/{feed.run_id}")
    chart(page, "metric")
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_a_witness_says_what_it_is(page: Page, long_run: str) -> None:
    page.goto(f"/runs/{long_run}")
    reported = chart(page, "loss").get_by_role("button", name="reported")
    expect(reported).to_have_attribute("title", "loss/reported: what Keras shows")
    expect(page.locator("#signals")).to_contain_text("reported is the mean since the epoch began")


def test_a_witness_is_hidden_and_shown_again(page: Page, long_run: str) -> None:
    page.goto(f"/runs/{long_run}")
    figure = chart(page, "loss")
    button = figure.get_by_role("button", name="recomputed")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "false")
    hidden = "plot => plot.data.filter(trace => trace.visible === false).length"
    assert figure.locator(".plot").evaluate(hidden) == 3
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    assert figure.locator(".plot").evaluate(hidden) == 0
