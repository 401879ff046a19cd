# Written by pem-fleet; edits here are lost.
# Stops a PgBouncer process without an error for its clients, as its own OS user.
# Arguments: seconds that clients have to leave, directory of the Unix socket, port, process id.
#
# Signals cannot do it: a second one ends the process at once. The console takes both requests, but
# only in one session, because the first may close its socket to others.
console="psql -XAtq -U pgbouncer -d pgbouncer -h $2 -p $3"
# Without a console, systemd goes on with the unit's own signal.
$console -c 'SHOW VERSION' >/dev/null 2>&1 || exit 0
$console >/dev/null 2>&1 <<END
SHUTDOWN WAIT_FOR_CLIENTS;
\! sleep $1
SHUTDOWN WAIT_FOR_SERVERS;
END
while kill -0 "$4" 2>/dev/null; do sleep 0.2; done
