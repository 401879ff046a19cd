# Gives the port of other PgBouncers to ours, or back to them. Set before it:
#   units, port       ours, and the port
#   others, running   the units that are in the way, and those of them that run
#   deadline_seconds  how long ours may take
refuse() { echo "$1" >&2; exit 1; }
# Each of our units has a process that listens there.
ours_listen() {
    listening=$(ss -Hltnp "sport = :$port")
    for unit in $units; do
        pid=$(systemctl show -p MainPID --value "$unit")
        case "$listening" in *"pid=$pid,"*) ;; *) return 1 ;; esac
    done
}
give_back() {
    said=$(systemctl status --no-pager -n 5 $units 2>&1 | tail -n 5)
    systemctl stop $units
    [ -z "$running" ] || systemctl start $running || refuse "neither ours nor $running runs: $said
HINT: journalctl -n 50 $(printf -- '-u %s ' $running)"
    refuse "$units did not listen on port $port within $deadline_seconds s; $running runs again: $said
HINT: journalctl -n 50 $(printf -- '-u %s ' $units)"
}

# Whoever cuts the connection must not leave the port to nobody.
trap '' HUP INT PIPE TERM
systemctl stop $others
if ! ours_listen; then
    systemctl reset-failed $units 2>/dev/null
    systemctl restart $units || give_back
    tries=$((deadline_seconds * 5))
    until ours_listen; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || give_back
        sleep 0.2
    done
fi
systemctl disable --quiet $others || refuse "$others would start again at boot
HINT: systemctl disable $others"
