"""How a message looks in Slack: Block Kit, within its limits.

A header takes 150 characters, a section 3000 (slack-sdk's models check both). The whole body stays
under 8000: Slack has refused bodies of some 13,000 characters that kept every single limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from slack_sdk.models.blocks import (
    Block,
    ContextBlock,
    HeaderBlock,
    MarkdownTextObject,
    PlainTextObject,
    SectionBlock,
)

from trainsanity_server.channels.message import Event, Message, News, distinct_values, duration

SHOWN_IN_A_GROUP = 5
SHOWN_WITNESSES = 8


def payload(message: Message) -> dict[str, object]:
    """The JSON body for an incoming webhook."""
    if message.event is Event.TEST:
        title, blocks = _test(message)
    elif len(message.news) == 1:
        title, blocks = _single(message.news[0], message.event)
    else:
        title, blocks = _group(message)
    if message.hidden:
        were = "was" if message.hidden == 1 else "were"
        hidden = f"{message.hidden} more changed while muted and {were} not sent."
        blocks.append(_context(hidden))
    for block in blocks:
        block.validate_json()
    # `text` is what a phone's notification and a screen reader say.
    return {"text": title, "blocks": [block.to_dict() for block in blocks]}


def escaped(text: str, limit: int) -> str:
    """One line in which Slack finds no link, mention or markup of its own.

    A run called `<!channel>` must not call everybody. At most `limit` characters; a cut never falls
    within `&amp;`.
    """
    return _fitted(_plain(text), limit)


def escaped_lines(text: str, limit: int) -> str:
    """As `escaped`, but lines stay lines."""
    return _fitted("\n".join(map(_plain, text.strip().splitlines())), limit)


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _fitted(text: str, limit: int) -> str:
    pieces = [_ENTITIES.get(c, c) for c in text]
    if sum(map(len, pieces)) <= limit:
        return "".join(pieces)
    kept, room = [], limit - 1
    for piece in pieces:
        room -= len(piece)
        if room < 0:
            break
        kept.append(piece)
    return "".join(kept).rstrip() + "…"


_ENTITIES: Mapping[str, str] = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def _single(news: News, event: Event) -> tuple[str, list[Block]]:
    if event is Event.RESOLVED:
        return _resolved(news)
    title = f"{_label(news, event)} {escaped(news.title, 90)} – {_run(news, 50)}"
    blocks = [
        _header(f"{_label(news, event)} {escaped(news.title, 130)}"),
        _section(f"Run {_link(news.url, news.run_name)} in project {_bold(news.project, 80)}"),
        _section(escaped_lines(news.message, 1500)) if news.message.strip() else None,
        _section(_witness_lines(news)),
        _section(_since(news)),
        _section(f"*What to do:* {escaped_lines(news.suggestion, 900)}")
        if news.suggestion
        else None,
        _context(
            f"rule {escaped(news.rule, 60)} · about {escaped(news.subject, 100)} · "
            f"first seen {_time(news.opened_at)} · alert {escaped(news.alert_id, 40)}"
        ),
    ]
    return title, [block for block in blocks if block is not None]


def _resolved(news: News) -> tuple[str, list[Block]]:
    title = f"{_label(news, Event.RESOLVED)} {escaped(news.title, 90)} – {_run(news, 50)}"
    end = news.resolved_at if news.resolved_at is not None else news.opened_at
    blocks: list[Block] = [
        _header(f"{_label(news, Event.RESOLVED)} {escaped(news.title, 130)}"),
        _section(f"Run {_link(news.url, news.run_name)} in project {_bold(news.project, 80)}"),
        _section(
            f"*Over after {duration(end - news.opened_at)}.* "
            f"It was {_article(news.severity)} alert, "
            f"from step {news.first_step} to step {news.last_step}, seen {_times(news.count)}."
        ),
        _context(
            f"rule {escaped(news.rule, 60)} · about {escaped(news.subject, 100)} · "
            f"resolved {_time(end)} · alert {escaped(news.alert_id, 40)}"
        ),
    ]
    return title, blocks


def _group(message: Message) -> tuple[str, list[Block]]:
    news = message.worst_first
    shown, rest = news[:SHOWN_IN_A_GROUP], news[SHOWN_IN_A_GROUP:]
    runs = {n.run_id for n in news}
    where = _run(news[0], 50) if len(runs) == 1 else f"{len(runs)} runs"
    state = "resolved" if message.event is Event.RESOLVED else "opened"
    label = "[RESOLVED]" if message.event is Event.RESOLVED else _label(news[0], message.event)
    title = f"{label} {len(news)} alerts {state} – {where}"
    blocks: list[Block] = [_header(title), *(_section(_line(n, message.event)) for n in shown)]
    if rest:
        blocks.append(_section(f"and {len(rest)} more: {_link(message.url, 'see all of them')}"))
    blocks.append(_context("alerts " + ", ".join(escaped(n.alert_id, 40) for n in shown)))
    return title, blocks


def _line(news: News, event: Event) -> str:
    head = f"*[{escaped(news.severity.upper(), 20)}]* {_link(news.url, news.title)}"
    end = news.resolved_at if news.resolved_at is not None else news.opened_at
    if event is Event.RESOLVED:
        tail = f"over after {duration(end - news.opened_at)}"
    else:
        values = distinct_values(news.witnesses)
        pairs = zip(news.witnesses[:2], values, strict=False)
        tail = ", ".join(f"{escaped(w.name, 60)} *{escaped(v, 40)}*" for w, v in pairs)
        tail += f" – since step {news.first_step}"
    return f"{head}\n{_run(news, 60)}: {tail}"


def _test(message: Message) -> tuple[str, list[Block]]:
    title = "Test message of trainsanity"
    words = f"Alerts will arrive here. {_link(message.url, 'Open trainsanity')}"
    return title, [_header(title), _section(words)]


def _label(news: News, event: Event) -> str:
    return "[RESOLVED]" if event is Event.RESOLVED else f"[{escaped(news.severity.upper(), 20)}]"


def _run(news: News, limit: int) -> str:
    return f"{escaped(news.run_name, limit)} (project {escaped(news.project, limit)})"


def _witness_lines(news: News) -> str:
    values = distinct_values(news.witnesses)
    shown = list(zip(news.witnesses, values, strict=True))[:SHOWN_WITNESSES]
    lines = [f"•  {escaped(w.name, 80)}: *{escaped(value, 80)}*" for w, value in shown]
    if len(values) > len(shown):
        lines.append(f"•  and {len(values) - len(shown)} more")
    return "\n".join(["*What the witnesses say*", *lines])


def _since(news: News) -> str:
    since = (
        f"*Since* step {news.first_step}, seen {_times(news.count)} up to step {news.last_step}."
    )
    return f"{since}\n*How sure:* {escaped_lines(news.certainty, 500)}" if news.certainty else since


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _article(severity: str) -> str:
    return f"an {severity}" if severity[:1] in "aeiou" else f"a {escaped(severity, 20)}"


def _link(url: str, words: str) -> str:
    # A bar or a bracket in the address would end the link early.
    address = url.replace("|", "%7C").replace("<", "%3C").replace(">", "%3E").replace("&", "&amp;")
    return f"<{address}|{escaped(words.replace('|', '¦'), 100)}>"


def _bold(text: str, limit: int) -> str:
    return f"*{escaped(text, limit)}*"


def _time(seconds: float) -> str:
    """A time that Slack shows in the reader's own time zone."""
    fallback = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S UTC}"
    return f"<!date^{int(seconds)}^{{date_num}} {{time_secs}}|{fallback}>"


def _header(text: str) -> HeaderBlock:
    return HeaderBlock(text=PlainTextObject(text=text, emoji=False))


def _section(text: str) -> SectionBlock:
    # verbatim: Slack turns no address or @name of a user's text into a link of its own.
    return SectionBlock(text=MarkdownTextObject(text=text, verbatim=True))


def _context(text: str) -> ContextBlock:
    return ContextBlock(elements=[MarkdownTextObject(text=text, verbatim=True)])
