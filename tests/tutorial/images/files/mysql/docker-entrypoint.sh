#!/bin/bash
# As the image of Docker's library: the first start makes the system tables, root's password, and the database and user
# that the environment names. A first start that was killed begins anew.
set -eo pipefail
[ "$1" = mysqld ] || exec "$@"
data=/var/lib/mysql
mkdir -p /run/mysqld
chown mysql:mysql /run/mysqld "$data"
quoted() { local text=${1//\\/\\\\}; printf "'%s'" "${text//\'/\'\'}"; }
if [ ! -e "$data/.initialised" ]; then
  if [ -z "$MYSQL_ROOT_PASSWORD$MYSQL_ALLOW_EMPTY_PASSWORD$MYSQL_RANDOM_ROOT_PASSWORD" ]; then
    echo >&2 'error: database is uninitialized and password option is not specified'
    echo >&2 '  You need to specify one of MYSQL_ROOT_PASSWORD, MYSQL_ALLOW_EMPTY_PASSWORD and MYSQL_RANDOM_ROOT_PASSWORD'
    exit 1
  fi
  if [ -n "$MYSQL_RANDOM_ROOT_PASSWORD" ]; then
    MYSQL_ROOT_PASSWORD=$(tr -d - </proc/sys/kernel/random/uuid)
    echo "GENERATED ROOT PASSWORD: $MYSQL_ROOT_PASSWORD"
  fi
  find "$data" -mindepth 1 -delete
  echo 'Initializing database'
  gosu mysql mariadb-install-db --skip-test-db --auth-root-authentication-method=normal >/dev/null
  {
    echo 'FLUSH PRIVILEGES;'
    echo "DELETE FROM mysql.global_priv WHERE Host != 'localhost' OR User = '';"
    echo 'FLUSH PRIVILEGES;'
    echo "ALTER USER root@localhost IDENTIFIED BY $(quoted "$MYSQL_ROOT_PASSWORD");"
    echo "CREATE USER root@'${MYSQL_ROOT_HOST:-%}' IDENTIFIED BY $(quoted "$MYSQL_ROOT_PASSWORD");"
    echo "GRANT ALL ON *.* TO root@'${MYSQL_ROOT_HOST:-%}' WITH GRANT OPTION;"
    [ -z "$MYSQL_DATABASE" ] || echo "CREATE DATABASE IF NOT EXISTS \`$MYSQL_DATABASE\`;"
    if [ -n "$MYSQL_USER" ] && [ -n "$MYSQL_PASSWORD" ]; then
      echo "CREATE USER $(quoted "$MYSQL_USER")@'%' IDENTIFIED BY $(quoted "$MYSQL_PASSWORD");"
      [ -z "$MYSQL_DATABASE" ] || echo "GRANT ALL ON \`$MYSQL_DATABASE\`.* TO $(quoted "$MYSQL_USER")@'%';"
    fi
  } | gosu mysql mysqld --bootstrap
  sync
  gosu mysql touch "$data/.initialised"
  echo 'MySQL init process done. Ready for start up.'
fi
exec gosu mysql "$@"
