"""Builds the stand-in packages and a signed apt repository that serves them.

.venv/bin/python -m lab.standin
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.standin.packages import LAYOUTS, NOTICE, RELEASE, Package, packages

SIGNER = "PEM stand-in of the lab"
TOOLS = ("dpkg-deb", "apt-ftparchive", "gpg", "gpgconf")

DESCRIPTION = f""" This is a {NOTICE}. It was written from public descriptions
 and does only what tests of agents and poolers need.
"""

POSTINST = """#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
"""
PRERM = """#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then systemctl disable --now --quiet {unit} || true; fi
"""


class BuildError(Exception):
    """A package or the repository could not be made; the text ends with a HINT."""


def build_repository(root: Path) -> Path:
    """Make `root/www/standin` what the source says; gives the file with its public key.

    The repository is left alone when neither the source nor this builder has changed since. A
    new one gets the next build number as the end of each version, so hosts take it as an
    upgrade; older packages stay beside it for hosts that have not read the new list yet.
    Raises BuildError.
    """
    require_tools()
    repository = root / "www/standin/deb"
    key_file = root / "www/standin/key.asc"
    stamp = root / "www/standin/built-from"
    repository.mkdir(parents=True, exist_ok=True)
    with locked(root / "standin.lock"):
        wanted = packages(LAYOUTS["deb"])
        source = source_hash(wanted)
        last_source, last_number = read_stamp(stamp)
        if source == last_source and (repository / "InRelease").exists() and key_file.exists():
            return key_file
        number = last_number + 1
        built = [build_package(package, number, repository) for package in wanted]
        with keyring(root / "keys/standin") as gnupg:
            publish(repository, built, gnupg)
            write(key_file, gpg(gnupg, "--armor", "--export", SIGNER))
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
    with tempfile.TemporaryDirectory() as work:
        tree = Path(work)
        tree.chmod(0o755)
        fill(tree, package)
        control = tree / "DEBIAN"
        control.mkdir()
        (control / "control").write_text(control_text(package, version))
        if package.unit:
            write_script(control / "postinst", POSTINST)
            write_script(control / "prerm", PRERM.format(unit=package.unit))
        archive = repository / f"{package.name}_{version}_all.deb"
        run("dpkg-deb", "--root-owner-group", "-Zgzip", "--build", str(tree), str(archive))
    return archive


def control_text(package: Package, version: str) -> str:
    """dpkg's description of a package."""
    return (
        f"Package: {package.name}\n"
        f"Version: {version}\n"
        "Architecture: all\n"
        "Maintainer: PEM stand-in of the lab <nobody@lab.test>\n"
        f"Depends: {', '.join(package.depends)}\n"
        "Section: database\nPriority: optional\n"
        f"Description: {package.summary}\n{DESCRIPTION}"
    )


def fill(tree: Path, package: Package) -> None:
    """Put a package's files where they go."""
    for directory in package.directories:
        under(tree, directory).mkdir(parents=True, exist_ok=True)
    for file in package.files:
        place = under(tree, file.path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(file.text)
        place.chmod(file.mode)
    for path, target in package.links:
        place = under(tree, path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)
    for directory_path in (path for path in tree.rglob("*") if path.is_dir()):
        directory_path.chmod(0o755)


def under(tree: Path, path: str) -> Path:
    """An absolute path of the host, inside a tree."""
    return tree / path.removeprefix("/")


def write_script(path: Path, text: str) -> None:
    """A maintainer script."""
    path.write_text(text)
    path.chmod(0o755)


def publish(repository: Path, built: list[Path], gnupg: Path) -> None:
    """List the packages just built, and sign the list. InRelease comes last: it names the rest."""
    with tempfile.TemporaryDirectory() as work:
        for archive in built:
            (Path(work) / archive.name).symlink_to(archive)
        index = run("apt-ftparchive", "packages", ".", directory=Path(work))
    write(repository / "Packages", index)
    for name in ("Release", "InRelease"):
        (repository / name).unlink(missing_ok=True)
    release = run("apt-ftparchive", *release_options(), "release", ".", directory=repository)
    write(repository / "Release", release)
    signed = gpg(gnupg, "--clearsign", "--digest-algo", "SHA512", "-u", SIGNER, text=release)
    write(repository / "InRelease", signed)


def release_options() -> list[str]:
    """What apt shows as the origin of these packages."""
    fields = {"Origin": SIGNER, "Label": SIGNER, "Suite": "./", "Description": NOTICE}
    return [f"-oAPT::FTPArchive::Release::{name}={value}" for name, value in fields.items()]


@contextmanager
def keyring(directory: Path) -> Iterator[Path]:
    """The directory of the signing key, which is made once; its agent is stopped in the end."""
    directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    try:
        if not list(directory.glob("private-keys-v1.d/*.key")):
            gpg(
                directory, "--passphrase", "", "--quick-generate-key",
                SIGNER, "ed25519", "sign", "never",
            )  # fmt: skip
        yield directory
    finally:
        run("gpgconf", "--homedir", str(directory), "--kill", "gpg-agent")


def gpg(directory: Path, *arguments: str, text: str = "") -> str:
    """Run gpg with the key of this directory; gives its output."""
    return run("gpg", "--homedir", str(directory), "--batch", "--quiet", *arguments, text=text)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one build at a time; two labs may share `root`."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def require_tools() -> None:
    """Raises BuildError if a program is missing."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        raise BuildError(
            f"the stand-in packages cannot be built: {', '.join(missing)} not found\n"
            "HINT: xargs apt-get install -y < lab/standin/packages.txt"
        )


def run(*command: str, directory: Path | None = None, text: str = "") -> str:
    """The output of a program. Raises BuildError with its last words if it fails."""
    result = subprocess.run(
        command,
        cwd=directory,
        input=text,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
    )
    if result.returncode:
        raise BuildError(
            f"building the stand-in packages: {command[0]} failed: {result.stderr.strip()}\n"
            f"HINT: run it by hand: {' '.join(command)}"
        )
    return result.stdout


def write(path: Path, text: str) -> None:
    """Replace a file at once: hosts may read it at this moment."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.replace(path)
