"""Our part of any file: whatever else stands there, it stays byte for byte, or nothing is done.

The texts are made up by hypothesis, the same ones in every run.
"""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fleet.parts import BEGIN, END, ini_value, with_block, with_ini_values

thorough = settings(derandomize=True, max_examples=150, deadline=None)

# What people and packages write into pg_hba.conf and pg_ident.conf, and what nobody should.
WRITTEN = [
    b"", b"   ", b"\t", b"# comment", b"#", b"  # indented, \xe9 not UTF-8",
    b"include other.conf", b"include_if_exists 'with blank.conf'", b"include_dir conf.d",
    b'host "a, b" "user # no comment" 192.0.2.0/24 scram-sha-256', b'local "pem-fleet" all peer',
    b"hostssl all all \\", b"    192.0.2.0/24 \\", b"# a comment goes on \\",
    b"map /^(.*)@example\\.com$ \\1", b"@users", b"\tlocal  all\tall  peer\t", b"\xff\xfe\x00",
    b"a bare \r in the line", b"## BEGIN pem-fleet", b"# BEGIN pem-fleet's", b"# END", b"BEGIN",
]  # fmt: skip
junk = st.binary(max_size=30).map(lambda text: text.replace(b"\n", b""))
foreign_line = st.one_of(st.sampled_from(WRITTEN), junk).filter(
    lambda line: line.strip(b" \t\r\n") not in (BEGIN, END)
)
ending = st.sampled_from([b"\n", b"\r\n"])
blank = st.sampled_from([b"", b" ", b"\t", b"  \t"])
ours = st.sampled_from([(), ("one",), ("hostssl pem +pool ::1/128 cert map=pool", "two")])
some = st.sampled_from([("one",), ("hostssl pem +pool ::1/128 cert map=pool", "two")])


@st.composite
def foreign_texts(draw):
    """Lines of somebody else's, all with one ending or mixed, the last one with or without."""
    endings = st.just(draw(ending)) if draw(st.booleans()) else ending
    lines = draw(st.lists(foreign_line, max_size=25))
    text = b"".join(line + draw(endings) for line in lines)
    return text + (draw(foreign_line) if draw(st.booleans()) else b"")


@st.composite
def blocks(draw):
    """A block of ours as an earlier run left it, or as an editor has changed it since."""
    newline = draw(ending)
    lines = [
        draw(blank) + BEGIN + draw(blank),
        *draw(st.lists(foreign_line, max_size=3)),
        draw(blank) + END + draw(blank),
    ]
    return newline.join(lines) + newline


@st.composite
def texts_with_blocks(draw):
    """A text with blocks of ours between the lines, and what of it is not ours."""
    parts, rest = [], b""
    for _ in range(draw(st.integers(1, 3))):
        before = draw(foreign_texts())
        before += b"" if before.endswith(b"\n") or not before else b"\n"
        parts += [before, draw(blocks())]
        rest += before
    after = draw(foreign_texts())
    return b"".join(parts) + after, rest + after


def around(text, lines):
    """What is not ours in a text that holds our block once."""
    newline = b"\r\n" if BEGIN + b"\r\n" in text else b"\n"
    block = newline.join([BEGIN, *(line.encode() for line in lines), END]) + newline
    assert text.count(block) == 1
    return text.replace(block, b"")


LONG = b"".join(b"host db%d all 192.0.2.%d/32 md5\r\n" % (n, n % 256) for n in range(500))


@thorough
@example(text=LONG, lines=("one",), first=False)
@example(text=LONG, lines=("one",), first=True)
@given(text=foreign_texts(), lines=ours, first=st.booleans())
def test_a_foreign_text_stays_and_comes_back_when_ours_is_taken_out(text, lines, first):
    once = with_block(text, lines, first=first)
    completed = text
    if lines and not first and text and not text.endswith(b"\n"):
        completed += b"\r\n" if b"\r\n" in text else b"\n"
    assert with_block(once, (), first=first) == completed
    assert once == text or around(once, lines) == completed
    assert once.startswith(BEGIN) if first and lines else once.startswith(text)


@thorough
@given(given_text=texts_with_blocks(), lines=some, first=st.booleans())
def test_old_blocks_of_ours_become_one_and_what_is_around_them_stays(given_text, lines, first):
    text, rest = given_text
    once = with_block(text, lines, first=first)
    assert around(once, lines) == rest
    assert with_block(text, (), first=first) == rest


@thorough
@given(
    text=st.one_of(foreign_texts(), texts_with_blocks().map(lambda both: both[0])),
    lines=ours,
    first=st.booleans(),
)
def test_twice_is_once(text, lines, first):
    once = with_block(text, lines, first=first)
    assert with_block(once, lines, first=first) == once


@thorough
@given(
    before=foreign_texts(),
    mark=st.sampled_from([BEGIN, END]),
    around_it=st.tuples(blank, blank, ending),
    after=st.one_of(foreign_texts(), texts_with_blocks().map(lambda both: both[0])),
    first=st.booleans(),
)
def test_a_mark_without_its_other_half_is_told_and_nothing_is_guessed(
    before, mark, around_it, after, first
):
    before += b"" if before.endswith(b"\n") or not before else b"\n"
    left, right, newline = around_it
    text = before + left + mark + right + newline + after
    number = before.count(b"\n") + 1
    with pytest.raises(ValueError, match=f"^line {number}: a mark of pem-fleet without its other"):
        with_block(text, ("one",), first=first)


# agent.cfg: keys of ours in one section, among anything else.
OURS = {"pem_host": "bouncer1,bouncer2", "pem_port": "6432,6432", "agent_ssl_crt": "/a=b.crt"}
cfg_line = st.one_of(
    st.sampled_from([
        "", "  ", "# pem_host=commented", ";pem_port = 1", "agent_id=3", " long_wait = 30 ",
        "no equals sign", "pem_host_2=no", "xpem_host=no", "a\u2028pem_host=no", "=", " [",
        "log_location=/var/log/\udcff.log", "options=-c x=1 # y", " [unclosed", "\x0bpem", "a\rb=c",
    ]),
    st.text(max_size=20).map(lambda text: text.replace("\n", "")),
).filter(lambda line: line[:1] != "[" and line.partition("=")[0].strip() not in OURS)  # fmt: skip
our_line = st.builds(
    lambda key, left, right, old: f"{left}{key}{right}={right}{old}",
    st.sampled_from(sorted(OURS)),
    st.sampled_from(["", " ", "\t"]),
    st.sampled_from(["", " "]),
    st.sampled_from(["", "127.0.0.1", "a=b ; c"]),
)


@st.composite
def configurations(draw):
    """An agent.cfg, as its lines and whether each of them is a key that we set."""
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    foreign = cfg_line.map(lambda line: (line, False))
    own = st.one_of(foreign, our_line.map(lambda line: (line, True)))
    other = st.one_of(cfg_line, our_line).map(lambda line: (line, False))
    lines = [
        *draw(st.lists(other, max_size=5)),
        ("[PEM/agent]", False),
        *draw(st.lists(own, max_size=10)),
        *draw(st.sampled_from([[], [("[WEBHOOK/a]", False)]])),
    ]
    if lines[-1][0] == "[WEBHOOK/a]":
        lines += draw(st.lists(other, max_size=5))
    return [(line + newline, is_ours) for line, is_ours in lines]


@thorough
@given(lines=configurations(), final_newline=st.booleans())
def test_every_line_but_our_keys_stays_and_our_keys_say_what_they_should(lines, final_newline):
    text = "".join(line for line, _ in lines)
    text = text if final_newline else text.removesuffix("\n").removesuffix("\r")
    once = with_ini_values(text, "PEM/agent", OURS)
    assert {key: ini_value(once, "PEM/agent", key) for key in OURS} == OURS
    assert with_ini_values(once, "PEM/agent", OURS) == once
    assert others_lines(once) == "".join(line for line, is_ours in lines if not is_ours).rstrip()


def others_lines(text):
    """An agent.cfg without our keys in its section, and without blanks at its end."""
    kept, inside = [], False
    for line in text.split("\n"):
        if line.startswith("["):
            inside = line.strip() == "[PEM/agent]"
        if not (inside and line.partition("=")[0].strip() in OURS):
            kept.append(line)
    return "\n".join(kept).rstrip()
