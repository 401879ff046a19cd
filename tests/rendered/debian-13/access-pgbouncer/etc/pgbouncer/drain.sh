= files/drain-pgbouncer.sh
