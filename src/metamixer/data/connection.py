"""The one place that asks servers: it waits briefly, tries few times, and tells in one sentence what is in the way."""

from __future__ import annotations

import email.utils
import http.client
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import Message
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from metamixer.errors import MetamixerError
from metamixer.printing import notices

CONNECT = 5.0  # seconds to reach a server: its name looked up, all its addresses tried, keys exchanged
ANSWER = 10.0  # seconds without a byte from a server that was reached
TRIES = 3  # in all, where a server is busy
PATIENCE = 5.0  # the longest wait between them that a server may ask for, in seconds
_BUSY = (429, 500, 502, 503, 504)
_REFUSED = (401, 403)


class RefusedError(MetamixerError):
    """A server answered, but not with what was asked for.

    Attributes:
        code: of the answer.
        headers: of the answer.
    """

    def __init__(self, sentence: str, code: int, headers: Message) -> None:
        super().__init__(sentence)
        self.code = code
        self.headers = headers


class UnreachableError(MetamixerError):
    """There is no network, or it does not lead to the server."""


def ask(
    url: str,
    headers: Mapping[str, str] | None = None,
    secrets: Mapping[str, str] | None = None,
    method: str = "GET",
) -> Any:
    """The answer of a server, to be read and closed like a file; ``status``, ``headers`` and ``url`` tell of it.

    Args:
        url: http or https address. Proxies and certificates are those of the environment (``https_proxy``,
            ``SSL_CERT_FILE`` …).
        headers: of the request, also where the server sends on to another address.
        secrets: headers for the first server alone.
        method: "GET" or "HEAD".

    Raises UnreachableError where no server answers in time or its certificate is not trusted, RefusedError where it
    answers with an error, after trying again where it was busy.
    """
    if not url.startswith(("http://", "https://")):
        raise UnreachableError(f"{address(url)!r} is no http or https address")
    for left in reversed(range(TRIES)):
        try:
            request = urllib.request.Request(_quoted(url), headers=dict(headers or {}), method=method)
            for name, value in (secrets or {}).items():
                request.add_unredirected_header(name, value)
            return _opener().open(request, timeout=CONNECT)
        except urllib.error.HTTPError as error:
            error.close()
            wait = _asked_wait(error.headers)
            if error.code not in _BUSY or not left or (wait or 0) > PATIENCE:
                raise _refused(url, error, wait) from None
            wait = 1.0 if wait is None else wait
            notices.warning("%s answered %d; trying again in %.0f s", address(url), error.code, wait)
            time.sleep(wait)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _unreachable(url, error) from None
    raise AssertionError  # the last try returns or raises


def address(url: str) -> str:
    """The address without a password and without the signature that some hold behind a question mark."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class _Patient:
    """A connection that is there in ``CONNECT`` seconds, or given up.

    Sockets count each address of a server anew and looking up its name not at all, which together may take minutes.
    """

    sock: Any

    def connect(self) -> None:
        failures: list[BaseException] = []
        given_up = threading.Event()

        def attempt() -> None:
            try:
                super(_Patient, self).connect()  # type: ignore[misc]  # of the class beside this one
                if given_up.is_set():
                    self.sock.close()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(CONNECT)
        if thread.is_alive():
            given_up.set()
            raise TimeoutError(f"no connection within {CONNECT:.0f} seconds")
        if failures:
            raise failures[0]
        self.sock.settimeout(ANSWER)


class _Http(_Patient, http.client.HTTPConnection):
    pass


class _Https(_Patient, http.client.HTTPSConnection):
    pass


class _HttpHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_Http, req)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_Https, req, context=ssl.create_default_context())


class _RedirectHandler(urllib.request.HTTPRedirectHandler):
    """Sends on to http and https only, and not from https to http; a HEAD stays one."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if not newurl.startswith(("https://", f"{req.type}://")):
            return None
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            request.method = req.method
        return request


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_HttpHandler, _HttpsHandler, _RedirectHandler)


def _quoted(url: str) -> str:
    """As it can be sent; what is escaped already stays."""
    return quote(url, safe="%/:=&?~#+!$,;'@()*[]", errors="surrogateescape")


def _asked_wait(headers: Message) -> float | None:
    """Seconds that the server asks to wait, as a number or as a date."""
    said = (headers.get("Retry-After") or "").strip()
    if re.fullmatch(r"\d{1,9}", said, re.ASCII):
        return float(said)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _refused(url: str, error: urllib.error.HTTPError, wait: float | None) -> RefusedError:
    try:
        words = HTTPStatus(error.code).phrase  # not the server's own, which may hold anything
    except ValueError:
        words = "no known code"
    sentence = f"{address(url)} answered {error.code} ({words})"
    if error.code in _REFUSED:
        sentence += "; it is not there for everyone, or not for this user"
    elif 300 <= error.code < 400:
        sentence += " and leads nowhere"
    elif wait is not None:
        sentence += f" and asks to wait {wait:.0f} seconds; run the same command again then"
    elif error.code in _BUSY:
        sentence += f", {TRIES} times; run the same command again later"
    return RefusedError(sentence, error.code, error.headers)


def _unreachable(url: str, error: Exception) -> UnreachableError:
    cause: Any = getattr(error, "reason", None) or error
    place, proxy = address(url), _proxy(url)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return UnreachableError(
            f"the certificate of {place} is not trusted ({cause.verify_message}); where a proxy looks into"
            " connections, name the file of its certificate in SSL_CERT_FILE"
        )
    if isinstance(error, TimeoutError):  # reached: those on the way there come as a URLError
        return UnreachableError(f"{place} does not answer: nothing came in {ANSWER:.0f} seconds")
    tunnel = re.match(r"Tunnel connection failed: (\d+)", str(cause))
    if tunnel:
        return UnreachableError(f"the proxy {proxy} does not let through to {place} (it answered {tunnel[1]})")
    reason = " ".join(str(getattr(cause, "strerror", None) or cause).split()) or type(cause).__name__
    way = f"through the proxy {proxy} " if proxy else ""
    return UnreachableError(f"{place} could not be reached {way}({reason}); is there a network?")


def _proxy(url: str) -> str:
    """The proxy on the way to an address, as the environment names it; empty without one."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    if not parts.hostname or urllib.request.proxy_bypass(parts.hostname):
        return ""
    proxy = urllib.request.getproxies().get(parts.scheme, "")
    return address(proxy if "://" in proxy else f"http://{proxy}") if proxy else ""
