"""One file on its way from a mirror into the cache, read by any number of clients as it grows."""

import email.utils
import http.client
import os
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

MIRROR_TIMEOUT_SECONDS = 30
SILENCE_SECONDS = 30
CHUNK_BYTES = 1 << 18


class RedirectsAmong(urllib.request.HTTPRedirectHandler):
    """Goes where a mirror points to if that is a mirror too; for clients it is a 502 if not."""

    def __init__(self, mirrors: set[str]) -> None:
        self.mirrors = mirrors

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """What to ask next. Raises HTTPError for a server that is none of the mirrors."""
        if urlsplit(newurl).netloc.lower() not in self.mirrors:
            print(f"{req.full_url}: redirect refused: {newurl}", file=sys.stderr, flush=True)
            raise urllib.error.HTTPError(
                req.full_url, HTTPStatus.BAD_GATEWAY, "redirect refused", headers, fp
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class Downloads:
    """The downloads under way: never two of the same file at once."""

    def __init__(self, proxies: dict[str, str], mirrors: set[str]) -> None:
        self.opener = urllib.request.build_opener(
            urllib.request.ProxyHandler(proxies), RedirectsAmong(mirrors)
        )
        self.under_way: dict[Path, Download] = {}
        self.guard = threading.Lock()
        self.silent_until: dict[str, float] = {}  # mirrors that did not answer

    def get(self, url: str, file: Path) -> "Download":
        """The download of `url` to `file`: the one under way, or a new one."""
        with self.guard:
            download = self.under_way.get(file)
            if download is None:
                download = self.under_way[file] = Download(self, url, file)
                download.start()
            return download

    def silent(self, url: str) -> bool:
        """Whether the mirror did not answer a moment ago: then nobody waits for it again."""
        return time.monotonic() < self.silent_until.get(urlsplit(url).netloc, 0)

    def note_silence(self, url: str) -> None:
        """The mirror of `url` does not answer."""
        self.silent_until[urlsplit(url).netloc] = time.monotonic() + SILENCE_SECONDS

    def forget(self, download: "Download") -> None:
        """The download has ended: the next request looks into the cache."""
        with self.guard:
            del self.under_way[download.file]


class Download(threading.Thread):
    """Fetches `url`; `file` appears, or is replaced, only when everything has come.

    `length` in bytes is None until the mirror says it, and stays so if the mirror does not.
    """

    def __init__(self, downloads: Downloads, url: str, file: Path) -> None:
        super().__init__(daemon=True)
        self.downloads, self.url, self.file = downloads, url, file
        self.changed = threading.Condition()
        self.status = 0
        self.length: int | None = None
        self.modified = ""
        self.received = 0
        self.finished = False
        self.descriptor = -1  # of the incomplete file

    def run(self) -> None:
        """Fetch the file. Whatever goes wrong, the clients that wait are told."""
        try:
            self._fetch()
        except urllib.error.HTTPError as answer:  # anything but 200, so 304 too
            answer.close()
            self.status = answer.code
            if answer.code == HTTPStatus.NOT_MODIFIED:
                os.utime(self.file, (time.time(), self.file.stat().st_mtime))
        except (OSError, ValueError, http.client.HTTPException) as error:
            print(f"{self.url}: {error!r}", file=sys.stderr, flush=True)
            if self.length is None:  # nobody is being served from what came so far
                self.status = HTTPStatus.GATEWAY_TIMEOUT
            self.downloads.note_silence(self.url)
        finally:
            self.downloads.forget(self)
            with self.changed:
                self.finished = True
                self.changed.notify_all()

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def wait_for_answer(self) -> int:
        """The mirror's status code; 504 if it did not answer.

        With 200 and a known length the bytes can be had from `chunks` as they come.
        """
        with self.changed:
            self.changed.wait_for(lambda: self.finished or self.length is not None)
            return self.status

    def chunks(self) -> Iterator[bytes]:
        """The file's bytes as they come; fewer than `length` if the mirror breaks off."""
        sent = 0
        while True:
            with self.changed:
                while self.received == sent and not self.finished:
                    self.changed.wait()
                available = self.received - sent
            if not available:
                return
            chunk = os.pread(self.descriptor, min(CHUNK_BYTES, available), sent)
            sent += len(chunk)
            yield chunk

    def _fetch(self) -> None:
        headers = {"User-Agent": "lab-proxy", "Accept-Encoding": "identity"}
        if self.file.is_file():
            headers["If-Modified-Since"] = http_date(self.file.stat().st_mtime)
        # The scheme is http or https: the URL begins with one of apt's own repositories.
        request = urllib.request.Request(self.url, headers=headers)  # noqa: S310  as above
        opener = self.downloads.opener
        with opener.open(request, timeout=MIRROR_TIMEOUT_SECONDS) as answer:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.descriptor, part = tempfile.mkstemp(dir=self.file.parent, prefix=".part-")
            try:
                self._receive(answer)
                modified = email.utils.parsedate_to_datetime(self.modified).timestamp()
                os.utime(part, (time.time(), modified))
                Path(part).rename(self.file)
            finally:
                Path(part).unlink(missing_ok=True)

    def _receive(self, answer: http.client.HTTPResponse) -> None:
        with self.changed:
            self.status, self.length = answer.status, answer.length
            self.modified = answer.headers.get("Last-Modified") or http_date(time.time())
            self.changed.notify_all()
        with os.fdopen(self.descriptor, "wb", closefd=False) as part:
            while chunk := answer.read1(CHUNK_BYTES):
                part.write(chunk)
                part.flush()  # the clients read what is in the file
                with self.changed:
                    self.received += len(chunk)
                    self.changed.notify_all()
            os.fsync(self.descriptor)
        if self.length is not None and self.received != self.length:
            raise http.client.IncompleteRead(b"", self.length - self.received)


def http_date(seconds: float) -> str:
    """Seconds since 1970 as HTTP writes a moment."""
    return email.utils.formatdate(seconds, usegmt=True)
