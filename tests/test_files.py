"""Files on a host: all of them or none, owner and mode first, and others' files kept as they were.

The commands of these plans are run here, on files of the test's own.
"""

import grp
import os
import pwd
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pyinfra.api import operation as as_operation

from fleet.facts.files import FileBytes, FileStates, Inode
from fleet.facts.postgres import PostgresServer
from fleet.operations import files, postgres
from fleet.parts import with_block
from tests.planning import fails
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


def run_one(command):
    """Run one command as pyinfra does; its error, or ''."""
    done = subprocess.run(
        ["sh", "-c", command.get_raw_value()],
        input=command.connector_arguments["_stdin"] + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr if done.returncode else ""


def commands(planned):
    """The commands of a plan's only step."""
    [found] = planned.steps.values()
    return found


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


@pytest.mark.parametrize("arrived", [0.2, 0.5, 0.99])
def test_of_a_connection_that_is_cut_nothing_is_left_on_the_host(plan, host, arrived):
    (host / "one").write_text("old 1")
    [command] = commands(put(plan, host, {"one": "new 1", "two": "new 2"}))
    text = command.connector_arguments["_stdin"]
    command.connector_arguments["_stdin"] = text[: int(len(text) * arrived)]
    assert "Syntax error" in run_one(command) or "syntax error" in run_one(command)
    assert folder(host) == {"one": b"old 1"}


def test_a_candidate_is_never_wider_than_its_file(plan, host):
    left_over = host / f"key{files.CANDIDATE}"
    left_over.write_text("of a run that was cut off")
    left_over.chmod(0o666)
    look = f"stat -c %a '{left_over}' > '{host}/modes'"
    [command] = commands(put(plan, host, {"key": "secret"}, mode="600"))
    text = command.connector_arguments["_stdin"]
    command.connector_arguments["_stdin"] = text.replace("&&\n        chown", f"&& {look} && chown")
    assert run_one(command) == ""
    assert (host / "modes").read_text() == "600\n"


@pytest.mark.parametrize(
    ("there", "kept"),
    [(b"somebody's\n", [b"somebody's\n"]), (b"# Written by pem-fleet\n", []), (None, [])],
)
def test_a_file_of_somebody_else_is_kept_beside_ours_once(plan, host, there, kept):
    if there is not None:
        (host / "ini").write_bytes(there)
    for text in ("# Written by pem-fleet 1", "# Written by pem-fleet 2"):
        assert run(put(plan, host, {"ini": text})) == ""
    found = folder(host)
    assert found.pop("ini") == b"# Written by pem-fleet 2"
    assert list(found.values()) == kept


def test_of_two_files_of_somebody_else_both_are_kept(plan, host):
    for there in ("first", "second"):
        (host / "ini").write_text(there)
        assert run(put(plan, host, {"ini": "# Written by pem-fleet"})) == ""
    assert set(folder(host).values()) == {b"first", b"second", b"# Written by pem-fleet"}


def test_a_link_of_somebody_else_is_kept_as_a_link_and_what_it_points_to_stays(plan, host):
    (host / "theirs").write_text("theirs")
    (host / "ini").symlink_to("theirs")
    assert run(put(plan, host, {"ini": "ours"})) == ""
    assert (host / f"ini{files.BACKUP}").readlink() == Path("theirs")
    assert (host / "theirs").read_text() == "theirs"
    assert (host / "ini").read_text() == "ours"
    assert not (host / "ini").is_symlink()


def test_a_directory_in_the_way_of_a_file_is_told_and_stays(plan, host):
    (host / "two" / "inside").mkdir(parents=True)
    said = run(put(plan, host, {"one": "1", "two": "2"}))
    assert said == (
        f"{host}/two is a directory, a file belongs there; nothing was changed\n"
        f"HINT: mv {host}/two {host}/two.away, then run again\n"
    )
    assert [one.name for one in host.rglob("*")] == ["two", "inside"]


def test_a_directory_that_is_not_there_is_told(plan, host):
    said = run(put(plan, host / "nowhere", {"one": "1"}))
    assert said.startswith(f"{host}/nowhere is not there, or is no directory; {host}/nowhere/one")


def test_a_file_that_cannot_be_replaced_leaves_the_others_as_they_were(plan, host):
    (host / "one").write_text("old 1")
    (host / "link").symlink_to("somewhere")
    planned = put(plan, host, {"one": "1", "new": "2", "link": "3", "stuck": "4", "later": "5"})
    [command] = commands(planned)
    # The rename itself fails, as on a file that is a mount point.
    broken = "mv() { case $* in *stuck*) echo 'mv: busy' >&2; return 1;; esac; command mv \"$@\"; }"
    text = command.connector_arguments["_stdin"]
    command.connector_arguments["_stdin"] = text.replace("set -eu", f"set -eu\n{broken}", 1)
    assert f"{host}/stuck cannot be replaced: mv: busy; all files are as they were" in run_one(
        command
    )
    assert (host / "one").read_text() == "old 1"
    assert (host / "link").readlink() == Path("somewhere")
    kept = {f"{name}{files.BACKUP}" for name in ("one", "link")}
    assert {one.name for one in host.iterdir()} == {"one", "link", *kept}


def test_runs_that_write_in_one_directory_wait_for_one_another(plan, host):
    check = f"echo begin >> '{host}/log'; sleep 0.2; echo end >> '{host}/log'"
    [one], [other] = (
        commands(put(plan, host, {"file": text}, check=check)) for text in ("first", "second")
    )
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(run_one, (one, other))) == ["", ""]
    assert (host / "log").read_text() == "begin\nend\n" * 2


def test_keys_and_certificates_say_whose_they_are(plan, host, authority):
    path = authority.path / "server-ca.crt"
    assert run(put(plan, host, {"ca.crt": path})) == ""
    assert (host / "ca.crt").read_bytes().startswith(b"# Written by pem-fleet;")
    said = subprocess.run(
        ["openssl", "x509", "-noout", "-subject", "-in", host / "ca.crt"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "server CA" in said.stdout


# Directories


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("regular file", lambda path: path.write_text("theirs")),
        ("symbolic link", lambda path: path.symlink_to("/etc")),
    ],
)
def test_something_in_the_way_of_a_directory_is_told_and_stays(plan, host, caplog, kind, make):
    path = host / "in the way"
    make(path)
    planned = plan(files.directory, "app1", {Inode: there(path)}, path=str(path))
    assert f"{path} is a {kind}, a directory belongs there" in fails(planned, caplog)


def test_a_directory_gets_its_owner_and_mode_and_then_nothing_more(plan, host):
    wanted = {"path": str(host / "made"), "user": USER, "group": GROUP, "mode": "750"}
    for path in (host / "made", host):
        path.mkdir(exist_ok=True)
    for _ in range(2):
        planned = plan(files.directory, "app1", {Inode: there(host / "made")}, **wanted)
        assert run(planned) == ""
    assert planned.changing == []
    assert (host / "made").stat().st_mode & 0o777 == 0o750


def there(path):
    """What the host's own stat says of a path."""
    asked = Inode().command(path=str(path)).get_raw_value()
    said = subprocess.run(["sh", "-c", asked], capture_output=True, text=True, check=True).stdout
    return Inode().process(said.splitlines())


# Our part of a file that somebody else owns

OTHERS = b"# theirs\r\n\xe9\n"


@as_operation()
def edit(path, old, new, undo_check=""):
    """The change that edits of others' files share, as a step of its own."""
    yield from files.change(path, old, new, undo_check=undo_check)


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


@pytest.mark.parametrize("ending", [files.CANDIDATE, files.UNDO])
def test_a_link_that_a_service_lays_in_the_way_leads_root_nowhere(plan, theirs, ending):
    elsewhere = theirs.parent.parent / "of-root"
    elsewhere.write_text("not the service's\n")
    theirs.with_name(theirs.name + ending).symlink_to(elsewhere)
    assert run(replace(plan, theirs, b"new", undo_check="true")) == ""
    assert (theirs.read_bytes(), elsewhere.read_text()) == (b"new", "not the service's\n")
    theirs.with_name(theirs.name + ending).symlink_to(elsewhere)
    assert run(put(plan, theirs.parent, {theirs.name: "whole"})) == ""
    assert (theirs.read_bytes(), elsewhere.read_text()) == (b"whole", "not the service's\n")
    assert theirs.stat().st_mode & 0o777 == 0o640
