# Makes a key that never leaves this host, and prints a request for a certificate. Set before it:
#   key        where the key goes
#   owner      its owner, as user:group
#   subject    of the certificate, as `openssl req -subj` wants it
#   algorithm  of the key, as options of `openssl genpkey`
#   signature  first line of every file of ours
set -eu
umask 077
rm -f "$key"
# shellcheck disable=SC2086  # several words
{ echo "# $signature; edits here are lost." && openssl genpkey $algorithm 2>/dev/null; } > "$key"
chown "$owner" "$key"
openssl req -new -key "$key" -subj "$subject"
