# Network interface $card with address $address, from a driver's point of view. $peer answers pings;
# iperf3 listens at $peer port $port, unless $port is 0: then $requests pings take its place. 70,000
# are more than a ring's 16-bit index can count.
# busybox's shell would take its own ping: hence the path.
set -eu
until test -e "/sys/class/net/$card"; do sleep 0.1; done
ip link set "$card" up
ip address add "$address/24" dev "$card"
/bin/ping -c 3 -W 5 "$peer"
if [ "$port" = 0 ]; then
    # 64 under way at once, because one alone waits.
    /bin/ping -f -l 64 -q -c "$requests" "$peer" | tee /tmp/ping
    received=$(sed -n 's/.* transmitted, \([0-9]*\) received.*/\1/p' /tmp/ping)
    # A flood may overrun a queue; that is no fault of anybody's.
    test "$received" -ge $((requests - requests / 70))
    exit
fi
iperf3 -c "$peer" -p "$port" -t 2 || exit 1
iperf3 -c "$peer" -p "$port" -t 2 -R || exit 1
iperf3 -c "$peer" -p "$port" -u -b 0 -l 64 -k "$requests"
packets=$(cat "/sys/class/net/$card/statistics/tx_packets")
test "$packets" -ge "$requests" || { echo "only $packets packets were sent"; exit 1; }
