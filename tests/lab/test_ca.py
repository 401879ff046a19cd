"""Certificates on the hosts, judged by openssl and libpq."""

import psycopg
import pytest

from fleet.pki import authority_file
from tests.lab.conftest import Lab

pytestmark = pytest.mark.lab

SERVER = "/etc/pem-fleet/server-ca.crt"
CLIENT = "/etc/pem-fleet/client-ca.crt"


def test_every_host_trusts_the_servers_authority_and_holds_no_key_of_it(lab: Lab) -> None:
    for name in lab.machines:
        anchor = lab.on(name).file(SERVER)
        assert (anchor.user, oct(anchor.mode)) == ("root", "0o644")
        text = authority_file(lab.fleet.certificate_authority, "server").read_text()
        assert anchor.content_string == text
        assert lab.run(name, "find / -xdev -name '*-ca.key' 2>/dev/null") == ""


@pytest.mark.parametrize(
    ("host", "certificate", "anchor", "purpose"),
    [
        ("pem1", "/etc/pem-fleet/postgres/server.crt", SERVER, "sslserver"),
        ("bouncer1", "/etc/pgbouncer/tls/server.crt", SERVER, "sslserver"),
        ("bouncer2", "/etc/pgbouncer/tls/pem_agent_pool.crt", CLIENT, "sslclient"),
        ("agent1", "/etc/pem-fleet/agent/pem_agent_user1.crt", CLIENT, "sslclient"),
    ],
)
def test_openssl_verifies_each_certificate_for_its_own_purpose_only(
    lab: Lab, host: str, certificate: str, anchor: str, purpose: str
) -> None:
    remote = lab.on(host)
    verify = f"openssl verify -CAfile {anchor} -purpose"
    assert remote.run(f"{verify} {purpose} {certificate}").succeeded
    other = {"sslserver": "sslclient", "sslclient": "sslserver"}[purpose]
    assert "unsuitable certificate purpose" in remote.run(f"{verify} {other} {certificate}").stderr


def test_private_keys_are_their_owners_alone(lab: Lab) -> None:
    for host, key, owner in [
        ("pem1", "/etc/pem-fleet/postgres/server.key", "postgres"),
        ("bouncer1", "/etc/pgbouncer/tls/server.key", "postgres"),
        ("bouncer1", "/etc/pgbouncer/tls/pem_agent_pool.key", "postgres"),
        ("agent1", "/etc/pem-fleet/agent/pem_agent_user1.key", "root"),
    ]:
        file = lab.on(host).file(key)
        assert (file.user, oct(file.mode)) == (owner, "0o600"), key


def test_each_agent_has_a_key_of_its_own(lab: Lab) -> None:
    keys = {
        lab.run(f"agent{n}", "sha256sum < /etc/pem-fleet/agent/pem_agent_user1.key")
        for n in (1, 2, 3)
    }
    assert len(keys) == 3


def test_libpq_verifies_the_server_and_the_poolers_in_full(lab: Lab) -> None:
    with lab.as_agent("bouncer1") as connection:
        assert connection.info.status.name == "OK"
    said = lab.run(
        "bouncer1",
        "openssl s_client -connect pem1:5432 -starttls postgres -verify_return_error"
        f" -verify_hostname pem1 -CAfile {SERVER} </dev/null 2>/dev/null | grep 'Verify return'",
    )
    assert "0 (ok)" in said


def test_a_pooler_of_another_name_is_refused_by_its_clients(lab: Lab) -> None:
    with pytest.raises(psycopg.OperationalError, match="does not match host name"):
        lab.as_agent("bouncer1", host="somebody-else")
