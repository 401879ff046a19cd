"""Builds the stand-in packages and a signed apt repository that serves them.

.venv/bin/python -m lab.standin
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

from lab.errors import LabError
from lab.machine import locked, run
from lab.standin.packages import LAYOUTS, NOTICE, RELEASE, Package, packages

SIGNER = "PEM stand-in of the lab"
TOOLS = {  # program: its Debian package, one of packages.txt
    "dpkg-deb": "dpkg",
    "gpg": "gpg",
    "gpg-agent": "gpg-agent",
}

DESCRIPTION = f"""\
 This is a {NOTICE}. It was written from public
 descriptions and does only what tests of agents and poolers need.
"""

AFTER_INSTALLATION = """\
#!/bin/sh
set -e
user={user}
if [ "$user" ] && ! id "$user" >/dev/null 2>&1; then
    useradd --system --user-group --home-dir /var/lib/edb --shell /usr/sbin/nologin "$user"
fi
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
"""
BEFORE_REMOVAL = """\
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then systemctl disable --now --quiet {unit}; fi
"""


def build_repository(root: Path) -> Path:
    """Make `root/www/standin` what the source says; gives the file with its public key.

    The repository is left alone if neither the source nor this builder has changed since. A new
    one gets the next build number as the end of each version, so hosts take it as an upgrade;
    older packages stay beside it for hosts that have not read the new list yet.
    Raises LabError.
    """
    require_tools()
    folder = root / "www/standin"
    repository, key_file, stamp = folder / "deb", folder / "key.asc", folder / "built-from"
    repository.mkdir(parents=True, exist_ok=True)
    with locked(root / "standin.lock"):
        wanted = packages(LAYOUTS["deb"])
        source = source_hash(wanted)
        last_source, last_number = read_stamp(stamp)
        if source != last_source or not key_file.exists():
            number = last_number + 1
            built = [build_package(package, number, repository) for package in wanted]
            with keyring(root / "keys/standin") as keys:
                write(key_file, gpg(keys, "--armor", "--export", SIGNER))
                publish(repository, built, keys)
            write(stamp, f"{source} {number}\n")
    return key_file


def source_hash(wanted: list[Package]) -> str:
    """One value for all that the packages are made of."""
    material = repr(wanted) + Path(__file__).read_text()
    return hashlib.sha256(material.encode()).hexdigest()


def read_stamp(stamp: Path) -> tuple[str, int]:
    """Hash of the source and number of the last build; nothing and 0 before the first."""
    if not stamp.exists():
        return "", 0
    source, number = stamp.read_text().split()
    return source, int(number)


def build_package(package: Package, number: int, repository: Path) -> Path:
    """One .deb in the repository's directory."""
    version = f"{package.version}-{RELEASE}.{number}"
    archive = repository / f"{package.name}_{version}_all.deb"
    with tempfile.TemporaryDirectory() as work:
        tree = Path(work)
        fill(tree, package)
        put(tree, "DEBIAN/control", control(package, version))
        if package.unit:
            put(tree, "DEBIAN/postinst", AFTER_INSTALLATION.format(user=package.user), 0o755)
            put(tree, "DEBIAN/prerm", BEFORE_REMOVAL.format(unit=package.unit), 0o755)
        for directory in (tree, *(path for path in tree.rglob("*") if path.is_dir())):
            directory.chmod(0o755)
        run("dpkg-deb", "--root-owner-group", "-Zgzip", "--build", tree, archive)
    return archive


def control(package: Package, version: str) -> str:
    """What dpkg is told about a package."""
    return (
        f"Package: {package.name}\n"
        f"Version: {version}\n"
        "Architecture: all\n"
        "Maintainer: PEM stand-in of the lab <nobody@lab.test>\n"
        f"Depends: {', '.join(package.depends)}\n"
        "Section: database\n"
        "Priority: optional\n"
        f"Description: {package.summary}\n{DESCRIPTION}"
    )


def fill(tree: Path, package: Package) -> None:
    """Put a package's files, links and empty directories where they go."""
    for file in package.files:
        put(tree, file.path, file.text, file.mode)
    for path, target in package.links:
        place = tree / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)
    for directory in package.directories:
        (tree / directory.lstrip("/")).mkdir(parents=True, exist_ok=True)


def put(tree: Path, path: str, text: str, mode: int = 0o644) -> None:
    """One file of a package's tree."""
    place = tree / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    place.chmod(mode)


def publish(repository: Path, built: list[Path], keys: Path) -> None:
    """List the packages just built, and sign the list.

    InRelease comes last: apt reads it first, and it vouches for the list.
    """
    index = "\n".join(stanza(archive) for archive in built)
    write(repository / "Packages", index)
    release = (
        f"Origin: {SIGNER}\n"
        f"Description: {NOTICE}\n"
        f"Date: {format_datetime(datetime.now(UTC), usegmt=True)}\n"
        f"SHA256:\n {hashlib.sha256(index.encode()).hexdigest()} {len(index.encode())} Packages\n"
    )
    write(repository / "Release", release)
    signed = gpg(keys, "--clearsign", "--digest-algo", "SHA512", "-u", SIGNER, stdin=release)
    write(repository / "InRelease", signed)


def stanza(archive: Path) -> str:
    """A package's entry in the list."""
    content = archive.read_bytes()
    return (
        f"{run('dpkg-deb', '--field', archive)}"
        f"Filename: {archive.name}\n"
        f"Size: {len(content)}\n"
        f"SHA256: {hashlib.sha256(content).hexdigest()}\n"
    )


@contextmanager
def keyring(directory: Path) -> Iterator[Path]:
    """The directory of the signing key, which is made once. gpg's agent ends with the block."""
    directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    try:
        if not any(directory.glob("private-keys-v1.d/*.key")):
            new_key = ("--quick-generate-key", SIGNER, "ed25519", "sign", "never")
            gpg(directory, "--passphrase", "", *new_key)
        yield directory
    finally:
        run("gpgconf", "--homedir", directory, "--kill", "gpg-agent")


def gpg(keys: Path, *arguments: str, stdin: str | None = None) -> str:
    """Run gpg with the keys of this directory; gives its output."""
    return run("gpg", "--homedir", keys, "--batch", "--quiet", *arguments, stdin=stdin)


def require_tools() -> None:
    """Raise LabError naming the Debian packages of the programs that are missing."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        names = " ".join(sorted({TOOLS[tool] for tool in missing}))
        raise LabError(
            f"missing on this machine: {', '.join(missing)}",
            hint=f"apt-get install --no-install-recommends {names}",
        )


def write(path: Path, text: str) -> None:
    """Replace a file at once: a host may be reading it."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.replace(path)
