#!/bin/bash
# A stand-in for Cassandra, which Debian does not package: no database, but a member of a ring with an identity on its volume,
# which others ask over port 7000, and the entry points that the tutorial's manifest uses.
set -e
data=/cassandra_data
state=/run/cassandra
mkdir -p "$data" "$state"
[ -s "$data/host_id" ] || cat /proc/sys/kernel/random/uuid >"$data/host_id"
echo "$(date +%T) Starting ${CASSANDRA_CLUSTER_NAME:-Test Cluster}, seeds $CASSANDRA_SEEDS" | tee -a "$data/system.log"
size=$(du -sk "$data" | cut -f1)
echo "$POD_IP  $size.00 KiB  ${CASSANDRA_NUM_TOKENS:-32}  $(cat "$data/host_id")  ${CASSANDRA_RACK:-rack1}" >"$state/member"
busybox httpd -p 7000 -h "$state"
echo "$(date +%T) Node $POD_IP state jump to NORMAL" | tee -a "$data/system.log"
trap 'echo "$(date +%T) Stopped" | tee -a "$data/system.log"; exit 0' TERM
while :; do
  sleep infinity &
  wait $!
done
