# Proves a PgBouncer configuration before it replaces the running one. Set before it:
#   service_user  the OS user of the service     pgbouncer  its binary
#   minimum       the oldest fit version         reason     why no older one
#   spare_ini     the configuration for a second instance, with @SPARE@ for its directory
#   login         the connection string of PgBouncer's own way to the database
#   agent_user    the role that the agents log in as
#   connect_name  the name of the database's host or cluster, for messages
#   pools         server connections that all poolers together may open
#   enough        max_connections that would do for them and everybody else
#   arithmetic    how that number comes about, for messages
#   user_function the function that is asked for users of other databases, empty without any
refuse() { echo "refused, the running configuration stays: $1" >&2; exit 1; }

version=$("$pgbouncer" --version | sed -n 's/^PgBouncer \([0-9.]*\).*/\1/p')
[ "$(printf '%s\n%s\n' "$minimum" "$version" | sort -V | head -n 1)" = "$minimum" ] ||
    refuse "PgBouncer $version is older than $minimum: $reason
HINT: vendor=\"pgdg\" in PgBouncer(...) of the inventory, with that repository on the host"

# Not in /tmp, which others fill and clean up.
spare=$(mktemp -d /run/pem-fleet-spare.XXXXXX) || refuse "no directory can be made in /run"
as_service() { runuser -u "$service_user" -- "$@"; }
finish() {
    as_service sh -c 'kill "$(cat "$1/pid")"' sh "$spare" 2>/dev/null || true
    rm -rf "$spare"
}
trap finish EXIT
printf '%s\n' "$spare_ini" | sed "s#@SPARE@#$spare#g" > "$spare/pgbouncer.ini"
chown "$service_user" "$spare/pgbouncer.ini"
# From here on the directory is the service's: what is in it is read and signalled as the service.
chown "$service_user" "$spare"
spare_log() { as_service cat "$spare/log" 2>/dev/null; }

# 1. A second instance reads the same settings, certificates and rules, and answers on its console.
said=$(as_service "$pgbouncer" -d -q "$spare/pgbouncer.ini" 2>&1) ||
    refuse "it does not start: $said $(spare_log | tail -n 3)"
answered=no
for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    if as_service psql -XAtq -U pgbouncer -d pgbouncer -h "$spare" -p 6432 -c 'SHOW VERSION' >/dev/null 2>&1
    then answered=yes; break; fi
    sleep 0.1
done
[ "$answered" = yes ] || refuse "a second instance does not answer: $(spare_log | tail -n 3)"
problems=$(spare_log | grep -E ' (ERROR|WARNING|FATAL) ' | grep -v 'file descriptor limit' || true)
[ -z "$problems" ] || refuse "$problems"

# 2. The database lets the poolers' certificate in, and answers for the agents' user.
ask() { as_service psql "$login" -XAtq -v ON_ERROR_STOP=1 -c "$1" 2>&1; }
answer=$(ask "SELECT username FROM pem_fleet.get_pool_auth('$agent_user')") ||
    refuse "the database does not do its part: $answer
HINT: make deploy INVENTORY=... DEPLOY=deploys/pem_server.py"
standby=$(ask 'SELECT pg_is_in_recovery()') ||
    refuse "$connect_name does not say whether it is a standby: $standby
HINT: run again; if it stays so, the log of Postgres on $connect_name"
[ "$standby" = f ] || refuse "$connect_name leads to a standby, where no agent can write ($standby)
HINT: endpoint= in PemServer(...) is the name that the cluster manager moves to the primary"
free=$(ask "SELECT sum(setting::int * CASE name
    WHEN 'max_connections' THEN 1 ELSE -1 END) FROM pg_settings WHERE name IN
    ('max_connections', 'superuser_reserved_connections', 'reserved_connections')") ||
    refuse "$connect_name does not say how many connections it takes: $free
HINT: run again; if it stays so, the log of Postgres on $connect_name"
[ "$pools" -le "$free" ] || refuse "the poolers may open more connections than the $free\
 that max_connections of $connect_name leaves to ordinary users: $arithmetic
HINT: max_connections=$enough in PemServer(...) and a restart of Postgres, or a smaller pool_size"

# 3. Where the poolers lead to other databases, it answers for their users too.
if [ -n "$user_function" ]; then
    answer=$(ask "SELECT has_function_privilege('$user_function', 'EXECUTE')") || true
    [ "$answer" = t ] || refuse "the database does not answer for users of other databases: $answer
HINT: make deploy INVENTORY=... DEPLOY=deploys/access.py"
fi
