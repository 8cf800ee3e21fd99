# A network card of the machine itself, served by $daemon: passt, behind which iperf3 listens, or
# DPDK's testpmd, which answers pings.
card() {
    ip address add 169.254.2.1/24 dev eth0
    ip link set eth0 up
    /bin/ping -c 3 -W 5 169.254.2.2 || { cat /tmp/net0.log /tmp/daemon.log; exit 1; }
    /bin/ping -c 20 -i 0.05 -s 1400 -W 5 169.254.2.2
}
listens() {
    until test -S /tmp/net.sock; do
        sleep 0.05
        kill -0 "$daemon_pid" || { cat /tmp/daemon.log; exit 1; }
    done
}

if test "$daemon" = passt; then
    # passt changes its root, which the kernel refuses to who is in the very first one.
    cat >/tmp/passt.sh <<'SCRIPT'
ip link set lo up
echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range
iperf3 -s -B 127.0.0.1 --forceflush >/tmp/iperf.log 2>&1 &
exec passt --vhost-user --foreground --runas 0:0 -4 -t none -u none --socket /tmp/net.sock
SCRIPT
    setsid unshare -n -m sh -euc 'mount -o rbind / /mnt
        cd /mnt
        mount -o move . /
        exec chroot . sh -eu /tmp/passt.sh' >/tmp/daemon.log 2>&1 </dev/null &
    daemon_pid=$!
    listens
    until grep -q 'Server listening' /tmp/iperf.log; do sleep 0.05; done
else
    # It loads nothing from under a folder that all may write.
    mkdir -p /var/run
    chmod 755 /
    LD_LIBRARY_PATH=/bin:$plugins setsid /bin/dpdk-testpmd --no-huge -m128 --no-pci \
        --no-telemetry --lcores '0@(0-1),1@(0-1)' -d /bin/librte_mempool_ring.so.25 \
        -d /bin/librte_net_vhost.so.25 --vdev net_vhost0,iface=/tmp/net.sock -- \
        --forward-mode=icmpecho --auto-start --stats-period=1 --total-num-mbufs=4096 \
        --no-mlockall >/tmp/daemon.log 2>&1 </dev/null &
    daemon_pid=$!
    listens
fi
serve net0 "vhost-user:/tmp/net.sock,type=net" "mode=$mode"
grep 'net0 is attached: network interface eth0' /tmp/net0.log || { cat /tmp/net0.log; exit 1; }
card
grep "mode=$expected" /tmp/net0.log || { cat /tmp/net0.log; exit 1; }
if test "$daemon" = passt; then
    for way in '' -R; do
        iperf3 -c 169.254.2.2 -t 1 $way || { cat /tmp/net0.log /tmp/daemon.log; exit 1; }
    done
fi
release net0
test ! -e /sys/class/net/eth0
kill "$daemon_pid" 2>/dev/null || true
if dmesg | grep -E 'WARNING|BUG:|Oops'; then exit 1; fi
