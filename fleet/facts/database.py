"""How the PEM database is used, and what of its files it could not read.

Asked on its host as the server's OS user. This fact never fails a host.
"""

import json
from typing import TypedDict

from pyinfra.api import FactBase, QuoteString, StringCommand
from typing_extensions import override

from fleet.facts.postgres import literal, psql


class Database(TypedDict):
    """A Postgres server that answers, a standby as well.

    connections: of clients, by what they are: agents pooled, agents direct, poolers (their
        auth_query and administrators), others.
    hba_errors, ident_errors: lines that the server cannot read in its files as they are on disk.
    blackouts: agents whose alerts are off, by id: "manual" or "automatic". Empty without PEM.
    """

    version: str
    standby: bool
    max_connections: int
    connections: dict[str, int]
    hba_errors: list[str]
    ident_errors: list[str]
    blackouts: dict[str, str]


# The columns of blackouts came with PEM 10.3: a row as JSON has them or has them not.
_BLACKOUTS = """
SELECT jsonb_object_agg(id, kind) FROM (
    SELECT id, CASE WHEN said ->> 'alert_blackout' = 'true' THEN 'manual'
                    WHEN said ->> 'auto_alert_blackout' = 'true' THEN 'automatic' END AS kind
    FROM (SELECT id, to_jsonb(agent) AS said FROM pem.agent AS agent WHERE active) AS agents
) AS kinds WHERE kind IS NOT NULL
"""


class PostgresDatabase(FactBase[Database | None]):
    """The server on a port, asked in database pem; None when that does not answer.

    poolers: the networks that the poolers come from.
    """

    @override
    def requires_command(self, agent_user: str, poolers: tuple[str, ...], port: int = 5432) -> str:
        return "psql"

    @override
    def command(self, agent_user: str, poolers: tuple[str, ...], port: int = 5432) -> StringCommand:
        networks = ", ".join(literal(network) for network in poolers)
        from_poolers = f"client_addr <<= ANY (ARRAY[{networks}]::inet[])"
        sql = f"""
WITH logged_in(kind) AS (
    SELECT CASE WHEN usename = {literal(agent_user)} AND {from_poolers} THEN 'agents pooled'
                WHEN usename = {literal(agent_user)} OR usename ~ '^agent[0-9]+$'
                    THEN 'agents direct'
                WHEN {from_poolers} THEN 'poolers' ELSE 'others' END
    FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
)
SELECT jsonb_build_object(
    'version', split_part(current_setting('server_version'), ' ', 1),
    'standby', pg_is_in_recovery(),
    'max_connections', current_setting('max_connections')::int,
    'connections', (SELECT coalesce(jsonb_object_agg(kind, number), '{{}}') FROM
                    (SELECT kind, count(*) AS number FROM logged_in GROUP BY kind) AS counted),
    'hba_errors', (SELECT coalesce(jsonb_agg('line ' || line_number || ': ' || error), '[]')
                   FROM pg_hba_file_rules WHERE error IS NOT NULL),
    'blackouts', coalesce(({_BLACKOUTS}), '{{}}'))"""
        # A view that came with Postgres 15: where it is not, the statement alone fails.
        ident = (
            "SELECT coalesce(jsonb_agg('line ' || line_number || ': ' || error), '[]')"
            " FROM pg_ident_file_mappings WHERE error IS NOT NULL"
        )
        return StringCommand(
            *psql(port, "pem"), "-c", QuoteString(" ".join(sql.split())), "2>/dev/null &&",
            *psql(port, "pem"), "-c", QuoteString(ident), "2>/dev/null || true",
        )  # fmt: skip

    @override
    def process(self, output: list[str]) -> Database | None:
        if not output or not output[0]:
            return None
        database: Database = json.loads(output[0])
        database["ident_errors"] = json.loads(output[1]) if len(output) > 1 else []
        return database
