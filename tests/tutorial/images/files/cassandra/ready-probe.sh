#!/bin/bash
# Ready is who is up and normal in the ring.
[[ $(nodetool status | grep -F "$POD_IP ") == UN* ]]
