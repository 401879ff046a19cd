"""The Debian mirrors that the control machine's own apt uses: hosts get their packages from them.

No mirror is named in this project. apt itself is asked, so that both kinds of sources files, and
whatever is included from where, mean here what they mean to apt.
"""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from lab.errors import LabError
from lab.machine import run


@dataclass(frozen=True)
class Mirrors:
    """URLs of the archive and of the security updates ("" if this machine has none)."""

    archive: str
    security: str


class Repository(NamedTuple):
    """One line of apt's sources, and who its Release file says makes it ("Debian")."""

    url: str
    release: str
    component: str
    origin: str


def repositories() -> list[Repository]:
    """Every repository of this machine's apt.

    Raises LabError if apt has none.
    """
    listing = run(
        "apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)",
        "Created-By: Packages",
    )  # fmt: skip
    found = []
    for line in listing.splitlines():
        url, release, component, origin = line.split("|", 3)
        found.append(Repository(_first_mirror(url).rstrip("/"), release, component, origin))
    if not found:
        raise LabError(
            "apt on this machine has no repository, so the lab has no mirror to use",
            hint="apt-get update; apt-cache policy",
        )
    return found


def upstreams() -> dict[str, str]:
    """For every server of this machine's repositories, "host" or "host:port": http or https."""
    urls = [urlsplit(repository.url) for repository in repositories()]
    return {
        url.netloc.rpartition("@")[2]: url.scheme for url in urls if url.scheme in ("http", "https")
    }


def proxies() -> dict[str, str]:
    """The proxies by which this machine's own apt reaches its mirrors: scheme to URL."""
    found = {}
    for scheme in ("http", "https"):
        line = run("apt-config", "shell", "PROXY", f"Acquire::{scheme}::Proxy").strip()
        url = line.partition("=")[2].strip("'")
        if url and url != "DIRECT":
            found[scheme] = url
    return found


def debian_mirrors() -> Mirrors:
    """The mirrors of Debian's own archive.

    Raises LabError if there is none.
    """
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    names = {codename, "stable", "oldstable", "testing", "unstable", "sid"}
    found = [one for one in repositories() if (one.origin, one.component) == ("Debian", "main")]
    archive = [one.url for one in found if one.release in names]
    security = [one.url for one in found if one.release.endswith("-security")]
    if not archive:
        raise LabError(
            f"apt on this machine has no repository with Debian's {codename} main",
            hint="apt-get update; apt-cache policy: the machine is an ordinary Debian 12 or 13",
        )
    return Mirrors(archive[0], security[0] if security else "")


def _first_mirror(url: str) -> str:
    """The URL itself, or the first one of a list of mirrors kept in a file (mirror+file:...)."""
    scheme, _, path = url.partition(":")
    if scheme != "mirror+file":
        return url
    lines = Path("/" + path.strip("/")).read_text().splitlines()
    return next((line.split()[0] for line in lines if line and not line.startswith("#")), url)
