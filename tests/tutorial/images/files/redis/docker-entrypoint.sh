#!/bin/sh
# As the image of Docker's library: an option or a configuration file is for redis-server, which runs as its own user and
# may be reached from other pods.
set -e
case "$1" in
-* | *.conf) set -- redis-server "$@" ;;
esac
[ "$1" = redis-server ] || exec "$@"
if [ "$(id -u)" = 0 ]; then
  find . \! -user redis -exec chown redis:redis '{}' +
  exec gosu redis "$@" --protected-mode no
fi
exec "$@" --protected-mode no
