"""Certificates in the lab, beyond what tests/verify/ sees in any fleet."""

import psycopg
import pytest

from tests.lab.conftest import Lab

pytestmark = pytest.mark.lab


def test_no_host_holds_a_key_of_an_authority_wherever_one_looks(lab: Lab) -> None:
    for name in lab.machines:
        assert lab.run(name, "find / -xdev -name '*-ca.key' 2>/dev/null") == ""


def test_a_pooler_of_another_name_is_refused_by_its_clients(lab: Lab) -> None:
    with pytest.raises(psycopg.OperationalError, match="does not match host name"):
        lab.as_agent("bouncer1", host="somebody-else")
