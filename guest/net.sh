# Network interface $card with address $address, from a driver's point of view. $peer answers pings;
# iperf3 listens at $peer port $port, unless $port is 0: then 70,000 pings take its place.
# busybox's shell would take its own ping: hence the path.
set -eu
until test -e "/sys/class/net/$card"; do sleep 0.1; done
ip link set "$card" up
ip address add "$address/24" dev "$card"
/bin/ping -c 3 -W 5 "$peer"
if [ "$port" = 0 ]; then
    # 70,000 > 2^16: the index of both rings wraps. 64 under way at once, because one alone waits.
    /bin/ping -f -l 64 -q -c 70000 "$peer" | tee /tmp/ping
    received=$(sed -n 's/.* transmitted, \([0-9]*\) received.*/\1/p' /tmp/ping)
    # A flood may overrun a queue; that is no fault of anybody's.
    test "$received" -ge 69000
    exit
fi
iperf3 -c "$peer" -p "$port" -t 2 || exit 1
iperf3 -c "$peer" -p "$port" -t 2 -R || exit 1
iperf3 -c "$peer" -p "$port" -u -b 0 -l 64 -k 70000
packets=$(cat "/sys/class/net/$card/statistics/tx_packets")
test "$packets" -ge 70000 || { echo "only $packets packets were sent"; exit 1; }
