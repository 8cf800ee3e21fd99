# A network card on the machine itself; behind it somebody who answers pings.
serve net0 net:echo=on
grep 'net0 is attached: network interface eth0' /tmp/net0.log || { cat /tmp/net0.log; exit 1; }
ip address add 169.254.2.1/24 dev eth0
ip link set eth0 up
ip neighbour replace 169.254.2.2 lladdr 02:00:00:00:00:02 dev eth0 2>/dev/null || true
/bin/ping -c 3 -W 5 169.254.2.2 || { cat /tmp/net0.log; ip -s link show eth0; exit 1; }
/bin/ping -c 20 -i 0.05 -s 1400 -W 5 169.254.2.2
release net0
test ! -e /sys/class/net/eth0
