"""A caching proxy for packages: the hosts' only way to them.

    python -m lab.proxy ADDRESS PORT CACHE WWW NAME

Serves the repositories that the control machine's own apt uses, and nothing else: any other host is
refused (403). The folder WWW is served as http://NAME/. What was fetched once is kept under CACHE,
so that a lab that was built once can be built again without a network:

- package files and by-hash indexes never change: kept for ever;
- other files are asked for again after an hour, and served as they are if nobody answers.

A mirror that wants https is spoken to by https; hosts speak http to the proxy, and trust packages
by their signatures. LAB_OFFLINE=1 asks no mirror at all.
"""

import email.utils
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lab import apt, cgroup, seed
from lab.download import CHUNK_BYTES, Downloads, http_date
from lab.errors import LabError
from lab.hosts import Lab

GROUP = "_proxy"  # of its processes; not a possible name of a host
FRESH_SECONDS = 3600
CLIENT_TIMEOUT_SECONDS = 120


class Proxy(ThreadingHTTPServer):
    """The server, and what it may serve."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], cache: Path, www: Path, name: str) -> None:
        super().__init__(address, Handler)
        self.cache, self.www, self.name = cache, www, name
        self.upstreams = apt.upstreams()
        self.downloads = Downloads(apt.proxies(), set(self.upstreams))
        self.offline = bool(os.environ.get("LAB_OFFLINE"))

    def fresh(self, path: str, file: Path) -> bool:
        """Whether `file`, the cache's copy of the URL's `path`, may be served unasked."""
        if not file.is_file():
            return False
        forever = "/pool/" in path or "/by-hash/" in path or path.endswith(".deb")
        # The change time is when the mirror last said what the file is.
        return forever or self.offline or time.time() - file.stat().st_ctime < FRESH_SECONDS


class Handler(BaseHTTPRequestHandler):
    """One client's connection."""

    protocol_version = "HTTP/1.1"
    timeout = CLIENT_TIMEOUT_SECONDS
    server: Proxy

    def do_GET(self) -> None:
        """Serve a file of WWW, of the cache, or of a mirror."""
        url = urlsplit(self.path)
        host = (url.netloc or self.headers.get("Host", "")).lower()
        path = unquote(url.path).lstrip("/")
        if host != self.server.name and host not in self.server.upstreams:
            self._refuse(HTTPStatus.FORBIDDEN, f"{host} is none of the control machine's mirrors")
        elif ".." in path.split("/") or not path or path.endswith("/"):
            self._refuse(HTTPStatus.NOT_FOUND, "no such file")
        elif host == self.server.name:
            self._send_file(self.server.www / path)
        else:
            self._send_mirrored(host, url.path, self.server.cache / host / path)

    do_HEAD = do_GET  # noqa: N815 -- as above

    def do_CONNECT(self) -> None:
        """Refuse a tunnel: what goes through it could be neither checked nor kept."""
        self._refuse(HTTPStatus.FORBIDDEN, "no tunnels; the lab's hosts use http")

    def _send_mirrored(self, host: str, path: str, file: Path) -> None:
        if self.server.fresh(path, file):
            self._send_file(file)
            return
        if self.server.offline:
            self._refuse(HTTPStatus.GATEWAY_TIMEOUT, "not in the cache, and the lab is offline")
            return
        url = f"{self.server.upstreams[host]}://{host}{path}"
        if file.is_file() and self.server.downloads.silent(url):
            self._send_file(file)
            return
        download = self.server.downloads.get(url, file)
        status = download.wait_for_answer()
        if status == HTTPStatus.OK and download.length is not None:
            self._send(download.length, download.modified, download.chunks())
        elif file.is_file() and (
            status < 400 or status >= 500
        ):  # unchanged, new, or nobody answers
            self._send_file(file)
        else:
            self._refuse(HTTPStatus(status), f"{url}: the mirror said {status}")

    def _send_file(self, file: Path) -> None:
        if not file.is_file():
            self._refuse(HTTPStatus.NOT_FOUND, "no such file")
            return
        with file.open("rb") as content:
            stat = os.fstat(content.fileno())
            known = email.utils.parsedate_tz(self.headers.get("If-Modified-Since", ""))
            if known and email.utils.mktime_tz(known) >= int(stat.st_mtime):
                self.send_response(HTTPStatus.NOT_MODIFIED)
                self.end_headers()
                return
            chunks = iter(lambda: content.read(CHUNK_BYTES), b"")
            self._send(stat.st_size, http_date(stat.st_mtime), chunks)

    def _send(self, length_bytes: int, modified: str, chunks: Iterator[bytes]) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Length", str(length_bytes))
        self.send_header("Last-Modified", modified)
        self.end_headers()
        if self.command == "HEAD":
            return
        for chunk in chunks:
            self.wfile.write(chunk)
            length_bytes -= len(chunk)
        if length_bytes:  # the mirror broke off: so do we, and the client sees it
            self.close_connection = True

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        text = f"lab proxy: {why}\n".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)


def start(lab: Lab) -> None:
    """Start the lab's proxy on its gateway address, if it is not running.

    Raises LabError if another program has its port, or if it does not come up within 20 s.
    """
    address = (lab.gateway, seed.PROXY_PORT)
    earlier = cgroup.groups(lab.name, GROUP)
    if any(group.alive() for group in earlier) and _listens(address):
        return
    for group in earlier:
        group.kill()
    if _listens(address):
        raise LabError(
            f"{lab.gateway}:{seed.PROXY_PORT}, the place of the package proxy,"
            " is taken by another program",
            hint=f"ss -ltnp sport = :{seed.PROXY_PORT}",
        )
    group = cgroup.Group.create(lab.name, GROUP)
    command = [sys.executable, "-m", "lab.proxy", lab.gateway, str(seed.PROXY_PORT)]
    folders = [lab.root / "packages", lab.root / "www"]
    log_file = lab.directory / "proxy.log"
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            [*command, *folders, seed.packages_host(lab)],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # In its group before it is the proxy: whatever happens to us, `down` finds it.
            preexec_fn=lambda: group.add(os.getpid()),  # noqa: PLW1509 -- no threads run here
        )
    deadline = time.monotonic() + 20
    while not _listens(address):
        if process.poll() is not None or time.monotonic() > deadline:
            raise LabError("the package proxy does not start", hint=f"tail {log_file}")
        time.sleep(0.05)


def _listens(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return False
    return True


def main() -> None:
    """Serve until killed."""
    address, port, cache, www, name = sys.argv[1:]
    Proxy((address, int(port)), Path(cache), Path(www), name).serve_forever()


if __name__ == "__main__":
    main()
