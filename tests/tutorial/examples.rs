//! The manifests that the pages fetch from `k8s.io/examples/`, in the binary: it runs where the sources are not.

use std::path::Path;

/// Lists files of `examples/`.
macro_rules! examples {
    ($($path:literal),+ $(,)?) => { &[$(($path, include_str!(concat!("examples/", $path)))),+] };
}

const ALL: &[(&str, &str)] = examples![
    "application/cassandra/cassandra-service.yaml",
    "application/cassandra/cassandra-statefulset.yaml",
    "application/guestbook/frontend-deployment.yaml",
    "application/guestbook/frontend-service.yaml",
    "application/guestbook/redis-follower-deployment.yaml",
    "application/guestbook/redis-follower-service.yaml",
    "application/guestbook/redis-leader-deployment.yaml",
    "application/guestbook/redis-leader-service.yaml",
    "application/web/web-parallel.yaml",
    "application/web/web.yaml",
    "application/wordpress/mysql-deployment.yaml",
    "application/wordpress/wordpress-deployment.yaml",
    "application/zookeeper/zookeeper.yaml",
    "pods/config/redis-pod.yaml",
    "service/load-balancer-example.yaml",
];

/// Writes them below a directory.
pub fn write(directory: &Path) {
    for (path, text) in ALL {
        let file = directory.join(path);
        std::fs::create_dir_all(file.parent().expect("it is below the directory")).expect("the directory is ours");
        std::fs::write(file, text).expect("the directory is ours");
    }
}
