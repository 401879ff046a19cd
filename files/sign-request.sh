# Signs a certificate request with PEM's CA and prints the certificate. Runs as the server's OS
# user, in whose data directory the CA's key lives and stays. Set before it:
#   port     of the PEM database
#   request  the request, as PEM text: its subject was checked by whoever sends it
#   days     lifetime of the certificate
set -eu
# Where the operator's home is closed, psql would complain about it.
cd /
umask 077
directory=$(psql -XAtq -v ON_ERROR_STOP=1 -p "$port" -d postgres -c 'SHOW data_directory')
work=$(mktemp -d /tmp/pem-fleet-sign.XXXXXX)
trap 'rm -rf "$work"' EXIT
printf '%s\n' "$request" > "$work/request"
cat > "$work/extensions" <<'END'
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
END
# The serial is given, so that openssl leaves no file of serials in the data directory.
openssl x509 -req -in "$work/request" -sha256 -days "$days" \
    -set_serial "0x$(openssl rand -hex 16)" -extfile "$work/extensions" \
    -CA "$directory/ca_certificate.crt" -CAkey "$directory/ca_key.key" -out "$work/certificate" \
    2> "$work/said" || { cat "$work/said" >&2; exit 1; }
cat "$work/certificate"
