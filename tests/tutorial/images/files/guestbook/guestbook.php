<?php
// Writes go to the leader, reads to the followers.
require '/usr/share/php/Predis/Autoloader.php';
Predis\Autoloader::register();

function redis(string $role): Predis\Client {
    $byEnvironment = getenv('GET_HOSTS_FROM') === 'env';
    $host = $byEnvironment ? getenv('REDIS_' . strtoupper($role) . '_SERVICE_HOST') : "redis-$role";
    return new Predis\Client(['scheme' => 'tcp', 'host' => $host, 'port' => 6379]);
}

header('Content-Type: application/json');
switch ($_GET['cmd'] ?? '') {
    case 'set':
        redis('leader')->set($_GET['key'], $_GET['value']);
        echo json_encode(['message' => 'Updated']);
        break;
    case 'get':
        echo json_encode(['data' => redis('follower')->get($_GET['key']) ?? '']);
        break;
    default:
        http_response_code(400);
        echo json_encode(['message' => 'cmd is get or set']);
}
