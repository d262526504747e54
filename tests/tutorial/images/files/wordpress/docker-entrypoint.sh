#!/bin/bash
# As the image of Docker's library: an empty /var/www/html gets WordPress and a configuration that reads the environment;
# the database is waited for, and made when it is not there.
set -eo pipefail
[ "$1" = apache2-foreground ] || exec "$@"
cd /var/www/html
if [ ! -e index.php ]; then
  echo >&2 "WordPress not found in $PWD - copying now..."
  rm -rf .copy
  cp -rL /usr/share/wordpress .copy
  rm -f .copy/.htaccess .copy/wp-config.php
  chown -R www-data:www-data .copy
  for file in .copy/*; do
    name=${file##*/}
    [ "$name" = index.php ] || { rm -rf "$name"; mv "$file" .; }
  done
  mv .copy/index.php .
  rm -rf .copy
  echo >&2 "Complete! WordPress has been successfully copied to $PWD"
fi
if [ ! -e wp-config.php ]; then
  salts=$(for key in AUTH_KEY SECURE_AUTH_KEY LOGGED_IN_KEY NONCE_KEY AUTH_SALT SECURE_AUTH_SALT LOGGED_IN_SALT NONCE_SALT; do
    echo "define('$key', '$(head -c 40 /dev/urandom | base64 -w0)');"
  done)
  { cat /usr/local/share/wp-config.php; echo "$salts"; echo "require_once ABSPATH . 'wp-settings.php';"; } >.wp-config.new
  chown www-data:www-data .wp-config.new
  mv .wp-config.new wp-config.php
fi
php /usr/local/share/database.php
exec "$@"
