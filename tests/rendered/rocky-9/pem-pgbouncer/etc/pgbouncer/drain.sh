# Written by pem-fleet; edits here are lost.
# Stops a PgBouncer process without an error for its clients, as its own OS user.
# Arguments: seconds that clients have to leave, directory of the Unix socket, port, process id.
#
# Signals cannot do it: a second one ends the process at once. The console takes both requests, but
# only in one session, because the first may close its socket to others.
console="psql -XAt -U pgbouncer -d pgbouncer -h $2 -p $3"
# Without a console, systemd goes on with the unit's own signal.
$console -c 'SHOW VERSION' >/dev/null 2>&1 || exit 0
{
    echo 'SHUTDOWN WAIT_FOR_CLIENTS;'
    sleep "$1"
    echo 'SHUTDOWN WAIT_FOR_SERVERS;'
    # From here on no query begins. PgBouncer (seen in 1.24.1) waits for server connections that are
    # still being made, too, and for some of them for ever: it may end once none is at work.
    while kill -0 "$4" 2>/dev/null; do
        printf '%s\n' "SHOW SERVERS \\g |grep -q '|active' || kill -QUIT $4"
        sleep 0.2
    done
} | $console >/dev/null 2>&1
while kill -0 "$4" 2>/dev/null; do sleep 0.2; done
