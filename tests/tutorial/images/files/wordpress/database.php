<?php
// Waits for the database server and makes the database.
mysqli_report(MYSQLI_REPORT_OFF);
[$host, $port] = explode(':', getenv('WORDPRESS_DB_HOST') ?: 'mysql') + [1 => 3306];
$name = getenv('WORDPRESS_DB_NAME') ?: 'wordpress';
for ($try = 1; ; $try++) {
    $server = @new mysqli($host, getenv('WORDPRESS_DB_USER') ?: 'root', getenv('WORDPRESS_DB_PASSWORD') ?: '', '', (int) $port);
    if (!$server->connect_error) {
        break;
    }
    fwrite(STDERR, "MySQL Connection Error: ({$server->connect_errno}) {$server->connect_error}\n");
    if ($try === 30) {
        exit(1);
    }
    sleep(1);
}
$server->query('CREATE DATABASE IF NOT EXISTS `' . $server->real_escape_string($name) . '`') || exit("MySQL: {$server->error}\n");
