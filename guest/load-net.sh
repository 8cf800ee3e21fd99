# Keeps 16 pings under way to $peer from card $card, for ever, and returns when answers come.
set -eu
until test -e "/sys/class/net/$card"; do sleep 0.1; done
ip link set "$card" up
ip address add "$address/24" dev "$card"
/bin/ping -c 1 -W 10 "$peer"
/bin/ping -f -l 16 -q "$peer" >/tmp/load.log 2>&1 </dev/null &
