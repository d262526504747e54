//! The images that the tutorial's pages name. Debian's versions stand in for the pages'.

use super::recipe::{Entry, Image, Layer, directory, file, link, script};

/// All of them.
pub static ALL: [Image; 15] = [
    BUSYBOX,
    NGINX,
    NGINX_SLIM_8,
    NGINX_SLIM_7,
    REDIS_5,
    REDIS_6,
    REDIS_FOLLOWER,
    GUESTBOOK,
    NODE_HELLO,
    SYSTEM,
    INVENTORY,
    MYSQL,
    WORDPRESS,
    ZOOKEEPER,
    CASSANDRA,
];

/// What packages depend on for being installed and configured, which no image does.
const INSTALLATION: &[&str] = &[
    "adduser",
    "debconf",
    "dpkg",
    "init-system-helpers",
    "iproute2",
    "libcap2-bin",
    "libpam-modules",
    "libpam0g",
    "libsemanage2",
    "lsb-base",
    "media-types",
    "passwd",
    "perl",
    "perl-base",
    "procps-base",
    "psmisc",
    "sensible-utils",
    "sysvinit-utils",
    "tar",
    "ucf",
    "usrmerge",
    "util-linux",
];

/// What every image stands on, except busybox: a shell, the small tools, curl.
static BASE: Layer = Layer {
    name: "base",
    on: None,
    packages: &[
        "base-files",
        "bash",
        "coreutils",
        "curl",
        "dash",
        "findutils",
        "gosu",
        "grep",
        "hostname",
        "libc-bin",
        "mawk",
        "procps",
        "sed",
    ],
    without: INSTALLATION,
    omit: &["usr/share/common-licenses/", "usr/share/base-files/"],
    entries: &[
        file("etc/passwd", include_str!("files/base/passwd")),
        file("etc/group", include_str!("files/base/group")),
        file("etc/nsswitch.conf", include_str!("files/base/nsswitch.conf")),
        link("usr/bin/awk", "mawk"),
        link("bin/sh", "dash"),
    ],
};

const fn image(names: &'static [&'static str], top: &'static Layer, cmd: &'static [&'static str]) -> Image {
    Image { names, top, entrypoint: &[], cmd, env: &[], directory: "/" }
}

/// What busybox links to itself.
macro_rules! applets {
    ($($name:literal),+ $(,)?) => { &[$(link(concat!("bin/", $name), "busybox")),+] };
}

const APPLETS: &[Entry] = applets![
    "arp",
    "ash",
    "awk",
    "cat",
    "chmod",
    "chown",
    "cp",
    "cut",
    "date",
    "dd",
    "df",
    "du",
    "echo",
    "env",
    "false",
    "find",
    "free",
    "grep",
    "head",
    "hostname",
    "id",
    "ifconfig",
    "ip",
    "kill",
    "killall",
    "ln",
    "ls",
    "mkdir",
    "mount",
    "mv",
    "nc",
    "netstat",
    "ping",
    "pkill",
    "printenv",
    "printf",
    "ps",
    "pwd",
    "readlink",
    "rm",
    "rmdir",
    "route",
    "sed",
    "seq",
    "sh",
    "sleep",
    "sort",
    "stat",
    "sync",
    "tail",
    "tar",
    "tee",
    "telnet",
    "test",
    "timeout",
    "top",
    "touch",
    "tr",
    "traceroute",
    "true",
    "tty",
    "uname",
    "uniq",
    "uptime",
    "vi",
    "wc",
    "wget",
    "which",
    "whoami",
    "xargs",
    "yes",
];

static BUSYBOX_FILES: Layer = Layer {
    name: "busybox",
    on: None,
    packages: &["busybox", "libc-bin"],
    without: INSTALLATION,
    omit: &[],
    entries: &[
        file("etc/passwd", include_str!("files/base/passwd")),
        file("etc/group", include_str!("files/base/group")),
        file("etc/nsswitch.conf", include_str!("files/base/nsswitch.conf")),
        script("bin/nslookup", include_str!("files/busybox/nslookup")),
        directory("root", 0),
        directory("home", 0),
        Entry { mode: 0o1777, ..directory("tmp", 0) },
    ],
};
static BUSYBOX_LINKS: Layer =
    Layer { name: "applets", on: Some(&BUSYBOX_FILES), packages: &[], without: &[], omit: &[], entries: APPLETS };
const BUSYBOX: Image = image(&["library/busybox:1.28", "library/busybox:latest"], &BUSYBOX_LINKS, &["sh"]);

static NGINX_FILES: Layer = Layer {
    name: "nginx",
    on: Some(&BASE),
    packages: &["nginx"],
    without: &[],
    omit: &[],
    entries: &[file("etc/nginx/nginx.conf", include_str!("files/nginx/nginx.conf"))],
};
const NGINX: Image = image(&["library/nginx:latest"], &NGINX_FILES, &["nginx", "-g", "daemon off;"]);
const NGINX_SLIM_8: Image =
    Image { names: &["nginx-slim:0.8", "google_containers/nginx-slim:0.8"], env: &["NGINX_SLIM=0.8"], ..NGINX };
const NGINX_SLIM_7: Image =
    Image { names: &["nginx-slim:0.7", "google_containers/nginx-slim:0.7"], env: &["NGINX_SLIM=0.7"], ..NGINX };

static REDIS_FILES: Layer = Layer {
    name: "redis",
    on: Some(&BASE),
    packages: &["redis-server"],
    without: &[],
    omit: &[],
    entries: &[
        script("usr/local/bin/docker-entrypoint.sh", include_str!("files/redis/docker-entrypoint.sh")),
        script("run.sh", include_str!("files/redis/follower.sh")),
        directory("data", 999),
    ],
};
const REDIS_5: Image = Image {
    entrypoint: &["docker-entrypoint.sh"],
    directory: "/data",
    env: &["REDIS_VERSION=5.0.4"],
    ..image(&["library/redis:5.0.4"], &REDIS_FILES, &["redis-server"])
};
const REDIS_6: Image = Image { names: &["library/redis:6.0.5"], env: &["REDIS_VERSION=6.0.5"], ..REDIS_5 };
const REDIS_FOLLOWER: Image =
    Image { names: &["google_samples/gb-redis-follower:v2"], entrypoint: &[], cmd: &["/run.sh"], ..REDIS_6 };

/// PHP in Apache, as the php:apache images of Docker's library.
static PHP: Layer = Layer {
    name: "php",
    on: Some(&BASE),
    packages: &["libapache2-mod-php8.2", "php8.2-mysql"],
    without: &["libaprutil1-dbd-sqlite3", "libaprutil1-ldap", "libcurl4", "libjansson4", "liblua5.3-0", "media-types"],
    omit: &["usr/share/icons/", "usr/share/apache2/icons/"],
    entries: &[
        file("etc/apache2/apache2.conf", include_str!("files/php/apache2.conf")),
        file("etc/php/8.2/apache2/conf.d/extensions.ini", include_str!("files/php/extensions.ini")),
        file("etc/php/8.2/cli/conf.d/extensions.ini", include_str!("files/php/extensions.ini")),
        file("etc/mime.types", "text/html html\ntext/css css\ntext/javascript js\nimage/png png\nimage/svg+xml svg\n"),
        script("usr/local/bin/apache2-foreground", include_str!("files/php/apache2-foreground")),
        link("usr/bin/php", "php8.2"),
        directory("var/www/html", 33),
    ],
};

static GUESTBOOK_FILES: Layer = Layer {
    name: "guestbook",
    on: Some(&PHP),
    packages: &["libjs-jquery", "php-predis"],
    without: &["php-common", "php-cli"],
    omit: &[],
    entries: &[
        file("var/www/html/guestbook.php", include_str!("files/guestbook/guestbook.php")),
        file("var/www/html/index.html", include_str!("files/guestbook/index.html")),
        link("var/www/html/jquery.min.js", "/usr/share/javascript/jquery/jquery.min.js"),
    ],
};
const GUESTBOOK: Image = image(&["google_samples/gb-frontend:v5"], &GUESTBOOK_FILES, &["apache2-foreground"]);

static NODE: Layer = Layer {
    name: "node",
    on: Some(&BASE),
    packages: &["nodejs"],
    without: &[],
    omit: &[],
    entries: &[file("server.js", include_str!("files/node/server.js"))],
};
const NODE_HELLO: Image = image(&["google-samples/node-hello:1.0"], &NODE, &["node", "server.js"]);

/// A Java runtime that shows and prints nothing, plays no sound and reads no smart cards.
static JAVA: Layer = Layer {
    name: "java",
    on: Some(&BASE),
    packages: &["openjdk-17-jre-headless"],
    without: &[
        "ca-certificates-java",
        "java-common",
        "libasound2",
        "libcups2",
        "libfontconfig1",
        "libfreetype6",
        "libharfbuzz0b",
        "libjpeg62-turbo",
        "liblcms2-2",
        "libnss3",
        "libpcsclite1",
    ],
    omit: &[
        "usr/lib/jvm/java-17-openjdk-amd64/legal/",
        "usr/lib/jvm/java-17-openjdk-amd64/lib/ct.sym",
        "usr/lib/jvm/java-17-openjdk-amd64/lib/server/classes_nocoops.jsa",
    ],
    entries: &[link("usr/bin/java", "/usr/lib/jvm/java-17-openjdk-amd64/bin/java")],
};

static SERVICE: Layer = Layer {
    name: "service",
    on: Some(&JAVA),
    packages: &[],
    without: &[],
    omit: &[],
    entries: &[file("opt/service/Service.java", include_str!("files/java/Service.java"))],
};
const SYSTEM: Image = Image {
    entrypoint: &["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "/opt/service/Service.java"],
    ..image(&["library/system:1.0-SNAPSHOT"], &SERVICE, &["system"])
};
const INVENTORY: Image = Image { names: &["library/inventory:1.0-SNAPSHOT"], cmd: &["inventory"], ..SYSTEM };

static MARIADB: Layer = Layer {
    name: "mariadb",
    on: Some(&BASE),
    packages: &["mariadb-client-core", "mariadb-server-core"],
    without: &[],
    omit: &["usr/bin/mariadb-check", "usr/bin/innochecksum"],
    entries: &[
        file("etc/mysql/my.cnf", include_str!("files/mysql/my.cnf")),
        script("usr/local/bin/docker-entrypoint.sh", include_str!("files/mysql/docker-entrypoint.sh")),
        directory("var/lib/mysql", 998),
    ],
};
const MYSQL: Image =
    Image { entrypoint: &["docker-entrypoint.sh"], ..image(&["library/mysql:5.6"], &MARIADB, &["mysqld"]) };

static WORDPRESS_FILES: Layer = Layer {
    name: "wordpress",
    on: Some(&PHP),
    packages: &["wordpress", "wordpress-theme-twentytwentythree"],
    without: &[
        "apache2",
        "libapache2-mod-php",
        "ca-certificates",
        "default-mysql-client",
        "php-gd",
        "php-mysql",
        "php-cli",
    ],
    omit: &[],
    entries: &[
        script("usr/local/bin/docker-entrypoint.sh", include_str!("files/wordpress/docker-entrypoint.sh")),
        file("usr/local/share/wp-config.php", include_str!("files/wordpress/wp-config.php")),
        file("usr/local/share/database.php", include_str!("files/wordpress/database.php")),
        file("etc/ssl/certs/ca-certificates.crt", ""),
    ],
};
const WORDPRESS: Image = Image {
    entrypoint: &["docker-entrypoint.sh"],
    directory: "/var/www/html",
    ..image(&["library/wordpress:4.8-apache"], &WORDPRESS_FILES, &["apache2-foreground"])
};

static ZOOKEEPER_FILES: Layer = Layer {
    name: "zookeeper",
    on: Some(&JAVA),
    packages: &["netcat-openbsd", "zookeeper"],
    without: &[
        "default-jre",
        "default-jre-headless",
        "junit4",
        "libfindbugs-annotations-java",
        "libguava-java",
        "libjackson2-annotations-java",
        "libjackson2-core-java",
        "libjackson2-databind-java",
        "libjetty9-extra-java",
        "libjetty9-java",
        "libmail-java",
        "libnetty-tcnative-java",
    ],
    omit: &["usr/share/zookeeper/zooinspector/", "etc/zookeeper/"],
    entries: &[
        // It becomes what it starts, so that the server hears SIGTERM.
        link("bin/sh", "bash"),
        directory("opt/zookeeper", 1000),
        directory("opt/zookeeper/bin", 1000),
        directory("opt/zookeeper/conf", 1000),
        script("opt/zookeeper/bin/start-zookeeper", include_str!("files/zookeeper/start-zookeeper")).of(1000),
        script("opt/zookeeper/bin/zookeeper-ready", include_str!("files/zookeeper/zookeeper-ready")).of(1000),
        file("opt/zookeeper/bin/zkEnv.sh", include_str!("files/zookeeper/zkEnv.sh")).of(1000),
        link("opt/zookeeper/bin/zkServer.sh", "/usr/share/zookeeper/bin/zkServer.sh"),
        link("opt/zookeeper/bin/zkCli.sh", "/usr/share/zookeeper/bin/zkCli.sh"),
        link("usr/bin/start-zookeeper", "/opt/zookeeper/bin/start-zookeeper"),
        link("usr/bin/zookeeper-ready", "/opt/zookeeper/bin/zookeeper-ready"),
        link("usr/bin/zkEnv.sh", "/opt/zookeeper/bin/zkEnv.sh"),
        link("usr/bin/zkServer.sh", "/opt/zookeeper/bin/zkServer.sh"),
        link("usr/bin/zkCli.sh", "/opt/zookeeper/bin/zkCli.sh"),
        link("usr/etc/zookeeper", "/opt/zookeeper/conf"),
        link("usr/bin/nc", "/bin/nc.openbsd"),
        directory("var/lib/zookeeper", 1000),
        directory("var/log/zookeeper", 1000),
    ],
};
const ZOOKEEPER: Image = image(&["kubernetes-zookeeper:1.0-3.4.10"], &ZOOKEEPER_FILES, &["bash"]);

static CASSANDRA_FILES: Layer = Layer {
    name: "cassandra (stand-in)",
    on: Some(&BASE),
    packages: &["busybox"],
    without: &[],
    omit: &[],
    entries: &[
        script("run.sh", include_str!("files/cassandra/run.sh")),
        script("ready-probe.sh", include_str!("files/cassandra/ready-probe.sh")),
        script("usr/local/bin/nodetool", include_str!("files/cassandra/nodetool")),
    ],
};
const CASSANDRA: Image = image(&["google-samples/cassandra:v13"], &CASSANDRA_FILES, &["/run.sh"]);
