"""GitHub's REST API, as far as the tracker needs it: list, create and comment issues.

What GitHub asks of a client (docs.github.com, "Best practices for using the REST API" and "Rate
limits for the REST API"): follow ``Link`` for further pages; after a 403 or 429, wait for
``retry-after``, or until
``x-ratelimit-reset`` where ``x-ratelimit-remaining`` is 0, or a minute, and longer after each; a second
at least between two requests that write. A list by label shows an issue at once; the search does not.

A write that ends in 5xx or in a broken connection may have taken place, so it is not repeated here:
:exc:`UnclearError` lets the caller look first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from harness.errors import HostError, UsageError

if TYPE_CHECKING:
    import requests

API: Final = "https://api.github.com"

_VERSION: Final = "2022-11-28"
_TIMEOUT: Final = (30, 60)
_PAGE: Final = 100
_MOST_PAGES: Final = 200
_TRIES: Final = 5
_PACE: Final = 1.0
"""Seconds between two requests that write."""
_MINUTE: Final = 60.0


class UnclearError(HostError):
    """A write whose outcome is unknown."""


def pause(seconds: float) -> None:
    """Wait; Ctrl-C ends it."""
    threading.Event().wait(seconds)


class GitHub:
    """The issues of one repository.

    Args:
        repository: ``OWNER/NAME``.
        token: The token; it is never in an error or a log.
        api: The URL of the API.
        patience: Seconds that all waits together may take.
        wait: What waits; tests bring their own.

    Raises:
        UsageError: The repository or the token has not the form of one.
    """

    def __init__(
        self,
        repository: str,
        token: str,
        *,
        api: str = "",
        patience: float = 900.0,
        wait: Callable[[float], None] = pause,
    ) -> None:
        import requests

        owner, slash, name = repository.partition("/")
        if not (owner and slash and name) or "/" in name or any(c in repository for c in "?#% "):
            raise UsageError(f"{repository!r} is no repository", hint="write OWNER/NAME")
        if not token.isascii() or any(character.isspace() for character in token):
            # Not the token: requests would print it.
            raise UsageError(
                "the token has characters that no token has, such as a line's end",
                hint="set it anew from the secret, without quotes and newlines",
            )
        self._api = (api or API).rstrip("/")
        self._issues = f"{self._api}/repos/{repository}/issues"
        self._session = requests.Session()
        self._session.auth = _bearer(token)
        self._session.headers.update(
            {
                "Accept": "application/vnd.github+json",
                "X-GitHub-Api-Version": _VERSION,
                "User-Agent": "harness-os",
            }
        )
        self._patience = patience
        self._wait = wait
        self._writes = 0

    def __enter__(self) -> GitHub:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def issues(self, label: str) -> list[dict[str, Any]]:
        """Return all issues with a label, open and closed; pull requests are left out.

        Raises:
            HostError: GitHub refuses, or does not answer.
        """
        query = {"labels": label, "state": "all", "per_page": str(_PAGE)}
        return [each for each in self._pages(self._issues, query) if "pull_request" not in each]

    def comments(self, number: int, since: str) -> list[dict[str, Any]]:
        """Return the comments of an issue that were made or changed since a time in ISO 8601."""
        query = {"per_page": str(_PAGE), **({"since": since} if since else {})}
        return list(self._pages(f"{self._issues}/{number}/comments", query))

    def create(self, title: str, body: str, label: str) -> dict[str, Any]:
        """Create an issue and return it.

        Raises:
            UnclearError: It may have been created, or not.
            HostError: GitHub refuses.
        """
        content = {"title": title, "body": body, "labels": [label]}
        return self._write(self._issues, content)

    def comment(self, number: int, body: str) -> dict[str, Any]:
        """Add a comment to an issue and return it; raises as :meth:`create` does."""
        return self._write(f"{self._issues}/{number}/comments", {"body": body})

    # --- requests ---------------------------------------------------------------------------------

    def _pages(self, url: str, query: dict[str, str]) -> Iterator[dict[str, Any]]:
        parameters: dict[str, str] | None = query
        for _ in range(_MOST_PAGES):
            response = self._send("GET", url, params=parameters)
            content = response.json()
            if not isinstance(content, list):
                raise HostError(f"{self._issues} answered no list")
            yield from (each for each in content if isinstance(each, dict))
            following = response.links.get("next", {}).get("url", "")
            if not following:
                return
            if urlsplit(following)[:2] != urlsplit(self._api)[:2]:
                raise HostError(f"{self._api} names a next page on another host: {following}")
            # It has the query already.
            url, parameters = following, None
        raise HostError(f"{self._issues} has more than {_MOST_PAGES} pages")

    def _write(self, url: str, content: dict[str, Any]) -> dict[str, Any]:
        if self._writes:
            self._wait(_PACE)
        self._writes += 1
        answer: dict[str, Any] = self._send("POST", url, json=content).json()
        return answer

    def _send(self, method: str, url: str, **further: Any) -> requests.Response:
        import requests

        reading = method == "GET"
        for attempt in range(1, _TRIES + 1):
            try:
                response = self._session.request(method, url, timeout=_TIMEOUT, **further)
            except requests.RequestException as error:
                problem = f"{method} {url} failed: {type(error).__name__}"
                if not reading:
                    raise UnclearError(problem) from error
                if attempt == _TRIES:
                    raise HostError(problem, hint="is the network up? run it again") from error
                self._hold(2.0**attempt, problem)
                continue
            if response.ok:
                return response
            problem = f"{method} {url}: {response.status_code} {_message(response)}"
            delay = _delay(response, attempt)
            if delay is not None and attempt < _TRIES:
                # Nothing was done: the limit is looked at first.
                self._hold(delay, problem)
            elif response.status_code >= 500 and not reading:
                raise UnclearError(problem)
            elif response.status_code >= 500 and attempt < _TRIES:
                self._hold(2.0**attempt, problem)
            else:
                raise HostError(problem, hint=_HINTS.get(response.status_code, ""))
        raise AssertionError("unreachable")

    def _hold(self, seconds: float, problem: str) -> None:
        if seconds > self._patience:
            raise HostError(
                f"{problem}; it asks to wait {seconds:.0f} s, which is longer than this command may",
                hint="run it again later: what is filed already is found and not filed again",
            )
        self._patience -= seconds
        self._wait(seconds)


_HINTS: Final = {
    401: "the token is wrong or has expired",
    403: "the token needs the permission to read and write issues",
    404: "is the repository's name right, and may the token see it?",
    410: "the repository has issues switched off",
}


def _bearer(token: str) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    # As "auth", because requests would put the netrc file's account in the place of a mere header.
    def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    return authorize


def _message(response: requests.Response) -> str:
    try:
        content = response.json()
    except ValueError:
        return response.reason or ""
    return str(content.get("message", "") if isinstance(content, dict) else "")[:200]


def _delay(response: requests.Response, attempt: int) -> float | None:
    """Return for how long GitHub asks to wait; ``None`` if the answer is not about a limit."""
    if response.status_code not in (403, 429):
        return None
    headers = response.headers
    if (after := headers.get("retry-after", "")).isdigit():
        return float(after)
    if headers.get("x-ratelimit-remaining") == "0":
        reset = headers.get("x-ratelimit-reset", "")
        return max(1.0, float(reset) - time.time()) if reset.isdigit() else _MINUTE
    limited = response.status_code == 429 or "rate limit" in _message(response).lower()
    return _MINUTE * 2.0 ** (attempt - 1) if limited else None
