"""Certificates and keys in the files of the hosts, judged by openssl."""

import pytest

from fleet.facts.certificates import certificates_in
from fleet.lifetimes import files_on
from fleet.pki import authority_file
from fleet.platforms import (
    CLIENT_CA_FILE,
    POSTGRES_DIRECTORY,
    SERVER_CA_FILE,
    TRUSTED_CLIENTS_FILE,
)
from fleet.pooler import agent_pair

ANCHORS = {"server": SERVER_CA_FILE, "client": CLIENT_CA_FILE}


def leaves(site, name):
    """The certificates of a host but its anchors, and the operator's files of the same."""
    machine = site.machines[name]
    place = site.place_of_pgbouncer(name) if machine in site.fleet.pgbouncer.hosts else None
    files = files_on(site.fleet, machine, place)
    none_of = {*ANCHORS.values(), TRUSTED_CLIENTS_FILE}
    if machine in site.fleet.agent.hosts and site.config(name).spoolers:
        # Such an agent stays direct, and has none of our papers.
        none_of.add(agent_pair(site.fleet)[0])
    return {path: own for path, own in files.items() if path not in none_of}


@pytest.mark.parametrize("kind", ["server", "client"])
def test_a_host_trusts_the_authorities_of_this_inventory(site, machine, kind):
    anchor = site.on(machine).file(ANCHORS[kind])
    assert (anchor.user, oct(anchor.mode)) == ("root", "0o644")
    own = authority_file(site.fleet.certificate_authority, kind).read_bytes()
    wanted = {one["fingerprint"] for one in certificates_in(own)}
    assert wanted <= {one["fingerprint"] for one in certificates_in(anchor.content)}


def test_a_private_key_is_its_owners_alone(site, machine):
    owners = {agent_pair(site.fleet)[1].rpartition("/")[0] + "/": "root"}
    if machine in {host.name for host in site.fleet.pem_server.hosts}:
        owners[f"{POSTGRES_DIRECTORY}/"] = site.place_of_postgres(machine).user
    if machine in {host.name for host in site.fleet.pgbouncer.hosts}:
        place = site.place_of_pgbouncer(machine)
        owners[f"{place.directory}/"] = place.user
    keys = [certificate.removesuffix(".crt") + ".key" for certificate in leaves(site, machine)]
    if not keys:
        pytest.skip(f"{machine} holds no key")
    owned = [next(owners[start] for start in owners if key.startswith(start)) for key in keys]
    said = site.run(machine, f"stat -c '%U %a %n' {' '.join(keys)}").splitlines()
    assert said == [f"{owner} 600 {key}" for owner, key in zip(owned, keys, strict=True)]


def test_no_key_of_an_authority_is_on_a_host(site, machine):
    found = site.run(machine, "find /etc /root /home -xdev -name '*-ca.key' 2>/dev/null || true")
    assert found == ""


@pytest.fixture
def openssl(site, machine):
    """What openssl commands print on a host, a line for each."""
    if not site.has(machine, "openssl"):
        pytest.skip(f"openssl is not installed on {machine}")
    return lambda commands: site.run(machine, "; ".join(commands)).splitlines()


def test_a_certificate_verifies_for_its_own_purpose_only(site, machine, openssl):
    found = leaves(site, machine)
    if site.fleet.certificate_authority.client_issuer == "pem":
        # PEM's CA does not say what its certificates are for, and is not on this host.
        found = {path: own for path, own in found.items() if own.parent.name == "servers"}
    if not found:
        pytest.skip(f"{machine} holds no certificate that our authorities issued")
    kinds = [own.parent.name.removesuffix("s") for own in found.values()]  # servers/ or clients/
    other = {"server": "client", "client": "server"}
    for purposes, code in ((kinds, "0"), ([other[kind] for kind in kinds], "2")):
        said = openssl(
            f"openssl verify -CAfile {ANCHORS[kind]} -purpose ssl{purpose} {path} >/dev/null 2>&1"
            f"; echo $? {path}"
            for path, kind, purpose in zip(found, kinds, purposes, strict=True)
        )
        assert said == [f"{code} {path}" for path in found]


def test_a_certificate_and_its_key_belong_together(site, machine, openssl):
    for path in leaves(site, machine):
        key = path.removesuffix(".crt") + ".key"
        said = openssl(
            f"openssl {command} | sha256sum"
            for command in (f"x509 -noout -pubkey -in {path}", f"pkey -pubout -in {key}")
        )
        assert said[0] == said[1], path


def test_each_agent_has_a_key_of_its_own(site):
    _, key = agent_pair(site.fleet)
    keys = [
        site.run(host.name, f"sha256sum < {key}")
        for host in site.fleet.agent.hosts
        if not site.config(host.name).spoolers
    ]
    assert len(set(keys)) == len(keys)
