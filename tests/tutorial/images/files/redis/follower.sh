#!/bin/sh
# The guestbook's follower: it finds its leader by name, or by the variables of the leader's Service.
leader=redis-leader
[ "${GET_HOSTS_FROM:-dns}" != env ] || leader=$REDIS_LEADER_SERVICE_HOST
exec docker-entrypoint.sh redis-server --replicaof "$leader" 6379
