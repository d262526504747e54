# Read by zkServer.sh and zkCli.sh.
ZOOCFGDIR=/opt/zookeeper/conf
ZOOCFG=$ZOOCFGDIR/zoo.cfg
ZOO_LOG_DIR=/var/log/zookeeper
JMXDISABLE=true
JAVA=/usr/bin/java
CLIENT_JVMFLAGS="-Dzookeeper.root.logger=ERROR,CONSOLE -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xmx64M"
# Members come one by one and under new addresses: names are looked up and votes repeated without a long pause.
SERVER_JVMFLAGS="-Dzookeeper.root.logger=INFO,CONSOLE -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dsun.net.inetaddr.ttl=1 -Dsun.net.inetaddr.negative.ttl=0 -Dzookeeper.fastleader.maxNotificationInterval=2000"
CLASSPATH=$ZOOCFGDIR:/usr/share/java/zookeeper.jar:/usr/share/java/slf4j-log4j12.jar:/usr/share/java/log4j-1.2.jar
[ -f "$ZOOCFGDIR/java.env" ] && [ "${0##*/}" = zkServer.sh ] && . "$ZOOCFGDIR/java.env"
