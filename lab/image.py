"""Images: the disks that hosts start from, built once from a definition in lab/images/.

An image is a folder LAB_ROOT/images/NAME-HASH. The hash covers everything the image is made from,
so a changed definition makes a new image, and an image that exists is complete and current.

Another Debian is another small file in lab/images/. Another kind of system is another class beside
Debian here, named in its definition's `builder`.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from lab import apt
from lab.errors import LabError
from lab.hosts import IMAGES_FOLDER, Lab
from lab.machine import locked, remove_tree, require_space, run

BUILD_MIB = 1200
FILES = IMAGES_FOLDER / "debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class Builder(Protocol):
    """How one kind of system is put into a folder, and how its package manager is set up."""

    def recipe(self) -> str:
        """Everything that decides what is built, as text: a change means a new image."""

    def build(self, root: Path, proxy: str, log: Path) -> None:
        """Fill the empty folder `root`; packages come through `proxy` (a URL).

        What the tools say goes to the file `log`. Raises LabError if one fails.
        """


@dataclass(frozen=True)
class Debian:
    """Debian, built by mmdebstrap from the mirrors of the control machine's own apt."""

    suite: str
    packages: tuple[str, ...]
    masked_units: tuple[str, ...]
    user: str
    mirrors: apt.Mirrors

    @classmethod
    def read(cls, definition: dict[str, Any], lab: Lab) -> "Debian":
        """The builder that the definition describes."""
        return cls(
            suite=definition["suite"],
            packages=tuple(definition["packages"]),
            masked_units=tuple(definition.get("masked_units", ())),
            user=lab.user,
            mirrors=apt.debian_mirrors(),
        )

    def recipe(self) -> str:
        """The definition, the mirrors, and the files that are copied in."""
        parts = [json.dumps(asdict(self)), Path(__file__).read_text()]
        for file in _files():
            parts += [str(file.relative_to(FILES)), file.read_text()]
        return "\n".join(parts)

    def build(self, root: Path, proxy: str, log: Path) -> None:
        """Bootstrap, then what makes a bootstrapped Debian a server that somebody can log in to."""
        sources = self._sources()
        run(
            "mmdebstrap",
            "--variant=minbase",
            f"--include={','.join(self.packages)}",
            f'--aptopt=Acquire::http::Proxy "{proxy}"',
            '--aptopt=Acquire::Check-Valid-Until "false"',
            '--aptopt=Acquire::Languages "none"',
            "--dpkgopt=force-unsafe-io",
            # The package lists stay: `apt-get update` in a host then has little left to fetch.
            "--skip=cleanup/apt/lists",
            self.suite,
            root,
            "-",
            stdin=sources,
            log=log,
        )
        for file in root.glob("etc/apt/apt.conf.d/99mmdebstrap"):
            file.unlink()
        for file in (*root.glob("etc/apt/sources.list"), *root.glob("etc/apt/sources.list.d/*")):
            file.unlink()
        (root / "etc/dpkg/dpkg.cfg.d/99mmdebstrap").unlink()
        (root / "etc/apt/sources.list.d/debian.sources").write_text(sources)
        for file in _files():
            target = root / file.relative_to(FILES)
            target.write_text(file.read_text())
            target.chmod(0o644)
        for unit in self.masked_units:
            (root / "etc/systemd/system" / unit).symlink_to("/dev/null")
        self._make_user(root)
        _forget_identity(root)
        # apt's own index of the lists, made here once instead of in every host.
        run("chroot", root, "apt-cache", "gencaches")

    def _sources(self) -> str:
        """The repositories, by http: the proxy speaks https to a mirror that wants it."""
        suites = [(self.mirrors.archive, f"{self.suite} {self.suite}-updates")]
        if self.mirrors.security:
            suites.append((self.mirrors.security, f"{self.suite}-security"))
        return "\n".join(
            f"Types: deb\nURIs: {url.replace('https:', 'http:', 1)}\nSuites: {names}\n"
            f"Components: main\nSigned-By: {KEYRING}\n"
            for url, names in suites
        )

    def _make_user(self, root: Path) -> None:
        run("chroot", root, "useradd", "--create-home", "--shell", "/bin/bash", self.user)
        rule = root / "etc/sudoers.d" / self.user
        rule.write_text(f"{self.user} ALL=(ALL:ALL) NOPASSWD: ALL\n")
        rule.chmod(0o440)


BUILDERS: dict[str, Callable[[dict[str, Any], Lab], Builder]] = {"debian": Debian.read}


def ready(name: str, lab: Lab, proxy: str) -> Path:
    """The folder of the image; it is built first if need be (half a minute).

    Raises LabError for a wrong definition, a full disk or a failed build.
    """
    builder = _builder(name, lab)
    digest = hashlib.sha256(builder.recipe().encode()).hexdigest()[:12]
    folder = lab.root / "images"
    folder.mkdir(mode=0o700, exist_ok=True)  # its setuid programs are not this machine's
    image = folder / f"{name}-{digest}"
    with locked(folder / f".{name}.lock"):
        if not image.exists():
            print(f"building the image {name} ...", flush=True)
            require_space(folder, BUILD_MIB, f"building the image {name}")
            _build(builder, image, proxy)
            _remove_unused(lab.root, folder.glob(f"{name}-*/"), keep=image)
    return image


def _builder(name: str, lab: Lab) -> Builder:
    file = IMAGES_FOLDER / f"{name}.yml"
    definition = yaml.safe_load(file.read_text())
    try:
        return BUILDERS[definition["builder"]](definition, lab)
    except KeyError as error:
        raise LabError(
            f"images/{file.name}: {error} is missing or unknown; builders: {', '.join(BUILDERS)}",
            hint="compare with lab/images/debian13.yml",
        ) from error


def _build(builder: Builder, image: Path, proxy: str) -> None:
    """Build beside the image's place and rename: half an image is never used."""
    for crashed in image.parent.glob(f"{image.name}.building-*"):
        remove_tree(crashed)
    building = Path(tempfile.mkdtemp(prefix=f"{image.name}.building-", dir=image.parent))
    building.chmod(0o755)
    try:
        builder.build(building, proxy, image.with_suffix(".log"))
        os.sync()  # else the first host's first fsync waits for all of it
        building.rename(image)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _remove_unused(root: Path, images: Iterable[Path], keep: Path) -> None:
    """Remove images of former definitions that no host stands on."""
    used = {link.readlink() for link in (root / "labs").glob("*/hosts/*/image")}
    for image in images:
        if image not in used and image != keep:
            remove_tree(image)


def _files() -> list[Path]:
    """What is copied into every Debian image."""
    return sorted(file for file in FILES.rglob("*") if file.is_file())


def _forget_identity(root: Path) -> None:
    """Every host gets its own machine id and host keys."""
    (root / "etc/machine-id").write_text("")
    (root / "var/lib/dbus/machine-id").unlink(missing_ok=True)
    for key in root.glob("etc/ssh/ssh_host_*"):
        key.unlink()
    (root / "etc/hostname").unlink(missing_ok=True)
    (root / "etc/resolv.conf").write_text("")
