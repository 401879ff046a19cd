"""Our part of other people's files: everything outside of it stays byte for byte."""

import pytest

from fleet.parts import ini_value, with_block, with_ini_values

HBA = b"# PEM's own\nhostssl pem +pem_agent 0.0.0.0/0 cert\n\n\tlocal  all all peer  \n"
BLOCK = b"# BEGIN pem-fleet\none\ntwo\n# END pem-fleet\n"
LINES = ("one", "two")


@pytest.mark.parametrize(
    ("first", "before", "after"),
    [
        pytest.param(True, HBA, BLOCK + HBA, id="first: it opens the file"),
        pytest.param(False, HBA, HBA + BLOCK, id="not first: it ends the file"),
        pytest.param(False, b"", BLOCK, id="an empty file holds it alone"),
        pytest.param(False, b"last", b"last\n" + BLOCK, id="a last line without newline gets one"),
        pytest.param(True, b"last", BLOCK + b"last", id="first: the last line stays without one"),
        pytest.param(
            True, HBA + BLOCK + b"after\n", BLOCK + HBA + b"after\n", id="first: it moves up"
        ),
        pytest.param(
            False,
            b"before\n# BEGIN pem-fleet\nold\n# END pem-fleet\nafter\n",
            b"before\n" + BLOCK + b"after\n",
            id="not first: it keeps its place",
        ),
        pytest.param(
            False,
            b"before\n" + BLOCK + b"between\n" + BLOCK + b"after\n",
            b"before\n" + BLOCK + b"between\nafter\n",
            id="two become one, in the first one's place",
        ),
        pytest.param(
            False,
            b"before\n  # BEGIN pem-fleet \nold\n # END pem-fleet\t",
            b"before\n" + BLOCK,
            id="indented marks without a final newline are found",
        ),
        pytest.param(
            True,
            b"before\r\nafter\r\n",
            BLOCK.replace(b"\n", b"\r\n") + b"before\r\nafter\r\n",
            id="a file with CRLF gets CRLF",
        ),
    ],
)
def test_the_block_is_where_it_should_be_and_the_rest_as_it_was(first, before, after):
    assert with_block(before, LINES, first=first) == after


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "text",
    [HBA, b"", b"no newline", HBA.replace(b"\n", b"\r\n"), b"\xe9\xff not UTF-8\n", b"\n\n"],
)
def test_twice_is_once(text, first):
    once = with_block(text, LINES, first=first)
    assert with_block(once, LINES, first=first) == once


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("text", [HBA, b"", HBA.replace(b"\n", b"\r\n"), b"\xe9\xff not UTF-8\n"])
def test_no_lines_take_the_block_out_and_leave_the_file_as_it_was(text, first):
    assert with_block(with_block(text, LINES, first=first), (), first=first) == text


def test_a_mark_without_its_other_half_is_refused_with_its_line():
    with pytest.raises(
        ValueError, match=r"^line 2: a mark of pem-fleet without its other half\nHINT"
    ):
        with_block(b"first\n# BEGIN pem-fleet\nhand-made\n" + BLOCK, LINES, first=False)


AGENT_CFG = """\
[PEM/agent]
# written by the agent
pem_host=127.0.0.1
  agent_id = 3
unknown_key=stays
; long_wait=10
long_wait=30

[PEM/other]
pem_host=other
"""


def test_a_key_that_is_there_changes_in_its_place_and_nothing_else():
    changed = with_ini_values(AGENT_CFG, "PEM/agent", {"pem_host": "bouncer1", "agent_id": "4"})
    assert changed == AGENT_CFG.replace("pem_host=127.0.0.1", "pem_host=bouncer1").replace(
        "agent_id = 3", "agent_id = 4"
    )


def test_a_new_key_goes_after_the_last_key_of_its_section():
    changed = with_ini_values(AGENT_CFG, "PEM/agent", {"agent_user": "a", "pem_port": "6432"})
    assert changed == AGENT_CFG.replace(
        "\nlong_wait=30\n", "\nlong_wait=30\nagent_user=a\npem_port=6432\n"
    )


def test_a_new_key_in_a_section_without_keys_goes_under_its_head():
    assert with_ini_values("[a]\n# none\n[b]\nx=1\n", "a", {"x": "2"}) == (
        "[a]\nx=2\n# none\n[b]\nx=1\n"
    )


def test_a_key_that_is_there_twice_changes_twice_so_that_no_reader_finds_the_old_value():
    assert with_ini_values("[a]\nx=1\ny=2\nx=3\n", "a", {"x": "9"}) == "[a]\nx=9\ny=2\nx=9\n"


def test_a_key_in_a_comment_is_not_a_key():
    assert ini_value("[a]\n#x=1\n;x=2\n", "a", "x") is None


def test_a_value_may_hold_an_equals_sign():
    assert ini_value("[a]\noptions = -c x=1 \n", "a", "options") == "-c x=1"


def test_only_the_section_that_is_asked_for_is_read():
    assert ini_value(AGENT_CFG, "PEM/agent", "pem_host") == "127.0.0.1"
    assert ini_value(AGENT_CFG, "PEM/other", "pem_host") == "other"


def test_line_endings_of_windows_stay():
    windows = AGENT_CFG.replace("\n", "\r\n")
    changed = with_ini_values(windows, "PEM/agent", {"pem_host": "b", "new": "1"})
    assert changed == with_ini_values(
        AGENT_CFG, "PEM/agent", {"pem_host": "b", "new": "1"}
    ).replace("\n", "\r\n")


def test_a_last_line_without_newline_stays_so_when_it_changes():
    assert with_ini_values("[a]\nx=1", "a", {"x": "2"}) == "[a]\nx=2"


def test_a_new_key_after_a_last_line_without_newline_starts_a_line():
    assert with_ini_values("[a]\nx=1", "a", {"y": "2"}) == "[a]\nx=1\ny=2\n"


@pytest.mark.parametrize("text", [AGENT_CFG, AGENT_CFG.replace("\n", "\r\n"), "[PEM/agent]"])
def test_setting_the_same_values_again_changes_nothing(text):
    values = {"pem_host": "b1,b2", "pem_port": "6432,6432", "new": ""}
    once = with_ini_values(text, "PEM/agent", values)
    assert with_ini_values(once, "PEM/agent", values) == once
    assert {key: ini_value(once, "PEM/agent", key) for key in values} == values


def test_a_section_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"section \[PEM/agent\] is not there"):
        with_ini_values("[other]\n", "PEM/agent", {"x": "1"})
