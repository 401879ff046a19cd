"""What an agent.cfg says of its agent, and what changing it leaves alone."""

import pytest

from fleet.agent_config import AgentConfig

HEAD = b"[PEM/agent]\n"


def config(*lines):
    return AgentConfig(HEAD + "".join(f"{line}\n" for line in lines).encode())


@pytest.mark.parametrize(
    ("line", "agent_id"),
    [
        ("agent_id=7", 7),
        ("agent_id = 12 ", 12),
        ("agent_id=", None),
        ("agent_id=0", None),
        ("agent_id=-1", None),
        ("agent_id=none", None),
        ("agent_id=\u0663", None),
        ("#agent_id=7", None),
        ("pem_agent=7", None),
    ],
)
def test_an_id_is_a_whole_number_above_0(line, agent_id):
    assert config(line).agent_id == agent_id


@pytest.mark.parametrize("key", ["enable_smtp", "enable_snmp", "enable_webhook", "enable_nagios"])
@pytest.mark.parametrize("value", ["true", "True", "TRUE", "yes", "on", "1", "t", "Y", " true "])
def test_a_spooler_is_on_by_any_spelling_of_true(key, value):
    assert config(f"{key}={value}").spoolers == (key,)


@pytest.mark.parametrize(
    "line", ["enable_smtp=false", "enable_smtp=", "#enable_smtp=true", "x=true"]
)
def test_a_spooler_is_off_otherwise(line):
    assert config(line).spoolers == ()


def test_a_spooler_in_another_section_is_another_ones():
    assert AgentConfig(b"[WEBHOOK/a]\nenable_webhook=true\n[PEM/agent]\n").spoolers == ()


POOLED = ("agent_id=7", "agent_user=pem_agent_user1")


@pytest.mark.parametrize(
    ("lines", "through"),
    [
        ((*POOLED, "pem_host=bouncer1,bouncer2", "pem_port=6432,6432"), True),
        ((*POOLED, "pem_host=bouncer2", "pem_port=6432"), True),
        ((*POOLED, "pem_host=bouncer1, bouncer2", "pem_port=6432"), True),
        ((*POOLED, "pem_host=192.0.2.21", "pem_port=6432"), True),
        ((*POOLED, "pem_host=gone,bouncer2", "pem_port=6432,6432"), True),
        ((*POOLED, "pem_host=pem.example.com", "pem_port=6432"), False),
        ((*POOLED, "pem_host=bouncer1", "pem_port=5432"), False),
        ((*POOLED, "pem_host=bouncer1"), False),
        (("agent_id=7", "pem_host=bouncer1", "pem_port=6432"), False),
        (("agent_id=7", "agent_user=x", "pem_host=bouncer1", "pem_port=6432"), False),
        (("agent_id=7",), False),
    ],
)
def test_an_agent_goes_through_the_poolers_by_role_host_and_port(fleet, lines, through):
    assert config(*lines).goes_through(fleet) is through


def test_without_a_user_an_agent_has_a_role_of_its_own():
    assert config("agent_id=7").user == "agent7"
    assert config("agent_id=7", "agent_user=x").user == "x"


@pytest.mark.parametrize("key", ["agent_conn_string", "agent_connection_string"])
def test_a_connection_string_is_seen_by_either_of_its_names(key):
    assert config(f"{key}=host=a port=1").connection_string == key
    assert config(f"{key}=").connection_string is None


@pytest.mark.parametrize(
    "text",
    [
        b"# caf\xe9\n[PEM/agent]\npem_host=a\n",
        b"\xef\xbb\xbf[PEM/agent]\r\npem_host=a\r\n# end",
        "# a\u2028b\x0cc\x85d\n[PEM/agent]\npem_host=a".encode(),
        b"[PEM/agent]\n#pem_host=b\n;pem_host=c\npem_host=a\n[x]\npem_host=a2\n",
    ],
    ids=["not UTF-8", "byte order mark and CRLF", "no ends of lines", "comments and sections"],
)
def test_all_else_in_the_file_stays_byte_for_byte(text):
    changed = AgentConfig(text).but({"pem_host": "bouncer1"}).content
    before, after = text.split(b"\npem_host=a", 1)
    assert changed == before + b"\npem_host=bouncer1" + after


def test_a_file_without_the_agents_section_is_refused():
    with pytest.raises(ValueError, match=r"section \[PEM/agent\] is not there"):
        AgentConfig(b"[other]\n").but({"pem_host": "b"})


NEW = config("agent_id=9", "agent_user=u", "pem_host=b", "agent_ssl_key=/k", "log_level=warning")


def test_a_registration_that_is_made_again_keeps_what_the_former_file_held():
    former = config("# by hand", "log_level=debug1", "pem_host=a", "agent_id=3", "own=stays")
    assert NEW.merged_into(former, 3) == config(
        "# by hand", "log_level=debug1", "pem_host=b", "agent_id=3", "own=stays",
        "agent_user=u", "agent_ssl_key=/k",
    )  # fmt: skip


@pytest.mark.parametrize(
    "former",
    [None, AgentConfig(b""), config("enable_smtp=true"), config("agent_conn_string=host=a")],
    ids=["none", "empty", "with a spooler", "with a connection string"],
)
def test_a_former_file_that_could_not_be_pooled_is_left_out(former):
    assert NEW.merged_into(former, 3).content == NEW.content.replace(b"=9", b"=3")
