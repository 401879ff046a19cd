"""Files on a host: all of them or none, owner and mode first, and others' files kept as they were.

The commands of these plans are run here, on files of the test's own.
"""

import grp
import os
import pwd
import subprocess
from pathlib import Path

import pytest
from pyinfra.api import operation as as_operation

from fleet.facts.files import FileBytes, FileStates
from fleet.facts.postgres import PostgresServer
from fleet.operations import files, postgres
from fleet.parts import with_block
from tests.samples import DEBIAN_13

USER = pwd.getpwuid(os.getuid()).pw_name
GROUP = grp.getgrgid(os.getgid()).gr_name


def run(planned):
    """Run the plan's commands as pyinfra does, up to the first that fails; its error, or ''."""
    for command, text in zip(planned.shell, planned.inputs, strict=True):
        # pyinfra ends standard input with a newline of its own.
        done = subprocess.run(
            ["sh", "-c", command], input=f"{text}\n", capture_output=True, text=True, check=False
        )
        if done.returncode:
            return done.stderr
    return ""


def folder(path):
    """The names and contents of what is in a folder."""
    return {one.name: one.read_bytes() for one in path.iterdir()}


@pytest.fixture
def host(tmp_path):
    """A folder that stands for the host's file system."""
    path = tmp_path / "a folder"
    path.mkdir()
    return path


def put(plan, host, texts, check="", **settings):
    wanted = tuple(
        files.File(str(host / name), text, USER, GROUP, **({"mode": "640"} | settings))
        for name, text in texts.items()
    )
    return plan(files.put, "app1", {}, files=wanted, check=check)


def test_files_arrive_whole_with_their_mode(plan, host):
    texts = {"one": "1\n", "two": "no newline", "empty": ""}
    assert run(put(plan, host, texts)) == ""
    assert folder(host) == {name: text.encode() for name, text in texts.items()}
    assert {one.stat().st_mode & 0o777 for one in host.iterdir()} == {0o640}


def test_after_a_put_there_is_nothing_left_to_do(plan, host):
    planned = put(plan, host, {"one": "1\n"})
    assert run(planned) == ""
    asked = FileStates().command(paths=(str(host / "one"),)).get_raw_value()
    said = subprocess.run(["sh", "-c", asked], capture_output=True, text=True, check=True).stdout
    states = FileStates().process(said.splitlines())
    wanted = (files.File(str(host / "one"), "1\n", USER, GROUP, "640"),)
    assert plan(files.put, "app1", {FileStates: states}, files=wanted).changing == []


def test_a_check_that_fails_leaves_every_file_as_it_was(plan, host):
    (host / "one").write_text("old 1")
    planned = put(plan, host, {"one": "new 1", "two": "new 2"}, check="die 'not like this'")
    assert run(planned) == "not like this\n"
    assert folder(host) == {"one": b"old 1"}


def test_a_check_sees_the_candidates_and_the_files_that_are_there(plan, host):
    (host / "one").write_text("old")
    one = f"'{host}/one'"
    check = f'[ "$(cat {one})$(cat {one}{files.CANDIDATE})" = oldnew ] || die wrong'
    assert run(put(plan, host, {"one": "new"}, check=check)) == ""


@pytest.mark.parametrize("at", [0, 1])
def test_a_connection_that_is_cut_replaces_nothing(plan, host, at):
    (host / "one").write_text("old 1")
    planned = put(plan, host, {"one": "new 1", "two": "new 2"})
    commands = planned.steps[planned.changing[0]]
    commands[at].connector_arguments["_stdin"] = "bmV3"
    assert "the connection was cut, run again" in run(planned)
    assert folder(host) == {"one": b"old 1"}


def test_a_candidate_is_never_wider_than_its_file(plan, host):
    planned = put(plan, host, {"key": "secret"}, mode="600")
    left_over = host / f"key{files.CANDIDATE}"
    left_over.write_text("of a run that was cut off")
    left_over.chmod(0o666)
    command = planned.shell[0].partition(" && chown")[0]
    subprocess.run(["sh", "-c", command], input=planned.inputs[0], text=True, check=True)
    assert left_over.stat().st_mode & 0o777 == 0o600
    assert left_over.read_text() == "secret"


@pytest.mark.parametrize(
    ("there", "kept"),
    [(b"somebody's\n", [b"somebody's\n"]), (b"# Written by pem-fleet\n", []), (None, [])],
)
def test_a_file_of_somebody_else_is_kept_beside_ours_once(plan, host, there, kept):
    if there is not None:
        (host / "ini").write_bytes(there)
    for text in ("# pem-fleet 1", "# pem-fleet 2"):
        assert run(put(plan, host, {"ini": text}, keep_foreign=True)) == ""
    found = folder(host)
    assert found.pop("ini") == b"# pem-fleet 2"
    assert list(found.values()) == kept


# Our part of a file that somebody else owns

OTHERS = b"# theirs\r\n\xe9\n"


@as_operation()
def edit(path, old, new, check="", undo_check=""):
    """The change that edits of others' files share, as a step of its own."""
    yield from files.change(path, old, new, check=check, undo_check=undo_check)


def block(plan, path, lines=("ours",)):
    old = path.read_bytes()
    new = with_block(old, lines, first=False)
    return plan(edit, "app1", {}, path=str(path), old=old, new=new)


@pytest.fixture
def theirs(host):
    path = host / "pg_hba.conf"
    path.write_bytes(OTHERS)
    path.chmod(0o604)
    return path


def test_a_block_changes_the_content_alone_and_keeps_the_file_as_it_was_first(plan, theirs):
    assert run(block(plan, theirs)) == ""
    assert run(block(plan, theirs, ("ours", "more"))) == ""
    assert theirs.read_bytes().endswith(b"# END pem-fleet\r\n")
    assert b"ours\r\nmore" in theirs.read_bytes()
    assert theirs.stat().st_mode & 0o777 == 0o604
    found = folder(theirs.parent)
    assert found.pop(theirs.name + files.BACKUP) == OTHERS
    assert list(found) == [theirs.name]


def test_a_file_that_changed_since_it_was_read_is_not_touched(plan, theirs):
    planned = block(plan, theirs)
    theirs.write_bytes(b"somebody was faster\n")
    assert run(planned) == f"{theirs} was changed by somebody else just now; run again\n"
    assert folder(theirs.parent) == {theirs.name: b"somebody was faster\n"}


def replace(plan, path, new, **checks):
    return plan(edit, "app1", {}, path=str(path), old=OTHERS, new=new, **checks)


@pytest.fixture
def linked(theirs):
    """A link elsewhere that points to the file, as some keep their configuration."""
    link = theirs.parent.parent / "linked.conf"
    link.symlink_to(theirs)
    return link


@pytest.mark.parametrize(
    ("undo_check", "left"), [("true", b"new"), ("echo wrong", OTHERS)], ids=["right", "wrong"]
)
def test_a_link_stays_a_link_and_the_file_it_points_to_is_replaced(
    plan, theirs, linked, undo_check, left
):
    run(replace(plan, linked, b"new", undo_check=undo_check))
    assert linked.readlink() == theirs
    assert theirs.read_bytes() == left
    assert theirs.stat().st_mode & 0o777 == 0o604


@pytest.mark.parametrize("through", ["file", "link"])
def test_rules_that_a_cut_off_run_left_on_trial_are_taken_back(plan, theirs, linked, through):
    path = {"file": theirs, "link": linked}[through]
    good = with_block(OTHERS, ("ours",), first=True)
    theirs.write_bytes(b"on trial\n")
    path.with_name(path.name + files.UNDO).write_bytes(good)
    facts = {
        PostgresServer: DEBIAN_13[PostgresServer] | {"hba_file": str(path)},
        FileBytes: lambda path: Path(path).read_bytes() if Path(path).exists() else None,
    }
    assert run(plan(postgres.hba_block, "pem.example.com", facts, lines=("ours",))) == ""
    assert theirs.read_bytes() == good
    assert linked.readlink() == theirs
    assert plan(postgres.hba_block, "pem.example.com", facts, lines=("ours",)).changing == []


@pytest.mark.parametrize(
    ("undo_check", "said"), [("echo line 3", "line 3"), ("false", "the check itself failed")]
)
def test_a_file_that_its_reader_finds_wrong_comes_back(plan, theirs, undo_check, said):
    planned = replace(plan, theirs, b"wrong", undo_check=undo_check)
    assert run(planned) == f"{theirs} would be wrong, the old file is back: {said}\n"
    assert theirs.read_bytes() == OTHERS
    assert theirs.stat().st_mode & 0o777 == 0o604


def test_a_file_that_its_reader_finds_right_stays(plan, theirs):
    planned = replace(plan, theirs, b"right", undo_check="true")
    assert run(planned) == ""
    assert theirs.read_bytes() == b"right"


def test_a_candidate_that_is_refused_leaves_the_file_alone(plan, theirs):
    planned = replace(plan, theirs, b"wrong", check="die 'no CRL'")
    assert run(planned) == "no CRL\n"
    assert folder(theirs.parent) == {theirs.name: OTHERS}
