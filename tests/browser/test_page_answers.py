"""What pages answer, seen without a browser."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
import urllib3
from feed import HTTP
from scene import LiveServer, run_server
from sqlalchemy import event

from trainsanity_server.pages import front_end
from trainsanity_server.services import runs

BROWSER = {"Accept": "text/html,application/xhtml+xml", "Sec-Fetch-Site": "same-origin"}
SCRIPT = {**BROWSER, "HX-Request": "true", "HX-Request-Type": "partial"}
UNKNOWN = "00000000-0000-7000-8000-000000000000"


def get(
    server: LiveServer, path: str, headers: dict[str, str] | None = None
) -> urllib3.BaseHTTPResponse:
    return HTTP.request("GET", server.address + path, headers=headers or BROWSER, redirect=False)


def post(
    server: LiveServer, path: str, fields: dict[str, str], headers: dict[str, str] | None = None
) -> urllib3.BaseHTTPResponse:
    return HTTP.request(
        "POST",
        server.address + path,
        body=urlencode(fields),
        headers={"Content-Type": "application/x-www-form-urlencoded", **(headers or BROWSER)},
        redirect=False,
    )


def test_a_script_gets_the_list_alone_and_caches_tell_them_apart(
    server: LiveServer, right_run: str
) -> None:
    page, part = get(server, "/"), get(server, "/", SCRIPT)
    assert page.data.startswith(b"<!doctype html>")
    assert part.data.startswith(b'<section id="runs"')
    for answer in (page, part):
        assert answer.headers["Vary"].startswith("HX-Request, HX-Request-Type")


def test_going_back_in_history_gets_the_whole_page(server: LiveServer, right_run: str) -> None:
    answer = get(server, "/", {**SCRIPT, "HX-History-Restore-Request": "true"})
    assert answer.data.startswith(b"<!doctype html>")


def test_nothing_inline_and_nothing_from_elsewhere_is_allowed(server: LiveServer) -> None:
    policy = get(server, "/").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


@pytest.mark.parametrize("path", [f"/runs/{UNKNOWN}", "/runs/%3Cscript%3Ealert(1)%3C/script%3E"])
def test_an_unknown_run_is_a_page_that_tells_its_id(server: LiveServer, path: str) -> None:
    answer = get(server, path)
    assert answer.status == 404
    body = answer.data.decode()
    assert body.startswith("<!doctype html>")
    assert "<script>alert" not in body
    assert UNKNOWN in body or "&lt;script&gt;alert(1)&lt;/script&gt;" in body


def test_an_error_inside_a_page_is_a_part(server: LiveServer) -> None:
    answer = get(server, f"/runs/{UNKNOWN}", SCRIPT)
    assert answer.status == 404
    assert answer.data.startswith(b"<section")


@pytest.mark.parametrize("path", ["/api/v1/runs/" + UNKNOWN, "/nowhere"])
def test_programs_get_problem_documents(server: LiveServer, path: str) -> None:
    answer = get(server, path, {"Accept": "*/*"})
    assert answer.status == 404
    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(
    "path",
    ["/nowhere", "/rules/no-such-rule", "/runs/x/parts/nothing", "/settings/channels/pigeons"],
)
def test_whatever_does_not_exist_is_a_page(server: LiveServer, path: str) -> None:
    answer = get(server, path)
    assert answer.status == 404
    assert b"Not Found" in answer.data


def test_the_address_of_a_button_says_that_it_is_no_page(server: LiveServer) -> None:
    answer = get(server, "/settings/channels/slack/test")
    assert answer.status == 405
    assert b"a button on another page leads there" in answer.data


def test_a_form_that_makes_no_sense_is_a_page(server: LiveServer) -> None:
    answer = post(server, f"/alerts/{UNKNOWN}/mute", {"hours": "for ever"})
    assert answer.status == 422
    assert "Hours: Input should be a valid number" in answer.data.decode()
    assert "Received: &#39;for ever&#39;" in answer.data.decode()


def test_an_alert_that_is_gone_is_a_page(server: LiveServer) -> None:
    assert post(server, f"/alerts/{UNKNOWN}/acknowledge", {}).status == 404


def test_forms_of_other_sites_change_nothing(server: LiveServer, wrong_run: str) -> None:
    alert = server.parts.runs.alerts(wrong_run)[0]
    for stranger in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}):
        answer = post(
            server, f"/alerts/{alert.id}/resolve", {}, {"Accept": "text/html", **stranger}
        )
        assert answer.status == 403
    assert server.parts.runs.alerts(wrong_run)[0].state == "open"


def test_what_the_browser_has_is_not_sent_again(server: LiveServer, right_run: str) -> None:
    known = get(server, f"/runs/{right_run}").data.decode()
    address = known.split('hx-get="/runs/')[1:]
    parts = [part.split('"')[0] for part in address if "known=" in part.split('"')[0]]
    assert len(parts) == 3
    for part in parts:
        answer = get(server, f"/runs/{part}".replace("&amp;", "&"), SCRIPT)
        assert (answer.status, answer.data) == (204, b"")


@pytest.mark.parametrize("count", [1, 12])
def test_a_table_leads_to_more_than_it_shows(server: LiveServer, count: int) -> None:
    """However many signals it has, of each of which there may be fewer points then."""
    feed = server.feed("long tables")
    names = [f"class {i}/recall" for i in range(count)]
    feed.send(dict.fromkeys(names, np.linspace(0, 1, 500)), state="finished")
    query = urlencode([("name", name) for name in names])
    body = get(server, f"/runs/{feed.run_id}/table?{query}").data.decode()
    link = re.search('href="(/api/v1/[^"]+)"', body)
    assert link is not None
    answer = get(server, unescape(link[1]), {"Accept": "*/*"})
    assert answer.status == 200
    assert len(answer.json()["signals"]) == count


def test_the_list_says_by_which_project_it_is_filtered(server: LiveServer) -> None:
    """Also where the last run of that project is gone."""
    body = get(server, "/?project=gone").data.decode()
    assert "<option selected>gone</option>" in body


def test_who_presses_twice_to_delete_a_run_is_led_on_as_well(server: LiveServer) -> None:
    feed = server.feed("deleted twice")
    feed.send({"loss/reported": [2.0]}, state="finished")
    for _ in range(2):
        answer = post(server, f"/runs/{feed.run_id}/delete", {})
        assert (answer.status, answer.headers["Location"]) == (303, "/")


@pytest.mark.parametrize("part", ["run_head", "alerts", "signals", "verdicts"])
def test_parts_that_show_no_audit_read_none(server: LiveServer, right_run: str, part: str) -> None:
    """They are asked for again and again while a run goes on, and audits can be large."""
    read = []

    @event.listens_for(server.parts.database.engine, "before_cursor_execute")
    def before(connection, cursor, statement, parameters, *_) -> None:
        is_of_run = right_run.replace("-", "") in str(parameters).replace("-", "")
        if "audits" in statement and is_of_run:
            read.append(statement)

    try:
        assert get(server, f"/runs/{right_run}/parts/{part}", SCRIPT).status == 200
        assert read == []
        assert get(server, f"/runs/{right_run}/parts/setup", SCRIPT).status == 200
        assert read != []
    finally:
        event.remove(server.parts.database.engine, "before_cursor_execute", before)


def test_epochs_are_shown_however_many_audits_there_are(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "MOST_AUDITS", 8)
    feed = server.feed("many audits")
    epochs = [("epoch", {"epoch": i, "batches": 1}) for i in range(13)]
    feed.send({"loss/reported": [1.0]}, audits=[*epochs[:12], *[("console", {})] * 20])
    address = f"/runs/{feed.run_id}/parts/epochs"
    body = get(server, address, SCRIPT).data.decode()
    assert '<td class="figure">12</td>' in body
    assert "4 earlier epochs not shown" in body
    known = re.search('known=([^&"]+)', body)
    assert known is not None
    assert get(server, f"{address}?known={known[1]}", SCRIPT).status == 204
    feed.send(audits=epochs[12:])
    assert get(server, f"{address}?known={known[1]}", SCRIPT).status == 200


def test_scripts_are_kept_for_ever_and_sent_compressed(server: LiveServer) -> None:
    path = front_end.third_party("plotly.js")
    plain = (front_end.STATIC / path.removeprefix("/static/")).read_bytes()
    answer = HTTP.request(
        "GET", server.address + path, headers={"Accept-Encoding": "gzip"}, decode_content=False
    )
    assert answer.headers["Content-Encoding"] == "gzip"
    assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert answer.headers["Vary"] == "Accept-Encoding"
    assert answer.headers["Content-Type"].startswith("text/javascript")
    assert gzip.decompress(answer.data) == plain
    denser = {"Accept-Encoding": "gzip, br"}
    answer = HTTP.request("GET", server.address + path, headers=denser, decode_content=False)
    assert answer.headers["Content-Encoding"] == "br"
    assert HTTP.request("GET", server.address + path).data == plain


def test_own_files_are_asked_for_again(server: LiveServer) -> None:
    answer = get(server, front_end.own("js/page.js"))
    assert answer.headers["Cache-Control"] == "no-cache"
    etag = {"If-None-Match": answer.headers["ETag"]}
    assert get(server, front_end.own("js/page.js"), etag).status == 304


def test_nothing_outside_the_folder_is_served(server: LiveServer) -> None:
    assert get(server, "/static/../templates/base.html").status == 404
    assert get(server, "/static/%2e%2e/templates/base.html").status == 404


def test_every_call_of_the_api_is_in_its_reference(server: LiveServer) -> None:
    body = get(server, "/docs").data.decode()
    assert "/api/v1/runs/{run_id}/signals/data" in body
    assert 'id="shape-Alert"' in body


@pytest.fixture(scope="module")
def locked_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    yield from run_server(tmp_path_factory.mktemp("locked"), api_keys=["open sesame"])


class TestAServerWithKeys:
    def test_asks_for_a_key(self, locked_server: LiveServer) -> None:
        answer = get(locked_server, "/rules")
        assert answer.status == 401
        assert b'name="wanted" value="/rules"' in answer.data

    def test_shows_scripts_and_styles_to_everybody(self, locked_server: LiveServer) -> None:
        assert get(locked_server, front_end.own("css/base.css")).status == 200

    def test_lets_in_with_a_key_and_goes_on_where_one_wanted(
        self, locked_server: LiveServer
    ) -> None:
        answer = post(locked_server, "/sign-in", {"key": "open sesame", "wanted": "/rules"})
        assert (answer.status, answer.headers["Location"]) == (303, "/rules")
        cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        signed_in = {**BROWSER, "Cookie": cookie.partition(";")[0]}
        assert get(locked_server, "/rules", signed_in).status == 200

    def test_goes_on_at_an_address_of_any_length(self, locked_server: LiveServer) -> None:
        wanted = f"/?{urlencode({'q': 'ü' * 200})}"
        assert len(wanted) > 1000
        answer = post(locked_server, "/sign-in", {"key": "open sesame", "wanted": wanted})
        assert (answer.status, answer.headers["Location"]) == (303, wanted)

    def test_a_page_that_is_open_loads_again_when_its_key_is_gone(
        self, locked_server: LiveServer
    ) -> None:
        answer = get(locked_server, "/", SCRIPT)
        assert (answer.status, answer.headers["HX-Refresh"]) == (401, "true")

    def test_refuses_a_wrong_key(self, locked_server: LiveServer) -> None:
        answer = post(locked_server, "/sign-in", {"key": "open barley"})
        assert answer.status == 401
        assert "Set-Cookie" not in answer.headers
        assert b"not one of the server" in answer.data

    @pytest.mark.parametrize("wanted", ["//evil.example", "https://evil.example", "/\\evil"])
    def test_never_leads_elsewhere(self, locked_server: LiveServer, wanted: str) -> None:
        answer = post(locked_server, "/sign-in", {"key": "open sesame", "wanted": wanted})
        assert answer.headers["Location"] == "/"

    def test_the_stream_asks_for_a_key_too(self, locked_server: LiveServer) -> None:
        assert get(locked_server, "/live?watch=*").status == 401


def test_a_server_without_keys_keeps_none(server: LiveServer) -> None:
    answer = post(server, "/sign-in", {"key": "ключ"})
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    assert "Set-Cookie" not in answer.headers


def test_says_what_to_do_when_scripts_were_not_built(
    server: LiveServer, right_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainsanity_server.pages import render, templates_environment

    monkeypatch.setattr(front_end, "VENDOR", tmp_path)
    front_end.vendor.cache_clear()
    environment = templates_environment.environment()
    front_end.vendor.cache_clear()
    monkeypatch.setattr(render, "_environment", lambda: environment)
    body = get(server, f"/runs/{right_run}").data.decode()
    assert "make setup" in body
    assert "vendor/" not in body
