"""What of the findings somebody must see to, a sentence each."""

from collections.abc import Iterator

from fleet.findings import OPERATOR, Findings, Problem

# A pooler or a server this full refuses clients soon.
FULL_SHARE = 0.9
# From then on PgBouncer itself tells a client that it waits (1.25, query_wait_notify).
WAITING_SECONDS = 5


def problems(findings: Findings) -> tuple[Problem, ...]:
    """Everything that is not well; errors first."""
    found = [problem for check in CHECKS for problem in check(findings)]
    return tuple(sorted(found, key=lambda problem: problem.level))


def _machines(findings: Findings) -> Iterator[Problem]:
    for machine in findings.machines:
        if not machine.answers:
            yield Problem("error", machine.name, "it does not answer by ssh")
        for unit, runs in machine.services.items():
            if not runs:
                yield Problem("error", machine.name, f"{unit} does not run")
    for name, reason in findings.unanswered.items():
        yield Problem("error", name, reason)


def _certificates(findings: Findings) -> Iterator[Problem]:
    for one in findings.certificates:
        where = ", ".join(one.places)
        if one.days_left is None:
            yield Problem("error", where, f"{one.name}: there is no certificate")
            continue
        if one.days_left < 0:
            yield Problem("error", where, f"{one.name} expired {-one.days_left:.0f} days ago")
        elif one.days_left <= one.renew_days:
            yield Problem("warning", where, f"{one.name} ends in {one.days_left:.0f} days")
        if not one.of_operator:
            yield Problem("warning", where, f"{one.name} is not the one that the {OPERATOR} has")


def _poolers(findings: Findings) -> Iterator[Problem]:
    up = {machine.name for machine in findings.machines if machine.answers}
    for one in findings.poolers:
        if not one.answers:
            if one.host in up:
                yield Problem("error", one.host, "the console of PgBouncer does not answer")
            continue
        if one.paused:
            yield Problem("error", one.host, f"paused: {', '.join(one.paused)}")
        if one.waiting_seconds >= WAITING_SECONDS:
            what = f"{one.waiting} clients wait, the first for {one.waiting_seconds:.0f} s"
            yield Problem("error", one.host, what)
        if one.clients >= FULL_SHARE * one.max_client_conn:
            what = f"{one.clients} clients of at most {one.max_client_conn}"
            yield Problem("warning", one.host, what)


def _agents(findings: Findings) -> Iterator[Problem]:
    for one in findings.agents:
        if not one.well:
            yield Problem("error", one.name, one.words)
        if one.blackout:
            yield Problem("warning", one.name, f"PEM raises no alerts: {one.blackout} blackout")


def _servers(findings: Findings) -> Iterator[Problem]:
    up = {machine.name for machine in findings.machines if machine.answers}
    for one in findings.servers:
        if not one.answers:
            if one.host in up:
                yield Problem("error", one.host, "Postgres, or its database pem, does not answer")
            continue
        for file, errors in (("pg_hba.conf", one.hba_errors), ("pg_ident.conf", one.ident_errors)):
            for error in errors:
                yield Problem("error", one.host, f"{file}, {error}")
        for path in one.unread:
            yield Problem("warning", one.host, f"Postgres has not read {path} since it changed")
        for setting in one.pending_restart:
            yield Problem("warning", one.host, f"{setting} waits for a restart of Postgres")
        used = sum((one.connections or {}).values())
        if used >= FULL_SHARE * one.max_connections:
            what = f"{used} connections of at most {one.max_connections}"
            yield Problem("warning", one.host, what)


def _drift(findings: Findings) -> Iterator[Problem]:
    for one in findings.drift or ():
        files = f": {', '.join(one.files)}" if one.files else ""
        what = f"deploys/{one.deploy}.py would change {one.step.partition(' | ')[2]!r}{files}"
        yield Problem("warning", one.host, what)


CHECKS = (_machines, _servers, _poolers, _agents, _certificates, _drift)
