"""What makes a host different from its image: written once, onto a fresh disk.

Keys belong to the lab, not to the disk: a host that was reset keeps its host key.
"""

import secrets
import shutil
import uuid
from pathlib import Path

from lab.hosts import Lab, LabHost
from lab.machine import run, write_atomically
from lab.network import hardware_address

PROXY_PORT = 3142
PACKAGES_NAME = "packages"


def proxy_url(lab: Lab) -> str:
    """Where hosts get packages."""
    return f"http://{lab.gateway}:{PROXY_PORT}"


def packages_host(lab: Lab) -> str:
    """The name under which LAB_ROOT/www is served."""
    return f"{PACKAGES_NAME}.{lab.domain}"


def write_keys(lab: Lab) -> None:
    """Make what is missing of the lab's own key, host keys and password, and the ssh settings."""
    folder = lab.key_file.parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _make_key(lab.key_file, f"lab {lab.name}")
    known_hosts, settings = [], []
    for host in lab.hosts.values():
        key = _host_key(lab, host)
        _make_key(key, host.name)
        kind, public = key.with_suffix(".pub").read_text().split()[:2]
        names = f"{host.name}.{lab.domain},{host.name},{host.address}"
        known_hosts.append(f"{names} {kind} {public}\n")
        settings.append(
            f"Host {host.name} {host.name}.{lab.domain} {host.address}\n"
            f"  HostName {host.address}\n  HostKeyAlias {host.name}.{lab.domain}\n"
        )
    settings.append(
        f"Host *\n  User {lab.user}\n  IdentityFile {lab.key_file}\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {lab.known_hosts_file}\n  GlobalKnownHostsFile /dev/null\n"
        "  StrictHostKeyChecking yes\n  ConnectTimeout 5\n  LogLevel ERROR\n"
    )
    write_atomically(lab.known_hosts_file, "".join(known_hosts))
    write_atomically(lab.ssh_config_file, "".join(settings))
    if not lab.password_file.exists():
        write_atomically(lab.password_file, secrets.token_urlsafe(32) + "\n", 0o600)


def write_seed(lab: Lab, host: LabHost, folder: Path, image: Path, repository_key: Path) -> None:
    """Fill `folder` with the files of a fresh disk; `repository_key` signs the lab's packages."""
    shutil.rmtree(folder, ignore_errors=True)
    etc = folder / "etc"
    etc.mkdir(parents=True)
    _write(etc / "hostname", f"{host.name}\n")
    _write(etc / "machine-id", f"{uuid.uuid4().hex}\n")
    _write(etc / "hosts", _hosts_file(lab))
    _write(
        etc / "network" / "interfaces",
        "auto lo\niface lo inet loopback\n\nauto host0\niface host0 inet static\n"
        f"    hwaddress {hardware_address(host.address)}\n    address {host.address}/24\n",
    )
    key = _host_key(lab, host)
    _write(etc / "ssh" / key.name, key.read_text(), mode=0o600)
    _write(etc / "ssh" / f"{key.name}.pub", key.with_suffix(".pub").read_text())
    _write(etc / "apt" / "apt.conf.d" / "95proxy", f'Acquire::http::Proxy "{proxy_url(lab)}";\n')
    keyring = Path("/usr/share/keyrings/standin.asc")
    _write(folder / keyring.relative_to("/"), repository_key.read_text())
    _write(
        etc / "apt" / "sources.list.d" / "standin.sources",
        f"Types: deb\nURIs: http://{packages_host(lab)}/standin/deb\nSuites: ./\n"
        f"Signed-By: {keyring}\n",
    )
    _write_authorized_keys(lab, folder, image)


def refresh_hosts_file(lab: Lab, directory: Path) -> None:
    """Let a host that starts again, kept in `directory`, know the hosts of a changed hosts.yml.

    Unless that changed, its /etc/hosts is as it was left there.
    """
    seeded = directory / "seed" / "etc" / "hosts"
    content = _hosts_file(lab)
    if seeded.read_text() != content:
        write_atomically(directory / "disk" / "etc" / "hosts", content)
        write_atomically(seeded, content)


def _write_authorized_keys(lab: Lab, folder: Path, image: Path) -> None:
    home = folder / "home" / lab.user
    in_image = (image / "home" / lab.user).stat()
    _write(home / ".ssh" / "authorized_keys", lab.key_file.with_suffix(".pub").read_text(), 0o600)
    (home / ".ssh").chmod(0o700)
    home.chmod(in_image.st_mode & 0o777)
    for path in (home, home / ".ssh", home / ".ssh" / "authorized_keys"):
        shutil.chown(path, in_image.st_uid, in_image.st_gid)


def _hosts_file(lab: Lab) -> str:
    lines = [
        "127.0.0.1 localhost",
        "::1 localhost ip6-localhost ip6-loopback",
        f"{lab.gateway} control.{lab.domain} control {packages_host(lab)}",
        *(f"{host.address} {host.name}.{lab.domain} {host.name}" for host in lab.hosts.values()),
    ]
    return "\n".join(lines) + "\n"


def _host_key(lab: Lab, host: LabHost) -> Path:
    return lab.key_file.parent / host.name / "ssh_host_ed25519_key"


def _make_key(file: Path, comment: str) -> None:
    """Make a pair of keys beside its place and rename: a key that is there is a whole one."""
    if file.exists():
        return
    file.parent.mkdir(mode=0o700, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    part.unlink(missing_ok=True)
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", part)
    part.with_suffix(".part.pub").rename(file.with_suffix(".pub"))
    part.rename(file)


def _write(file: Path, content: str, mode: int = 0o644) -> None:
    """Write a file and the folders above it, whose modes do not depend on our umask."""
    for folder in reversed(file.parents):
        if not folder.exists():
            folder.mkdir()
            folder.chmod(0o755)
    file.touch(mode=0o600)
    file.write_text(content)
    file.chmod(mode)
