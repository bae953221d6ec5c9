#!/bin/sh
# First start: a database with the user, password and name of the environment. Then: the server.
# PG_VERSION is put in place last, so that a first start that was killed is repeated from scratch.
set -eu
if [ "${1:-}" != postgres ]; then exec "$@"; fi
if [ "$(id -u)" = 0 ]; then
  mkdir -p "$PGDATA" && chown -R postgres: "$PGDATA"
  exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi
: "${POSTGRES_USER:=postgres}"
: "${POSTGRES_DB:=$POSTGRES_USER}"

make_database() {
  mkdir -p "$PGDATA"
  find "$PGDATA" -mindepth 1 -maxdepth 1 ! -name lost+found -exec rm -rf {} +
  secret=$(mktemp)
  printf '%s' "$POSTGRES_PASSWORD" > "$secret"
  initdb --pgdata="$PGDATA/new" --username="$POSTGRES_USER" --pwfile="$secret" \
    --auth-local=trust --auth-host=scram-sha-256
  rm -f "$secret"
  echo "host all all all scram-sha-256" >> "$PGDATA/new/pg_hba.conf"
  pg_ctl --pgdata="$PGDATA/new" --wait start -o "-c listen_addresses='' -c unix_socket_directories=/tmp"
  if [ "$POSTGRES_DB" != postgres ]; then createdb --host=/tmp --username="$POSTGRES_USER" "$POSTGRES_DB"; fi
  pg_ctl --pgdata="$PGDATA/new" --wait --mode=fast stop
  find "$PGDATA/new" -mindepth 1 -maxdepth 1 ! -name PG_VERSION -exec mv {} "$PGDATA" \;
  mv "$PGDATA/new/PG_VERSION" "$PGDATA" && rmdir "$PGDATA/new"
  chmod 0700 "$PGDATA"
}

if [ ! -s "$PGDATA/PG_VERSION" ]; then
  if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then POSTGRES_PASSWORD=$(cat "$POSTGRES_PASSWORD_FILE"); fi
  : "${POSTGRES_PASSWORD:?set it, or POSTGRES_PASSWORD_FILE}"
  make_database
fi
shift
exec postgres -c listen_addresses='*' "$@"
