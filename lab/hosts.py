"""What hosts there are: hosts.yml, read for the lab that the environment names.

from lab.hosts import current_lab
current_lab().hosts["pem1"].address
"""

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import yaml

from lab.errors import LabError

HOSTS_FILE = Path(__file__).parent / "hosts.yml"
IMAGES_FOLDER = Path(__file__).parent / "images"
DEFAULT_ROOT = "/var/lib/pem-fleet-lab"

# A host's port on the bridge is called vb-NAME, and Linux wants at most 15 characters.
HOST_NAME = re.compile(r"[a-z][a-z0-9-]{0,11}")
LAB_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")


@dataclass(frozen=True)
class LabHost:
    """One host: its name, the image it starts from, its IPv4 address, its groups."""

    name: str
    image: str
    address: str
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Lab:
    """One lab: its hosts, and where it keeps what belongs to it.

    `network` is a /24 ("10.77.0.0/24"), `gateway` the control machine's address in it. The files
    exist once the lab was started; `password_file` then holds a random token (mode 0600), made
    once, from which an inventory may derive its secrets.
    """

    name: str
    root: Path
    directory: Path
    network: str
    gateway: str
    domain: str
    user: str
    key_file: Path
    known_hosts_file: Path
    ssh_config_file: Path
    password_file: Path
    state_file: Path
    hosts: dict[str, LabHost]

    def choose(self, names: list[str]) -> list[LabHost]:
        """The named hosts, all of them for an empty list.

        Raises LabError for a name that hosts.yml does not have.
        """
        for name in names:
            if name not in self.hosts:
                raise LabError(
                    f"{HOSTS_FILE.name}: no host {name!r}; known: {', '.join(self.hosts)}",
                    hint="name one of these, or add the host to lab/hosts.yml",
                )
        return [self.hosts[name] for name in dict.fromkeys(names or self.hosts)]


def current_lab() -> Lab:
    """The lab that LAB_NAME, LAB_ROOT and LAB_NETWORK name; it need not be up.

    The network is the one the lab is up on, else LAB_NETWORK, else the one of hosts.yml.
    Raises LabError for a wrong hosts.yml, a wrong variable or a broken state file.
    """
    name = os.environ.get("LAB_NAME") or "lab"
    if not LAB_NAME.fullmatch(name):
        raise LabError(
            f"LAB_NAME: {name!r} is not a name (a-z, 0-9 and -, at most 32 characters)",
            hint="LAB_NAME=second .venv/bin/python -m lab up",
        )
    root = Path(os.environ.get("LAB_ROOT") or DEFAULT_ROOT).absolute()
    state_file = root / "labs" / name / "state.json"
    if state_file.exists():
        wanted = _recorded_network(state_file)
    else:
        wanted = os.environ.get("LAB_NETWORK", "")
    return read_lab(name, root, wanted)


def read_lab(name: str, root: Path, wanted_network: str = "") -> Lab:
    """The lab `name` under `root`, with hosts.yml's addresses moved into `wanted_network`.

    Raises LabError where hosts.yml is wrong.
    """
    content = _read_hosts_file()
    own_network = _network(content["network"], where=f"{HOSTS_FILE.name}: network")
    network = _network(wanted_network, where="LAB_NETWORK") if wanted_network else own_network
    hosts = {
        host: _read_host(host, given, own_network, network)
        for host, given in content["hosts"].items()
    }
    _require_different_addresses(hosts)
    directory = root / "labs" / name
    return Lab(
        name=name,
        root=root,
        directory=directory,
        network=str(network),
        gateway=str(network[1]),
        domain=str(content["domain"]),
        user=str(content["user"]),
        key_file=directory / "ssh" / "id_ed25519",
        known_hosts_file=directory / "ssh" / "known_hosts",
        ssh_config_file=directory / "ssh" / "config",
        password_file=directory / "password",
        state_file=directory / "state.json",
        hosts=hosts,
    )


def other_networks(lab: Lab) -> set[str]:
    """The networks of all other labs under the same root, whether they run or not."""
    found = set()
    for file in (lab.root / "labs").glob("*/state.json"):
        with suppress(LabError):  # it is said to those who use that lab
            found |= {_recorded_network(file)} if file != lab.state_file else set()
    return found


def _recorded_network(state_file: Path) -> str:
    try:
        return str(_network(json.loads(state_file.read_text())["network"], where="network"))
    except (OSError, ValueError, LookupError, TypeError, LabError) as error:
        raise LabError(
            f"{state_file} is broken, and only it says which network the lab has",
            hint=f"rm {state_file}; .venv/bin/python -m lab down",
        ) from error


def _read_hosts_file() -> dict[str, Any]:
    try:
        content = yaml.safe_load(HOSTS_FILE.read_text())
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise LabError(f"{HOSTS_FILE.name}: {where}", hint="git diff lab/hosts.yml") from error
    for key in ("network", "domain", "user", "hosts"):
        if not isinstance(content, dict) or not content.get(key):
            raise LabError(
                f"{HOSTS_FILE.name}: {key} is missing", hint="compare with: git diff lab/hosts.yml"
            )
    return dict(content)


def _read_host(name: str, given: object, own: IPv4Network, network: IPv4Network) -> LabHost:
    where = f"{HOSTS_FILE.name}: {name}"
    if not HOST_NAME.fullmatch(name):
        raise LabError(
            f"{where}: a host's name is a-z, 0-9 and -, at most 12 characters",
            hint="shorten the name in lab/hosts.yml",
        )
    if not isinstance(given, dict) or set(given) != {"image", "address", "groups"}:
        raise LabError(
            f"{where}: a host has image, address and groups, no more and no less",
            hint=f"{name}: {{image: debian13, address: {own[40]}, groups: [agent]}}",
        )
    usable = {str(own[number]): str(network[number]) for number in range(2, 255)}
    if given["address"] not in usable:
        raise LabError(
            f"{where}: address {given['address']} is not in {own[2]} to {own[254]}",
            hint="give it a free address of that range in lab/hosts.yml",
        )
    images = sorted(file.stem for file in IMAGES_FOLDER.glob("*.yml"))
    if given["image"] not in images:
        raise LabError(
            f"{where}: no image {given['image']!r}; known: {', '.join(images)}",
            hint=f"use one of these, or describe it in lab/images/{given['image']}.yml",
        )
    return LabHost(name, given["image"], usable[given["address"]], tuple(given["groups"]))


def _require_different_addresses(hosts: dict[str, LabHost]) -> None:
    owners: dict[str, str] = {}
    for host in hosts.values():
        owner = owners.setdefault(host.address, host.name)
        if owner != host.name:
            raise LabError(
                f"{HOSTS_FILE.name}: {owner} and {host.name} have the same address {host.address}",
                hint=f"give {host.name} another one in lab/hosts.yml",
            )


def _network(text: str, *, where: str) -> IPv4Network:
    try:
        network = IPv4Network(text)
    except ValueError:
        network = None
    if network is None or network.prefixlen != 24:
        raise LabError(f"{where}: {text!r} is not a /24 network", hint="LAB_NETWORK=10.78.0.0/24")
    return network
