# Has Postgres read its files, and sees that it did. Set before it:
#   port, deadline_seconds
#   hba_file, ident_file      the files, for messages
#   hba_errors, ident_errors  SQL for what the server would find wrong in them
set -eu
# Where the operator's home is closed, psql would complain about it.
cd /
refuse() { echo "$1" >&2; exit 1; }
ask() { psql -XAtq -v ON_ERROR_STOP=1 -p "$port" -d postgres -c "$1"; }
fingerprint() { openssl x509 -noout -fingerprint -sha256 2>/dev/null; }

wrong=$(ask "$hba_errors")
[ -z "$wrong" ] || refuse "$hba_file: $wrong
HINT: mend this line in $hba_file, and run again"
wrong=$(ask "$ident_errors")
[ -z "$wrong" ] || refuse "$ident_file: $wrong
HINT: mend this line in $ident_file, and run again"

# The server tells the times of its files in whole seconds: what it reads now must be older.
sleep 1
since=$(ask "SELECT clock_timestamp()")
ask "SELECT pg_reload_conf()" >/dev/null
tries=$((deadline_seconds * 10))
until [ "$(ask "SELECT pg_conf_load_time() >= '$since'")" = t ]; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || refuse "Postgres did not read its files within $deadline_seconds s
HINT: journalctl -n 20 -u 'postgresql*'; SELECT pg_conf_load_time()"
    sleep 0.1
done

# A certificate that it cannot use is a line in its log only; so see which one it shows.
certificate=$(ask "SHOW ssl_cert_file")
case $certificate in
    /*) ;;
    *) certificate=$(ask "SHOW data_directory")/$certificate ;;
esac
shown=$(openssl s_client -connect "127.0.0.1:$port" -starttls postgres </dev/null 2>/dev/null | fingerprint) ||
    exit 0 # it does not listen there, or has no TLS
[ "$shown" = "$(fingerprint < "$certificate")" ] || refuse "Postgres does not show $certificate after the reload
HINT: look for 'SSL configuration was not reloaded' in its log"
