"""The lab's network: a bridge in a network namespace of its own, one cable to the control machine.

    control machine                    namespace pem-fleet-lab.NAME
    lab-NAME (gateway address) ======= control --- br0 --- vb-pem1, vb-bouncer1, ...

Deleting the namespace removes everything in it. Hosts have no route to anywhere else.
"""

import hashlib
import json
import os
from ipaddress import IPv4Network
from pathlib import Path

from lab.errors import LabError
from lab.hosts import Lab, LabHost
from lab.machine import run

CONTROL_PORT = "control"


def namespace(lab: Lab) -> str:
    """The name of the lab's network namespace."""
    return f"pem-fleet-lab.{lab.name}"


def namespace_file(lab: Lab) -> Path:
    """What nsenter enters. Not by `ip netns exec`: that hides /sys/fs/cgroup."""
    return Path("/run/netns") / namespace(lab)


def cable(lab: Lab) -> str:
    """The control machine's end of the cable. Linux wants at most 15 characters."""
    plain = f"lab-{lab.name}"
    return (
        plain if len(plain) <= 15 else f"lab-{hashlib.sha256(lab.name.encode()).hexdigest()[:11]}"
    )


def hardware_address(address: str) -> str:
    """The MAC goes with the address, so that a reused address never meets a stale ARP entry."""
    return "02:00:" + ":".join(f"{int(number):02x}" for number in address.split("."))


def port(host: LabHost) -> str:
    """The host's port on the bridge, as systemd-nspawn names it."""
    return f"vb-{host.name}"


def exists(lab: Lab) -> bool:
    """Whether the whole network is there: namespace, bridge and cable with the lab's address."""
    addresses = run("ip", "-oneline", "-4", "address", "show", cable(lab), check=False)
    return namespace_file(lab).exists() and f" {lab.gateway}/24 " in addresses


def create(lab: Lab) -> None:
    """Make the network; what is left of an earlier one goes first."""
    remove(lab)
    run("ip", "netns", "add", namespace(lab))
    inside = f"""\
link set lo up
link add br0 type bridge forward_delay 0 stp_state 0
link set br0 up
link add {CONTROL_PORT} type veth peer name peer
link set {CONTROL_PORT} master br0 up
"""
    _inside(lab, "ip", "-batch", "-", stdin=inside)
    # Its hardware address is set before it is up: hosts of this lab never see another one.
    _inside(lab, "ip", "link", "set", "peer", "address", hardware_address(lab.gateway))
    _inside(lab, "ip", "link", "set", "peer", "name", cable(lab), "netns", str(os.getpid()))
    run("ip", "address", "add", f"{lab.gateway}/24", "dev", cable(lab))
    run("ip", "link", "set", cable(lab), "up")


def remove(lab: Lab) -> None:
    """Remove the network, if there is one."""
    run("ip", "link", "delete", cable(lab), check=False)
    if namespace_file(lab).exists():
        run("ip", "netns", "delete", namespace(lab))


# --- which network a lab gets


def choose(lab: Lab, default: str, chosen_by_user: bool, used_by_other_labs: set[str]) -> str:
    """The network for a lab that starts: its own, or the next one no other lab has.

    Raises LabError if something else on the control machine uses these addresses.
    """
    taken = dict.fromkeys(used_by_other_labs, "another lab") | _taken(cable(lab))
    if not chosen_by_user and lab.network in used_by_other_labs:
        return _next_free(default, taken)
    _require_free(
        lab, taken, f"LAB_NETWORK={_next_free(default, taken)} .venv/bin/python -m lab up"
    )
    return lab.network


def require_free(lab: Lab) -> None:
    """Raise LabError if the network of a lab that starts again was taken by something else."""
    _require_free(
        lab, _taken(cable(lab)), f"ip route show table all | grep {lab.network.rpartition('.')[0]}"
    )


def _require_free(lab: Lab, taken: dict[str, str], hint: str) -> None:
    for other, device in taken.items():
        if IPv4Network(lab.network).overlaps(IPv4Network(other)):
            raise LabError(
                f"{lab.network} is taken on this machine: {other} on {device}", hint=hint
            )


def _next_free(default: str, taken: dict[str, str]) -> str:
    """The first free /24 of the two numbers that `default` starts with, else of 192.168."""
    start = int(default.split(".")[2])
    for first in (".".join(default.split(".")[:2]), "172.29", "192.168"):
        for number in range(start, 256):
            network = IPv4Network(f"{first}.{number}.0/24")
            if not any(network.overlaps(IPv4Network(other)) for other in taken):
                return str(network)
    raise LabError("no free /24 network on this machine", hint="ip route show table all")


def _taken(own_device: str) -> dict[str, str]:
    """Networks that routes or interfaces of the control machine cover, and the device of each.

    A route wider than /8 is a default route in parts (0.0.0.0/1 of OpenVPN) and takes nothing.
    """
    found: dict[str, str] = {}
    for route in json.loads(run("ip", "-json", "-4", "route", "show", "table", "all") or "[]"):
        if route["dst"] != "default" and IPv4Network(route["dst"]).prefixlen >= 8:
            found[route["dst"]] = route.get("dev", "no device")
    for link in json.loads(run("ip", "-json", "-4", "address", "show") or "[]"):
        for address in link.get("addr_info", []):
            network = IPv4Network(f"{address['local']}/{address['prefixlen']}", strict=False)
            found[str(network)] = link["ifname"]
    return {network: device for network, device in found.items() if device != own_device}


# --- partition


def cut(lab: Lab, hosts: list[LabHost]) -> None:
    """Part the hosts from all others. They reach one another, and the control machine all."""
    ports = sorted(port(host) for host in hosts)
    sides = _sides(lab)
    if ports in sides:
        return
    _write_sides(lab, [*sides, ports])


def heal(lab: Lab) -> None:
    """Undo every cut."""
    _write_sides(lab, [])


def cut_ports(lab: Lab) -> set[str]:
    """The ports of all hosts that are cut off from others."""
    return {name for side in _sides(lab) for name in side}


def _sides(lab: Lab) -> list[list[str]]:
    """The cuts in force, as the kernel has them: for each, the ports on one side."""
    listing = json.loads(_inside(lab, "nft", "--json", "list", "sets", "bridge") or "{}")
    return [sorted(item["set"]["elem"]) for item in listing.get("nftables", []) if "set" in item]


def _write_sides(lab: Lab, sides: list[list[str]]) -> None:
    sets, rules = [], []
    for number, ports in enumerate(sides):
        name = f"side{number}"
        elements = ", ".join(f'"{name}"' for name in ports)
        sets.append(f"set {name} {{ type ifname; elements = {{ {elements} }} }}")
        for one, other in (("iifname", "oifname"), ("oifname", "iifname")):
            rules.append(f'{one} @{name} {other} != @{name} {other} != "{CONTROL_PORT}" drop')
    table = "\n".join(
        [*sets, "chain forward {", "type filter hook forward priority 0;", *rules, "}"]
    )
    # Declaring the table first makes its deletion work when there is none; all in one transaction.
    script = f"table bridge lab\ndelete table bridge lab\ntable bridge lab {{\n{table}\n}}\n"
    _inside(lab, "nft", "-f", "-", stdin=script)


def _inside(lab: Lab, *command: str, stdin: str | None = None) -> str:
    return run("nsenter", f"--net={namespace_file(lab)}", *command, stdin=stdin)
