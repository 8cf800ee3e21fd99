# Network interface $card with address $address, by a guest that has busybox only: pings of every
# kind of size to $peer, as fast as they are answered, each with its bytes compared.
set -eu
until test -e "/sys/class/net/$card"; do sleep 0.1; done
ip link set "$card" up
ip address add "$address/24" dev "$card"
for size in 56 1 1000 1472; do
    ping -A -q -c 500 -W 5 -s "$size" "$peer" | tee /tmp/ping
    grep -q " 500 packets received" /tmp/ping
done
packets=$(cat "/sys/class/net/$card/statistics/rx_packets")
test "$packets" -ge 2000 || { echo "only $packets packets were received"; exit 1; }
