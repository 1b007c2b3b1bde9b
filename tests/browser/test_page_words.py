"""Numbers, sentences and small pictures on their way to a page."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import pytest
from feed import setup_audits
from hypothesis import example, given
from hypothesis import strategies as st
from markupsafe import escape

from trainsanity_server.pages.charts import charts
from trainsanity_server.pages.epochs import epoch_table
from trainsanity_server.pages.formats import (
    ago,
    breakable,
    figure,
    figures,
    percent,
    prose,
    span,
)
from trainsanity_server.pages.headline import headline
from trainsanity_server.pages.mask_picture import mask_picture
from trainsanity_server.pages.setup_sheet import flat, setup_sheet
from trainsanity_server.pages.sparkline import HEIGHT, WIDTH, sparkline
from trainsanity_server.pages.templates_environment import environment
from trainsanity_server.pages.witness_words import witness_words
from trainsanity_server.services.runs import AuditFact, Verdict


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.55962, "0.5596"),
        (1, "1"),
        (1234567, "1,234,567"),
        (-0.25, "−0.2500"),
        (3.2e-6, "3.2 × 10⁻⁶"),
        (1e12, "1 × 10¹²"),
        (math.nan, "NaN"),
        (-math.inf, "−∞"),
        (None, "–"),
        ("(None, 3)", "(None, 3)"),
        (True, "True"),
    ],
)
def test_figures(value: object, text: str) -> None:
    assert figure(value) == text


def test_figures_side_by_side_look_unequal_if_they_are() -> None:
    assert figures([0.5, 0.50001]) == ["0.50000", "0.50001"]
    assert figures([0.5, 0.5]) == ["0.5000", "0.5000"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (3.21, "3.2 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_spans_of_time(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_ages() -> None:
    assert [ago(0, now) for now in (3, 40, 500, 8000, 200000)] == [
        "just now",
        "40 s ago",
        "8 min ago",
        "2 h ago",
        "2 d ago",
    ]


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100 %"), (0.99999, "> 99.9 %"), (0.0, "0 %"), (1e-6, "< 0.1 %"), (0.443, "44.3 %")],
)
def test_shares_are_never_rounded_to_full_or_empty(share: float, text: str) -> None:
    assert percent(share) == text


@given(st.text())
def test_prose_never_lets_markup_through(text: str) -> None:
    html = str(prose(f"before {text} `{text}` after"))
    for own in ("<code>", "</code>", "<wbr>"):
        html = html.replace(own, "")
    assert "<" not in html


def test_long_names_break_at_their_joints_and_short_ones_do_not() -> None:
    assert str(breakable("learning_rate/declared")) == "learning_<wbr>rate/<wbr>declared"
    assert str(breakable("a.b at model.py:41")) == "a.b at model.py:41"


@given(st.text())
def test_breaking_changes_no_letter(text: str) -> None:
    assert str(breakable(text)).replace("<wbr>", "") == str(escape(text.replace("\0", "")))


def test_a_float32_is_shown_in_the_digits_it_has() -> None:
    rate = 0.0010000000474974513
    assert flat({"learning_rate": rate, "decay": 0.1, "most": 1e300, "steps": 3}) == {
        "learning_rate": "0.001",
        "decay": "0.1",
        "most": "1e+300",
        "steps": "3",
    }


def test_prose_sets_code() -> None:
    assert str(prose("write `a < b`")) == "write <code>a &lt; b</code>"


@given(st.lists(st.floats() | st.none(), max_size=60))
@example([1.7976931348623157e308, -1.7976931348623157e308])
def test_a_sparkline_stays_in_its_frame(values: list[float | None]) -> None:
    curve = sparkline({"signal": "loss/reported", "values": values})
    if not any(value is not None and math.isfinite(value) for value in values):
        assert curve is None
        return
    assert curve is not None
    assert "nan" not in curve.path
    if curve.x is not None and curve.y is not None:
        assert 0 <= curve.x <= WIDTH
        assert 0 <= curve.y <= HEIGHT


def test_the_number_beside_a_sparkline_is_the_newest_sample() -> None:
    curve = sparkline({"signal": "loss/reported", "values": [3.0, 2.0], "last": 1.5})
    assert curve is not None
    assert curve.last == "1.500"


def _alert(**facts: object) -> SimpleNamespace:
    witnesses = [
        {"name": "accuracy/reported", "value": 0.56, "unit": "1"},
        {"name": "accuracy/unmasked", "value": 0.22, "unit": "1"},
    ]
    known = {"severity": "critical", "state": "open", "title": "Mask lost", "witnesses": witnesses}
    return SimpleNamespace(**{**known, **facts})


RUN = SimpleNamespace(state="finished", settled=True)
VERDICTS = [Verdict("a", "ok", ""), Verdict("b", "alert", ""), Verdict("c", "not_testable", "")]


def test_the_headline_tells_both_numbers() -> None:
    told = headline(RUN, [_alert(), _alert(severity="warning")], VERDICTS)
    assert told.level == "critical"
    assert told.text == (
        "1 contradiction: Keras reports accuracy 0.5600; over real positions it is 0.2200"
    )
    assert told.detail == (
        "Also 1 warning. 2 of 3 rules compared their witnesses; 1 could not be tested."
    )


def test_the_headline_tells_the_title_where_it_has_no_words() -> None:
    other = [{"name": "x", "value": 1.0, "unit": "1"}, {"name": "y", "value": 2.0, "unit": "1"}]
    assert headline(RUN, [_alert(witnesses=other)], VERDICTS).text == "1 contradiction: Mask lost"


def test_the_headline_leaves_out_what_was_set_aside_and_says_so() -> None:
    told = headline(RUN, [_alert(state="muted"), _alert(state="resolved")], VERDICTS)
    assert told.level == "good"
    assert told.detail.endswith("1 muted and 1 resolved, not counted here.")


def test_nothing_compared_is_not_called_good() -> None:
    told = headline(RUN, [], [Verdict("a", "not_testable", "")])
    assert told.level == "unknown"
    assert told.text == "Nothing could be compared"


@pytest.mark.parametrize("rule", ["probe-failed", "run-silent"])
def test_that_the_watching_goes_on_is_not_called_good(rule: str) -> None:
    running = SimpleNamespace(state="running", settled=False)
    told = headline(running, [], [Verdict(rule, "ok", ""), Verdict("a", "not_testable", "")])
    assert told.level == "unknown"
    assert told.text == "Nothing could be compared yet"


@pytest.mark.parametrize(
    ("recomputed", "told"), [(0.1234501, ""), (0.1236, "0.1236"), (math.nan, "NaN"), (None, "")]
)
def test_the_table_of_epochs_tells_no_rounding_as_another_number(
    recomputed: float | None, told: str
) -> None:
    """A healthy run must not look as if Keras had shown a wrong number."""
    facts = {"epoch": 0, "reported": {"loss": 0.1234499}, "recomputed": {"loss": recomputed}}
    (epoch,) = epoch_table([AuditFact("epoch", 9, facts)]).rows
    (cell,) = epoch.cells
    assert (cell.shown, cell.recomputed) == ("0.1234", told)


def test_an_epoch_whose_time_is_no_number_has_none() -> None:
    (epoch,) = epoch_table([AuditFact("epoch", 9, {"seconds": math.nan})]).rows
    assert epoch.seconds is None


def test_the_picture_shows_where_a_mask_is_lost() -> None:
    picture = mask_picture(dict(setup_audits(lost=True))["mask_flow"])
    assert [row.fate for row in picture.rows] == ["made", "carried", "lost", "none"]
    assert [row.name for row in picture.lost] == ["add"]
    embedding, context, add, last = picture.rows
    assert embedding.x == add.x < context.x  # the residual runs beside the layer
    assert [rail.masked for rail in add.rails] == [True, True, False]
    assert [rail.masked for rail in last.rails] == [False]


def test_the_steps_of_a_cell_are_one_line_of_the_picture() -> None:
    cells = [{"name": "cell", "class": "LSTMCell", "inputs": []} for _ in range(40)]
    source = {"name": "words", "inputs": [], "produced": True, "mask_out": 0.5}
    reader = {"name": "lstm", "inputs": ["words", "cell"], "mask_in": 0.5, "mask_out": 0.5}
    picture = mask_picture({"layers": [source, *cells, reader]})
    assert [row.name for row in picture.rows] == ["words", "cell", "lstm"]
    assert picture.rows[1].kind == "40 calls of 1 layer, none with a mask"
    assert [rail.masked for rail in picture.rows[2].rails] == [True, False]


def test_each_call_of_a_shared_layer_has_a_place_of_its_own() -> None:
    source = {"name": "words", "inputs": [], "produced": True, "mask_out": 0.5}
    first = {"name": "shared", "inputs": ["words"], "mask_in": 0.5, "mask_out": 0.5}
    second = {"name": "shared", "inputs": ["shared"], "mask_in": 0.5, "ended": True, "legal": False}
    picture = mask_picture({"layers": [source, first, second]})
    template = environment().get_template("partials/mask.html")
    page = template.render(picture=picture, run=SimpleNamespace(id="r", state="running"), root="")
    places = re.findall(r'id="(layer-[^"]+)"', page)
    assert len(set(places)) == 3
    assert f'The mask is lost at <a href="#{places[2]}">shared</a>' in page


def test_the_picture_of_a_kept_mask_has_no_gap() -> None:
    picture = mask_picture(dict(setup_audits(lost=False))["mask_flow"])
    assert all(rail.masked for row in picture.rows for rail in row.rails)
    assert picture.lost == []


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
SETUP_KEYS = ("layers", "parameters", "reported", "recomputed", "seconds", "epoch", "error")
KEYS = ("name", "class", "inputs", "mask_in", "mask_out", "produced", "ended", "legal", "site")


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "layers": st.lists(st.dictionaries(st.sampled_from(KEYS), ANYTHING), max_size=6)
            | ANYTHING,
            "outputs": ANYTHING,
        },
    )
)
def test_whatever_a_client_sends_as_mask_flow_can_be_drawn(facts: dict[str, object]) -> None:
    picture = mask_picture(facts)
    for row in picture.rows:
        assert 0 <= row.x <= picture.width


@given(st.dictionaries(st.sampled_from(SETUP_KEYS), ANYTHING))
def test_whatever_a_client_sends_as_setup_can_be_shown(facts: dict[str, object]) -> None:
    names = ("model", "compile", "fit", "probe_failed", "epoch")
    audits = [AuditFact(name, 0, facts) for name in names]
    run = SimpleNamespace(expect=facts, config=facts, environment=facts)
    assert setup_sheet(run, audits).failures
    assert len(epoch_table(audits).rows) == 1


@given(st.lists(st.lists(st.integers(0, 11), max_size=4), min_size=1, max_size=12))
def test_every_rail_that_arrives_has_left_somewhere(inputs: list[list[int]]) -> None:
    """Layers read any layers above them; no rail ends in the air."""
    layers = [
        {"name": str(i), "inputs": [str(j) for j in above if j < i], "mask_out": 1.0}
        for i, above in enumerate(inputs)
    ]
    at_bottom: set[str] = set()
    for row in mask_picture({"layers": layers}).rows:
        tops = {rail.path.split(" 0")[0] for rail in row.rails if " 0" in rail.path[:8]}
        assert tops == at_bottom
        leaving = {rail.path for rail in row.rails if rail.path.endswith("V52")}
        at_bottom = {path.split(" ")[0] for path in leaving}


def _signal(name: str, unit: str = "1") -> SimpleNamespace:
    return SimpleNamespace(
        name=name, unit=unit, first_step=1, last_step=9, count=9, last=0.5, min=0.1, max=0.9
    )


def test_witnesses_of_one_quantity_share_a_chart_and_scales_do_not() -> None:
    names = ["accuracy/unmasked", "accuracy/reported", "loss/batch", "loss/nonfinite"]
    found = charts(
        [
            *map(_signal, names),
            _signal("gradient/nonfinite"),
            _signal("embedding:words/id_max", "ids"),
            _signal("embedding:words/out_of_range"),
            _signal("memory/rss", "MiB"),
            *map(_signal, ["accuracy/recomputed_in_all", "loss/nonfinite_in_all"]),
        ]
    )
    assert [(chart.title, chart.names) for chart in found] == [
        ("loss", ["loss/batch"]),
        (
            "accuracy",
            ["accuracy/reported", "accuracy/recomputed_in_all", "accuracy/unmasked"],
        ),
        (
            "NaN and infinite numbers",
            ["gradient/nonfinite", "loss/nonfinite", "loss/nonfinite_in_all"],
        ),
        ("embedding:words", ["embedding:words/id_max"]),
        ("embedding:words: share outside the table", ["embedding:words/out_of_range"]),
        ("memory", ["memory/rss"]),
    ]
    assert len({chart.id for chart in found}) == len(found)


def test_says_of_a_witness_that_it_is_of_all_processes() -> None:
    assert witness_words("loss/nonfinite_in_all") == "NaN and infinite numbers, of all processes"
    assert witness_words("batch/size_in_all") == "of all processes"
    assert witness_words("batch/size") == ""
