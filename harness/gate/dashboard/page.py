"""The page of a nightly as one HTML file: no script, no request, no framework.

A policy in the page (Content Security Policy, level 3) forbids everything but the page's own style,
which it names by its digest. Links lead where a history says that reports are, if that is a web
address or a path beside the page. All texts of runs are escaped, and lose control characters. The
style is that of reports.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from harness import jsonfile
from harness.errors import StoreError
from harness.evidence.history import Line
from harness.gate import history
from harness.gate.dashboard.content import SOON, Cell, Content, Row, gather
from harness.gate.history import Story
from harness.known import KnownFailures
from harness.known.history import Standing

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

SIGNS: Final = {
    "passed": "✓",
    "product": "✕",
    "test": "◆",
    "timeout": "◷",
    "infra": "▲",
    "flaky": "≈",
    "flaky-infra": "△",
    "known": "●",
    "interrupted": "‖",
}
"""The signs of reports, so that no meaning depends on a colour."""

ABSENT: Final = "\N{EN DASH}"
"""The sign of what was not run."""

NIGHTS: Final = 14
"""Nights that a chart has room for; it grows with more."""

_CLASSES: Final = {"flaky-infra": "infra"}


class Markup(str):
    """A text that is HTML already."""

    __slots__ = ()


def h(name: str, *children: str | None, **attributes: str | None) -> Markup:
    """Return an element: ``h("a.plain", "text", href="#")``. Texts are escaped; ``None`` is left out."""
    tag, *classes = name.split(".")
    words = {"class": " ".join(classes) or None, **attributes}
    written = "".join(
        f' {key.strip("_").replace("_", "-")}="{_escaped(value)}"'
        for key, value in words.items()
        if value is not None
    )
    inside = "".join(_escaped(each) for each in children if each is not None)
    return Markup(f"<{tag}{written}>{inside}</{tag}>")


def _escaped(text: str) -> str:
    if isinstance(text, Markup):
        return text
    return html.escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text))


def page(
    runs: Sequence[Line],
    known: KnownFailures | None = None,
    catalogue: Iterable[tuple[str, str]] = (),
) -> str:
    """Return the page of some nights; see :func:`~harness.gate.dashboard.content.gather`."""
    content = gather(runs, known, catalogue)
    style = _source("harness.evidence.report", "report.css") + _source(
        "harness.gate.dashboard", "dashboard.css"
    )
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    body = "\n".join(_parts(content))
    return (
        _source("harness.gate.dashboard", "dashboard.html")
        .replace("@POLICY@", policy)
        .replace("@STYLE@", style)
        .replace("@BODY@", body)
    )


def write(
    path: Path,
    runs: Sequence[Line],
    known: KnownFailures | None = None,
    catalogue: Iterable[tuple[str, str]] = (),
) -> None:
    """Write the page; a reader never sees half of it.

    Raises:
        StoreError: The file cannot be written.
    """
    try:
        jsonfile.write_text(path, page(runs, known, catalogue))
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error}") from error


def _source(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


# --- parts ------------------------------------------------------------------------------------


def _parts(content: Content) -> list[Markup]:
    return [
        _head(content),
        Markup('<main id="main" tabindex="-1">'),
        _failing(content),
        _matrix(content),
        _trend(content),
        _flaky(content.flaky),
        _slowest(content.slowest),
        _known(content),
        Markup("</main>"),
    ]


def _head(content: Content) -> Markup:
    nights = content.nights
    span = f"{nights[0]} to {nights[-1]}" if nights else "no night yet"
    facts = [span, _count(len(nights), "night"), _count(content.runs, "run")]
    links = [
        h("a", title, href=f"#{name}")
        for name, title in (
            ("failing", "Failing now"),
            ("matrix", "Matrix"),
            ("trend", "Trend"),
            ("flaky", "Flaky"),
            ("slowest", "Slowest"),
            ("known", "Known failures"),
        )
    ]
    last = [h("span", _verdict(name, count)) for name, count in content.last.items()]
    return h(
        "header",
        h("h1", "Nightly"),
        h("p.facts", *(h("span", fact) for fact in facts)),
        h("p.facts", "Last night: ", *last) if last else None,
        h("nav", *links, aria_label="Parts of this page"),
    )


def _failing(content: Content) -> Markup:
    if not content.failing:
        return _section("failing", "Failing now", h("p.empty", "No test fails."))
    items = []
    for story in content.failing:
        turn = story.turn
        assert turn is not None
        outcome = next(each for each in reversed(story.outcomes) if each.verdict in history.BAD)
        good = turn.good["began"] if turn.good else "not in these nights"
        changed = [
            h("li", h("span.soft", f"{name}: "), h("code", f"{old or '-'} → {new or '-'}"))
            for name, old, new in turn.facts
        ]
        items.append(
            h(
                "li",
                h("div", _verdict(outcome.verdict), " ", h("span.mono", story.test)),
                h("div.soft", _where(story)),
                h("div", outcome.reason) if outcome.reason else None,
                h(
                    "div.soft",
                    "Since ",
                    _link(turn.bad["began"], str(turn.bad.get("url", ""))),
                    f"; last passed: {good}. ",
                    h("span", "Signature ", h("code", outcome.signature))
                    if outcome.signature
                    else None,
                ),
                h("details", h("summary", "What changed since it passed"), h("ul", *changed))
                if changed
                else None,
            )
        )
    return _section("failing", "Failing now", h("ul.items.card", *items))


def _matrix(content: Content) -> Markup:
    head = h(
        "tr",
        *(h("th", name, scope="col") for name in ("Image", "Arch", "Suite")),
        *(h("th", night[5:], scope="col", title=night) for night in content.nights),
    )
    rows = [_row(row, content.nights) for row in content.rows]
    legend = [h("span", _verdict(name)) for name in SIGNS]
    return _section(
        "matrix",
        "Matrix",
        _table("Image by architecture by suite, one column a night", head, rows),
        h("p.legend", *legend, h("span", f"{ABSENT} not run")),
    )


def _row(row: Row, nights: Sequence[str]) -> Markup:
    named = (h("th", row.image, scope="row"), h("td", row.arch))
    if not row.suite:
        text = h("span.soft", "not run")
        return h("tr", *named, h("td", ABSENT), h("td", text, colspan=str(max(1, len(nights)))))
    cells = [_cell(row.cells.get(night), night) for night in nights]
    return h("tr", *named, h("td.mono", row.suite), *cells)


def _cell(cell: Cell | None, night: str) -> Markup:
    if cell is None:
        return h("td", h("span.soft", h("span", ABSENT, aria_hidden="true"), _unseen("not run")))
    words = f"{night}: " + ", ".join(f"{count} {name}" for name, count in cell.counts.items())
    worst = cell.worst
    shown = h(
        f"span.v.{_CLASSES.get(worst, worst if worst in SIGNS else 'unknown')}",
        str(cell.counts[worst]),
        data_sign=SIGNS.get(worst, "✕"),
        aria_hidden="true",
    )
    return h("td", _link(Markup(shown + _unseen(words)), cell.url), title=words)


def _trend(content: Content) -> Markup:
    if not content.trend:
        return _section("trend", "Trend", h("p.empty", "No night yet."))
    charts = [
        _chart(name, title, content.trend)
        for name, title in (("infra", "Failed by the host"), ("flaky", "Flaky"))
    ]
    head = h("tr", *(h("th", name, scope="col") for name in ("Night", "Passed", "Flaky", "Infra")))
    rows = [
        h(
            "tr",
            h("th", night, scope="row"),
            *(h("td", f"{rates[name]} %") for name in ("passed", "flaky", "infra")),
        )
        for night, rates in reversed(content.trend.items())
    ]
    return _section(
        "trend",
        "Trend",
        h("div.charts", *charts),
        h("details", h("summary", "The numbers"), _table("Rates by night", head, rows)),
    )


def _chart(name: str, title: str, trend: dict[str, dict[str, float]]) -> Markup:
    """Return a chart of bars, whose scale ends at the largest value, or at 5 %."""
    values = [rates[name] for rates in trend.values()]
    top = max(5.0, *values)
    width, height = 12, 60
    bars = []
    for index, (night, value) in enumerate(zip(trend, values, strict=True)):
        tall = round(height * value / top, 1)
        place = {
            "x": str(index * width + 1),
            "y": f"{height - tall:g}",
            "width": str(width - 2),
            "height": f"{tall:g}",
        }
        bars.append(h(f"rect.bar.{name}", h("title", f"{night}: {value} %"), **place))
    base = h(
        "line.grid",
        x1="0",
        y1=str(height),
        x2=str(max(NIGHTS, len(values)) * width),
        y2=str(height),
    )
    label = f"{title}, percent of tests by night: last {values[-1]} %, most {max(values)} %"
    drawing = h(
        "svg",
        base,
        *bars,
        viewBox=f"0 0 {max(NIGHTS, len(values)) * width} {height + 1}",
        role="img",
        aria_label=label,
        preserveAspectRatio="none",
    )
    caption = h("figcaption", f"{title}: last {values[-1]} %, most {max(values)} %")
    return h("figure.card", drawing, caption)


def _flaky(stories: Sequence[Story]) -> Markup:
    if not stories:
        return _section("flaky", "Flaky", h("p.empty", "No test was flaky."))
    head = h(
        "tr",
        *(h("th", n, scope="col") for n in ("Test", "On", "Flaky", "By the host", "Runs", "Last")),
    )
    rows = []
    for story in stories:
        counts = story.counts
        reason = next((each.reason for each in reversed(story.outcomes) if each.reason), "")
        rates = history.rates(counts)
        rows.append(
            h(
                "tr",
                h("th.mono", story.test, scope="row"),
                h("td", _where(story)),
                h("td", f"{rates['flaky']} %"),
                h("td", f"{rates['infra']} %"),
                h("td", str(sum(counts.values()))),
                h("td", reason),
            )
        )
    return _section(
        "flaky", "Flaky", _table("Tests that were flaky, the most often first", head, rows)
    )


def _slowest(stories: Sequence[Story]) -> Markup:
    if not stories:
        return _section("slowest", "Slowest", h("p.empty", "No test has passed yet."))
    head = h("tr", *(h("th", name, scope="col") for name in ("Test", "On", "Median")))
    rows = [
        h(
            "tr",
            h("th.mono", story.test, scope="row"),
            h("td", _where(story)),
            h("td", f"{story.median} s"),
        )
        for story in stories
    ]
    return _section(
        "slowest", "Slowest", _table("Tests by the median of their seconds", head, rows)
    )


def _known(content: Content) -> Markup:
    title = "Known failures"
    if content.known is None:
        return _section("known", title, h("p.empty", "The project has no known.yaml."))
    if not content.expiring:
        text = f"{_count(content.known, 'entry', 'entries')}; none expires within {SOON} days."
        return _section("known", title, h("p.empty", text))
    head = h(
        "tr",
        *(
            h("th", name, scope="col")
            for name in ("Expires", "Test", "Pattern", "Owner", "Tracker", "Seen")
        ),
    )
    rows = [_standing(each, content.today) for each in content.expiring]
    return _section(
        "known", title, _table(f"Known failures that end within {SOON} days", head, rows)
    )


def _standing(standing: Standing, today: str) -> Markup:
    entry = standing.entry
    day = entry.expires.isoformat()
    seen = f"last {standing.last_seen}" if standing.last_seen else "never"
    return h(
        "tr",
        h("th", h("span.product", f"✕ expired {day}") if day < today else day, scope="row"),
        h("td.mono", entry.test),
        h("td.mono", entry.pattern),
        h("td", entry.owner),
        h("td", _link(entry.tracker, entry.tracker)),
        h("td", f"{seen}; {_count(standing.without, 'run')} without"),
    )


# --- words ------------------------------------------------------------------------------------


def _section(name: str, title: str, *children: Markup) -> Markup:
    return h(
        "section",
        h("h2", title, id=f"{name}-title"),
        *children,
        id=name,
        aria_labelledby=f"{name}-title",
    )


def _table(caption: str, head: Markup, rows: Sequence[Markup]) -> Markup:
    table = h("table", h("caption", caption), h("thead", head), h("tbody", *rows))
    # What scrolls can be reached by the keyboard.
    return h("div.card.scroll", table, tabindex="0", role="region", aria_label=caption)


def _verdict(name: str, count: int | None = None) -> Markup:
    known = _CLASSES.get(name, name if name in SIGNS else "unknown")
    text = name if count is None else f"{count} {name}"
    return h(f"span.v.{known}", text, data_sign=SIGNS.get(name, "✕"))


def _unseen(text: str) -> Markup:
    return h("span.unseen", text)


def _where(story: Story) -> str:
    return " ".join(filter(None, (story.image, story.arch))) or "no image"


def _count(number: int, word: str, words: str = "") -> str:
    return f"{number} {word if number == 1 else words or word + 's'}"


def _link(text: str, url: str) -> Markup:
    """Return a link, or the text alone where the address is none that a page may lead to."""
    parts = urlsplit(url) if url and not _CONTROL.search(url) else None
    web = parts is not None and parts.scheme in ("http", "https") and bool(parts.netloc)
    beside = parts is not None and not parts.scheme and not parts.netloc and not url.startswith("/")
    return h("a", text, href=url, rel="noreferrer") if web or beside else h("span", text)
