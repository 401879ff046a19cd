# Written by pem-fleet; edits here are lost.
#
# Moves this host's PEM agent to another agent.cfg on trial, and back to a backup.
#   sh move-agent.sh try CANDIDATE SHA256  back up; put the directory's agent.cfg, and its pem-fleet.conf (the
#                                          unit's settings), in place of the agent.cfg of that sum; restart
#   sh move-agent.sh keep                  the trial was a success
#   sh move-agent.sh back [BACKUP]         put the backup of the trial, or this one, back; restart
# While a trial lasts, the file `trial` names its backup, and pem-fleet-agent-trial.timer goes back by
# itself: when the operator's machine is lost, and after a restart of this host.
set -eu
export LC_ALL=C
umask 077
home=${PEM_FLEET_AGENT:-/etc/pem-fleet/agent}
config=${PEM_AGENT_CONFIG:-/usr/edb/pem/agent/etc/agent.cfg}
unit=${PEM_AGENT_UNIT:-pemagent}
settings=${PEM_AGENT_DROP_IN:-/etc/systemd/system/$unit.service.d/pem-fleet.conf}
timer=pem-fleet-agent-trial.timer

die() { echo "$1" >&2; exit 1; }

# value KEY: as agent.cfg has it in its section; the last one counts.
value() {
    tr -d '\r' <"$config" | awk -v key="$1" '
        { sub(/^\357\273\277/, "") }
        /^[ \t]*\[/ { inside = /^[ \t]*\[PEM\/agent\]/ }
        inside && match($0, /=/) {
            name = substr($0, 1, RSTART - 1); text = substr($0, RSTART + 1)
            gsub(/^[ \t]+|[ \t]+$/, "", name); gsub(/^[ \t]+|[ \t]+$/, "", text)
            if (name == key) found = text
        }
        END { print found }'
}

# keep_copy NAME PATH: a copy in the backup, and a line that says where it belongs.
keep_copy() {
    if [ -f "$2" ]; then
        cat "$2" >"$backup/$1"
        echo "$(stat -L -c '%a %u:%g' "$2") $1 $2" >>"$backup/paths.new"
    elif [ "$1" = unit-settings ]; then
        echo "- - $1 $2" >>"$backup/paths.new"
    fi
}

# replace FROM MODE OWNER PATH: whole, and at once. What a link points to is replaced, not the link.
replace() {
    real=$(readlink -m "$4")
    [ -d "$(dirname "$real")" ] || mkdir -p "$(dirname "$real")"
    # A new file, not what a link of the directory's owner leads to.
    rm -f "$real.pem-fleet-new"
    (set -C; cat "$1" >"$real.pem-fleet-new")
    chown -h "$3" "$real.pem-fleet-new"
    chmod "$2" "$real.pem-fleet-new"
    sync "$real.pem-fleet-new"
    mv -fT "$real.pem-fleet-new" "$real"
}

begin_trial() {
    echo "$1" >"$home/trial.new"
    sync "$home/trial.new" "$1"
    mv -f "$home/trial.new" "$home/trial"
    sync "$home"
    systemctl enable --quiet --now "$timer"
}

end_trial() {
    rm -f "$home/trial"
    sync "$home"
    systemctl disable --quiet --now "$timer"
}

restart() {
    systemctl daemon-reload
    # A unit that hangs must not keep the timer waiting for the lock.
    timeout 20 systemctl restart "$unit" || die "$unit does not restart
HINT: systemctl status $unit; journalctl -u $unit"
}

try() {
    [ ! -e "$home/trial" ] || die "another trial is under way: $(cat "$home/trial")"
    echo "$2  $config" | sha256sum -c --quiet --status ||
        die "$config was changed by somebody else just now; run again"
    backup=$home/backups/$(date -u +%Y-%m-%dT%H-%M-%SZ)
    mkdir -p "$home/backups"
    mkdir "$backup"
    keep_copy agent.cfg "$config"
    keep_copy key "$(value agent_ssl_key)"
    keep_copy certificate "$(value agent_ssl_crt)"
    keep_copy unit-settings "$settings"
    sync "$backup"/*
    mv "$backup/paths.new" "$backup/paths"

    trap 'back' EXIT
    trap '' HUP INT PIPE TERM
    begin_trial "$backup"
    read -r mode owner name path <"$backup/paths"
    replace "$1/agent.cfg" "$mode" "$owner" "$path"
    mkdir -m 755 -p "$(dirname "$settings")"
    replace "$1/pem-fleet.conf" 644 "$(id -u):$(id -g)" "$settings"
    rm -rf "$1"
    restart
    trap - EXIT
}

back() {
    trap - EXIT
    backup=$(cat "$home/trial")
    while read -r mode owner name path; do
        if [ "$mode" = - ]; then rm -f "$path"; else replace "$backup/$name" "$mode" "$owner" "$path"; fi
    done <"$backup/paths"
    # An agent that waits for a frozen pooler may not heed SIGTERM; systemd would kill it after 90 s.
    timeout 10 systemctl stop "$unit" || systemctl kill --signal=KILL "$unit" || :
    restart
    end_trial
}

# One at a time: the operator's run, and the timer.
exec 9<"$home"
flock 9
case ${1:-} in
    try) try "$2" "$3" ;;
    keep)
        [ -e "$home/trial" ] || die "the trial took too long, and the agent is back on its former agent.cfg"
        end_trial
        ;;
    back)
        [ $# -lt 2 ] || begin_trial "$2"
        [ ! -e "$home/trial" ] || back
        ;;
    *) die "usage: move-agent.sh try CANDIDATE SHA256 | keep | back [BACKUP]" ;;
esac
