"""Our part of a file that somebody else owns. Pure text; everything outside stays byte for byte.

Two shapes: a block of lines between two marks (pg_hba.conf, pg_ident.conf, certificate bundles),
and single keys of an ini section (agent.cfg).
"""

import re

BEGIN = b"# BEGIN pem-fleet"
END = b"# END pem-fleet"


def with_block(text: bytes, lines: tuple[str, ...], *, first: bool) -> bytes:
    """The text with our lines as its one block.

    first: the block opens the file, whatever else stands there (the order of pg_hba.conf's lines
    decides). Otherwise a block that is there keeps its place, and a new one goes to the end.
    The file's own line endings are used. No lines: the block is taken out.
    Raises ValueError for a mark without its other half: what is ours cannot be told from the rest.
    """
    rest, place = _without_blocks(text)
    if not lines:
        return rest
    newline = b"\r\n" if b"\r\n" in rest else b"\n"
    block = newline.join([BEGIN, *(line.encode() for line in lines), END]) + newline
    if first:
        return block + rest
    if place is not None:
        return rest[:place] + block + rest[place:]
    if rest and not rest.endswith(b"\n"):
        rest += newline
    return rest + block


def _without_blocks(text: bytes) -> tuple[bytes, int | None]:
    """What is not ours, and where in it the first block was (None without one)."""
    rest, place, opened = b"", None, 0
    for number, line in enumerate(re.findall(rb"[^\n]*\n|[^\n]+", text), 1):
        mark = line.strip(b" \t\r\n")
        if (mark == BEGIN and opened) or (mark == END and not opened):
            raise _half_a_mark(opened or number)
        if mark == BEGIN:
            opened, place = number, len(rest) if place is None else place
        elif mark == END:
            opened = 0
        elif not opened:
            rest += line
    if opened:
        raise _half_a_mark(opened)
    return rest, place


def _half_a_mark(number: int) -> ValueError:
    return ValueError(
        f"line {number}: a mark of pem-fleet without its other half"
        "\nHINT: take that line out by hand, and the lines of pem-fleet that it went with"
    )


def text_of(content: bytes | None) -> str:
    """A file's content as text; `bytes_of()` gives the same bytes back, UTF-8 or not."""
    return (content or b"").decode(errors="surrogateescape")


def bytes_of(text: str) -> bytes:
    """The bytes of a text from `text_of()`."""
    return text.encode(errors="surrogateescape")


def ini_value(text: str, section: str, key: str) -> str | None:
    """The value of a key in a section, or None. The last one wins."""
    found = None
    for name, line in _lines_by_section(text):
        parsed = _KEY.match(line)
        if name == section and parsed and parsed["key"] == key:
            found = parsed["value"].strip()
    return found


def ini_entries(text: str) -> list[tuple[str, str, str]]:
    """Every `key = value` of an ini, in order: section, key, value. Comments are left out."""
    found = []
    for section, line in _lines_by_section(text):
        parsed = _KEY.match(line)
        if parsed:
            found.append((section, parsed["key"], parsed["value"]))
    return found


def without_lines(text: bytes, unwanted: tuple[str, ...]) -> bytes:
    """The text without those lines, however their words are spaced; others byte for byte."""
    words = [line.encode().split() for line in unwanted]
    return b"".join(line for line in text.splitlines(keepends=True) if line.split() not in words)


def with_ini_values(text: str, section: str, values: dict[str, str]) -> str:
    """The text with keys of one section set; order, comments and unknown keys stay.

    A key that is there changes in its place; a new one goes after the section's last key.
    Raises ValueError when the section is not there.
    """
    lines = _LINE.findall(text)
    newline = "\r\n" if "\r\n" in text else "\n"
    left, last, inside = dict(values), None, False
    for number, (name, line) in enumerate(_lines_by_section(text)):
        inside = name == section
        parsed = _KEY.match(line)
        if inside and (parsed or _SECTION.match(line)):
            last = number
        if inside and parsed and parsed["key"] in values:
            ending = lines[number][len(line) :]
            lines[number] = f"{parsed['left']}{values[parsed['key']]}{ending}"
            left.pop(parsed["key"], None)
    if last is None:
        raise ValueError(f"section [{section}] is not there")
    if left and not lines[last].endswith("\n"):
        lines[last] += newline
    lines[last + 1 : last + 1] = [f"{key}={value}{newline}" for key, value in left.items()]
    return "".join(lines)


# Not str.splitlines(), which ends a line at a dozen other characters as well.
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
# A byte order mark may stand before the first section.
_SECTION = re.compile(r"^\ufeff?\s*\[(?P<name>[^]]*)\]\s*$")
_KEY = re.compile(r"^(?P<left>\s*(?P<key>[^\s=;#\[][^=]*?)\s*=\s*)(?P<value>.*?)\s*$")


def _lines_by_section(text: str) -> list[tuple[str, str]]:
    """Each line with the name of the section that it is in."""
    section, result = "", []
    for whole in _LINE.findall(text):
        line = whole.removesuffix("\n").removesuffix("\r")
        found = _SECTION.match(line)
        section = found["name"] if found else section
        result.append((section, line))
    return result
