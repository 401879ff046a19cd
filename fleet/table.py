"""The findings as text: a section each, a line for each thing, and what to see to at the end."""

from collections.abc import Iterable, Sequence

from fleet.findings import OPERATOR, Certificate, Findings, Pooler, Problem, Server


def text(findings: Findings, found: Sequence[Problem]) -> str:
    """Everything that was found, for people."""
    sections = [
        ("Hosts", _hosts(findings)),
        ("Certificates", _certificates(findings)),
        ("Poolers", _poolers(findings)),
        ("Agents", _agents(findings)),
        ("Server", _servers(findings)),
        ("Drift", _drift(findings)),
        ("Problems", _problems(found)),
    ]
    return "\n\n".join(f"{title}:\n{_columns(rows)}" for title, rows in sections)


def _columns(rows: Iterable[Sequence[str]]) -> str:
    """Rows with their cells under one another; the last cell is as long as it is."""
    table = [list(row) for row in rows]
    widths = [max((len(row[n]) for row in table if len(row) > n + 1), default=0) for n in range(9)]
    lines = [
        "  ".join([*(cell.ljust(widths[n]) for n, cell in enumerate(row[:-1])), row[-1]])
        for row in table
    ]
    return "\n".join(f"  {line}".rstrip() for line in lines)


def _hosts(findings: Findings) -> Iterable[Sequence[str]]:
    for one in findings.machines:
        units = [f"{name} {'runs' if runs else 'STOPPED'}" for name, runs in one.services.items()]
        state = ", ".join(units) or "answers" if one.answers else "DOES NOT ANSWER"
        yield one.name, one.address, ", ".join(one.roles), state


def _certificates(findings: Findings) -> Iterable[Sequence[str]]:
    for one in findings.certificates:
        left = "missing" if one.days_left is None else f"{one.days_left:.1f} days"
        yield left.rjust(11), one.name, _places(one)


def _places(one: Certificate) -> str:
    """Where it is; one that many hosts hold, an authority, without its paths."""
    operator = [OPERATOR for place in one.places if place.startswith(f"{OPERATOR}:")]
    hosts = [place for place in one.places if not place.startswith(f"{OPERATOR}:")]
    if one.authority:
        hosts = [place.partition(":")[0] for place in hosts]
    return ", ".join(operator + hosts)


def _poolers(findings: Findings) -> Iterable[Sequence[str]]:
    for one in findings.poolers:
        yield (one.host, *_pooler(one)) if one.answers else (one.host, "DOES NOT ANSWER")
    # One line for all of a version, and no problem.
    for advice in dict.fromkeys(one.advice for one in findings.poolers if one.advice):
        yield (f"advice: {advice}",)


def _pooler(one: Pooler) -> Sequence[str]:
    said = [
        f"{one.clients} of {one.max_client_conn} clients",
        f"{one.server_connections} server connections, pool_size {one.pool_size}",
        f"{one.waiting} waiting",
    ]
    if one.paused:
        said.append(f"PAUSED: {', '.join(one.paused)}")
    return one.socket_directory, f"PgBouncer {one.version}", ", ".join(said)


def _agents(findings: Findings) -> Iterable[Sequence[str]]:
    for one in findings.agents:
        yield one.name, one.words + (f", {one.blackout} alert blackout" if one.blackout else "")


def _servers(findings: Findings) -> Iterable[Sequence[str]]:
    for one in findings.servers:
        if not one.answers:
            yield one.host, "DOES NOT ANSWER"
            continue
        yield one.host, f"Postgres {one.version}{', standby' if one.standby else ''}", _used(one)
        wrong = len(one.hba_errors) + len(one.ident_errors)
        yield (
            one.host,
            "files",
            f"{wrong} errors in pg_hba.conf and pg_ident.conf,"
            f" {len(one.unread)} changed and not read yet,"
            f" {len(one.pending_restart)} settings wait for a restart",
        )


def _used(one: Server) -> str:
    groups = one.connections or {}
    parts = ", ".join(f"{kind} {number}" for kind, number in sorted(groups.items()))
    return f"{sum(groups.values())} of {one.max_connections} connections ({parts})"


def _drift(findings: Findings) -> Iterable[Sequence[str]]:
    if findings.drift is None:
        yield ("not looked for",)
    elif not findings.drift:
        yield ("none: every deploy would change nothing",)
    for one in findings.drift or ():
        yield one.host, f"deploys/{one.deploy}.py", one.step, ", ".join(one.files)


def _problems(found: Sequence[Problem]) -> Iterable[Sequence[str]]:
    if not found:
        yield ("none",)
    for one in found:
        yield (f"{one.level}: {one.where}: {one.what}",)
