"""What pages answer, seen without a browser."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
import urllib3
from feed import HTTP
from scene import LiveServer, run_server

from trainsanity_server.pages import front_end

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


@pytest.mark.parametrize("path", ["/nowhere", "/rules/no-such-rule", "/runs/x/parts/nothing"])
def test_whatever_does_not_exist_is_a_page(server: LiveServer, path: str) -> None:
    answer = get(server, path)
    assert answer.status == 404
    assert b"Not Found" in answer.data


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
