"""Our part of a file that somebody else owns. Pure text; everything outside stays byte for byte.

Two shapes: a block of lines between two marks (pg_hba.conf, pg_ident.conf, certificate bundles),
and single keys of an ini section (agent.cfg).
"""

import re

BEGIN = b"# BEGIN pem-fleet"
END = b"# END pem-fleet"
_BLOCK = re.compile(
    rb"^[ \t]*" + BEGIN + rb"[ \t]*\r?\n.*?^[ \t]*" + END + rb"[ \t]*(?:\r?\n|\Z)",
    re.MULTILINE | re.DOTALL,
)


def with_block(text: bytes, lines: tuple[str, ...], *, first: bool) -> bytes:
    """The text with our lines as its one block.

    first: the block opens the file, whatever else stands there (the order of pg_hba.conf's lines
    decides). Otherwise a block that is there keeps its place, and a new one goes to the end.
    The file's own line endings are used. No lines: the block is taken out.
    """
    newline = b"\r\n" if b"\r\n" in text else b"\n"
    block = b""
    if lines:
        block = newline.join([BEGIN, *(line.encode() for line in lines), END]) + newline
    found = _BLOCK.search(text)
    rest = _BLOCK.sub(b"", text)
    if first:
        return block + rest
    if found:
        before = _BLOCK.sub(b"", text[: found.start()])
        return before + block + rest[len(before) :]
    if rest and not rest.endswith(b"\n"):
        rest += newline
    return rest + block


def ini_value(text: str, section: str, key: str) -> str | None:
    """The value of a key in a section, or None. The last one wins."""
    found = None
    for name, line in _lines_by_section(text):
        parsed = _KEY.match(line)
        if name == section and parsed and parsed["key"] == key:
            found = parsed["value"].strip()
    return found


def with_ini_values(text: str, section: str, values: dict[str, str]) -> str:
    """The text with keys of one section set; order, comments and unknown keys stay.

    A key that is there changes in its place; a new one goes after the section's last key.
    Raises ValueError when the section is not there.
    """
    lines = text.splitlines(keepends=True)
    newline = "\r\n" if "\r\n" in text else "\n"
    left, last, inside = dict(values), None, False
    for number, (name, line) in enumerate(_lines_by_section(text)):
        inside = name == section
        parsed = _KEY.match(line)
        if inside and (parsed or line.strip() == f"[{section}]"):
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


_SECTION = re.compile(r"^\s*\[(?P<name>[^]]*)\]\s*$")
_KEY = re.compile(r"^(?P<left>\s*(?P<key>[^\s=;#\[][^=]*?)\s*=\s*)(?P<value>.*?)\s*$")


def _lines_by_section(text: str) -> list[tuple[str, str]]:
    """Each line with the name of the section that it is in."""
    section, result = "", []
    for line in text.splitlines():
        found = _SECTION.match(line)
        section = found["name"] if found else section
        result.append((section, line))
    return result
