"""Servers are asked patiently and politely, and a Ctrl-C is heard.

One `Web` holds one pool of connections for all threads. What may pass (lost connections, time-outs,
408, 425, 429, 5xx) raises `PassingError`; `Attempts` counts those, waits (doubling, or as long as
the server's Retry-After says) and gives up with the last reason. What will not pass raises
`FetchError`.
"""

from __future__ import annotations

import random
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from itertools import pairwise
from typing import TYPE_CHECKING, Self

import httpx

from .remote import FetchError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Attempts",
    "PassingError",
    "Patience",
    "Stamp",
    "StoppedError",
    "Web",
    "check_status",
    "retry_after_s",
]

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_NO_HEAD = frozenset({400, 403, 405, 501})
_LARGEST_TEXT_BYTES = 64 << 20


class StatusError(FetchError):
    """A server refuses; ``status`` is its number."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class PassingError(Exception):
    """An attempt failed in a way that may pass.

    Parameters
    ----------
    reason
        In words.
    wait_s
        How long the server asks to be left alone.
    """

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class StoppedError(Exception):
    """The user has stopped the run; what is on disk stays there."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and how long to try again.

    Parameters
    ----------
    retries
        Failed attempts in a row, without a new mebibyte, after the first.
    first_wait_s, longest_wait_s
        The first wait, which doubles, and where the doubling ends.
    longest_asked_s
        A server that asks for a longer pause than this is given up.
    """

    retries: int = 5
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    longest_asked_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a server says of the present state of a file: size and validators (RFC 9110)."""

    size_bytes: int | None = None
    etag: str | None = None
    modified: str | None = None

    @classmethod
    def of(cls, headers: httpx.Headers, size_bytes: int | None = None) -> Stamp:
        """Read a stamp from a response; ``size_bytes`` overrides Content-Length."""
        if size_bytes is None:
            length = headers.get("content-length", "")
            size_bytes = int(length) if length.isascii() and length.isdigit() else None
        return cls(size_bytes, headers.get("etag"), headers.get("last-modified"))

    @property
    def validator(self) -> str | None:
        """What If-Range may carry: a strong ETag, else the date."""
        if self.etag is not None and not self.etag.startswith("W/"):
            return self.etag
        return self.modified

    def differs(self, other: Stamp) -> bool:
        """Say whether the two are surely different states of the file."""
        if self.etag is not None and other.etag is not None:
            return self.etag != other.etag
        if self.modified is not None and other.modified is not None:
            return self.modified != other.modified
        return False


class Web:
    """A pool of connections with one way to fail.

    Parameters
    ----------
    connections
        At most so many at a time.
    patience
        When to try again.
    timeout_s
        A connection that is silent so long is lost.

    Examples
    --------
    >>> with Web(connections=1) as web:
    ...     web.stopped
    False
    """

    def __init__(
        self, *, connections: int = 4, patience: Patience | None = None, timeout_s: float = 60.0
    ) -> None:
        self.patience = patience or Patience()
        self._stop = threading.Event()
        self._client = httpx.Client(
            follow_redirects=True,
            max_redirects=5,
            timeout=httpx.Timeout(timeout_s, pool=None),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            headers={
                "User-Agent": f"deepict-dask/{version('deepict-dask')} (httpx)",
                # Sizes and ranges are those of the stored bytes only if nothing packs them.
                "Accept-Encoding": "identity",
            },
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Make all waits and transfers end soon, in whatever thread."""
        self._stop.set()

    def pause(self, seconds: float) -> None:
        """Wait, unless stopped."""
        if self._stop.wait(seconds):
            raise StoppedError

    @contextmanager
    def ask(self, method: str, url: str, **headers: str) -> Iterator[httpx.Response]:
        """Open a response; only statuses below 400, and 416, come back.

        Raises
        ------
        PassingError
            If another attempt may succeed.
        FetchError
            If none will.
        """
        if self.stopped:
            raise StoppedError
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            with self._client.stream(method, url, headers=named) as response:
                check_status(response, url)
                yield response
        except httpx.TransportError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise FetchError(
                    f"{url}: the server's certificate is not trusted: {error}"
                ) from error
            raise PassingError(f"{type(error).__name__}: {error}") from error
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise FetchError(f"{url}: {type(error).__name__}: {error}") from error

    def text(self, url: str) -> tuple[str, str]:
        """Return a small text and the URL it came from in the end."""
        attempts = Attempts(self, url)
        while True:
            try:
                return self._text_once(url)
            except PassingError as error:
                attempts.failed(error)

    def _text_once(self, url: str) -> tuple[str, str]:
        with self.ask("GET", url) as response:
            body = bytearray()
            for piece in response.iter_bytes():
                body += piece
                if len(body) > _LARGEST_TEXT_BYTES:
                    raise FetchError(f"{url}: expected a listing, found more than 64 MiB")
            return body.decode(response.charset_encoding or "utf-8", "replace"), str(response.url)

    def head(self, url: str) -> tuple[Stamp, str]:
        """Return what the server says of a file, and its URL after redirects.

        A server that does not answer HEAD gives an empty stamp.
        """
        attempts = Attempts(self, url)
        while True:
            try:
                with self.ask("HEAD", url) as response:
                    return Stamp.of(response.headers), str(response.url)
            except PassingError as error:
                attempts.failed(error)
            except StatusError as error:
                if error.status in _NO_HEAD:
                    return Stamp(), url
                raise


class Attempts:
    """Counts failures in a row of one request, and waits between them."""

    def __init__(self, web: Web, name: str) -> None:
        self._web, self._name, self._failures = web, name, 0

    def renew(self) -> None:
        """Forget past failures: there was progress."""
        self._failures = 0

    def failed(self, error: PassingError) -> None:
        """Wait before the next attempt, or give up.

        Raises
        ------
        FetchError
            If there were too many, or the server asks for too long a pause.
        """
        self._failures += 1
        patience = self._web.patience
        if self._failures > patience.retries:
            raise FetchError(f"{self._name}: {error} (after {self._failures} attempts)") from error
        if (error.wait_s or 0) > patience.longest_asked_s:
            raise FetchError(
                f"{self._name}: {error}; the server asks to come back in {error.wait_s:.0f} s"
            ) from error
        wait = patience.first_wait_s * 2.0 ** (self._failures - 1)
        # A little noise keeps several workers from knocking at the same moment.
        wait = min(wait, patience.longest_wait_s) * random.uniform(0.75, 1.25)
        self._web.pause(max(wait, error.wait_s or 0))


def retry_after_s(text: str | None, now: datetime | None = None) -> float | None:
    """Return the pause that a Retry-After header asks for, or None.

    Examples
    --------
    >>> retry_after_s("7"), retry_after_s("soon"), retry_after_s(None)
    (7.0, None, None)
    >>> retry_after_s("Fri, 31 Dec 1999 23:59:59 GMT", datetime(1999, 12, 31, 23, 59, tzinfo=UTC))
    59.0
    """
    if text is None:
        return None
    if text.strip().isascii() and text.strip().isdigit():
        return float(text)
    try:
        then = parsedate_to_datetime(text)
    except ValueError:
        return None
    if then.tzinfo is None:  # "-0000": the date is UTC all the same
        then = then.replace(tzinfo=UTC)
    return max((then - (now or datetime.now(UTC))).total_seconds(), 0.0)


def check_status(response: httpx.Response, url: str) -> None:
    """Turn bad statuses, and redirects from https to http, into errors."""
    hops = [*(r.url.scheme for r in response.history), response.url.scheme]
    if ("https", "http") in pairwise(hops):
        raise FetchError(f"{url}: the server leads from https to {response.url}; refused")
    said = f"the server says {response.status_code} {response.reason_phrase}".rstrip()
    if response.status_code in _PASSING:
        raise PassingError(said, retry_after_s(response.headers.get("retry-after")))
    if response.status_code >= 400 and response.status_code != 416:
        raise StatusError(f"{url}: {said}", response.status_code)
