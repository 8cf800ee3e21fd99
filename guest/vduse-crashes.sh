# Whoever serves /dev/vda is killed $rounds times each under load: the daemon, viaduct, both. The
# disk stalls and nothing else: no error, no lost or doubled request, the same node all the time.
# $daemon is the daemon's command or empty, $device the device end, $mode what viaduct must choose.
truncate -s 32M /tmp/disk.img

# As a service manager would: the daemon comes back whenever it goes.
keep_daemon() {
    while test ! -e /tmp/enough; do
        sh -c "echo \$\$ >/tmp/daemon.pid; exec $daemon" >>/tmp/daemon.log 2>&1 </dev/null || true
    done
}

kill_it() {
    # qemu-storage-daemon may have aborted a moment ago, when its driver went with work in flight.
    kill -KILL "$1" 2>/dev/null || true
    while kill -0 "$1" 2>/dev/null; do sleep 0.02; done
}

fail() {
    tail -n 8 /tmp/load.log
    tail -n 5 /tmp/daemon.log
    cat /tmp/disk0.log
    dmesg | tail -n 5
    echo "round $round of $rounds, $1 killed: $2"
    exit 1
}

# Fails unless requests made from now on are answered, on the device that was there first.
goes_on() {
    timeout 60 dd if=/dev/vda of=/dev/null bs=4k count=8 iflag=direct 2>/dev/null ||
        fail "$1" 'no answers'
    test ! -e /tmp/load.failed || fail "$1" 'a wrong byte or an I/O error'
    test "$(cat /sys/block/vda/diskseq)" = "$disk" || fail "$1" 'the disk is another one'
}

touch /tmp/daemon.log
if test -n "$daemon"; then
    keep_daemon &
    keeper=$!
    until test -S /tmp/disk.sock; do sleep 0.05; done
fi
serve disk0 $device
grep "mode=$mode" /tmp/disk0.log || { cat /tmp/disk0.log; exit 1; }
disk=$(cat /sys/block/vda/diskseq)

# Writes at random places, 16 at a time, and between them reads back what was written.
(
    while test ! -e /tmp/enough; do
        /bin/fio --name=load --filename=/dev/vda --direct=1 --ioengine=libaio --iodepth=16 \
            --rw=randwrite --bs=4k --size=8M --verify=crc32c --verify_fatal=1 \
            --verify_backlog=256 >/tmp/load.log 2>&1 </dev/null || touch /tmp/load.failed
    done
) &
load=$!
round=0
goes_on nobody
while test "$round" -lt "$rounds"; do
    round=$((round + 1))
    if test -n "$daemon"; then
        kill_it "$(cat /tmp/daemon.pid)"
        goes_on daemon
    fi
    kill_it "$(cat /tmp/disk0.pid)"
    test -b /dev/vda || fail viaduct 'the disk is gone'
    serve disk0 $device
    grep -q 'disk0 is attached: /dev/vda, resumed' /tmp/disk0.log || fail viaduct 'not resumed'
    goes_on viaduct
    if test -n "$daemon"; then
        kill_it "$(cat /tmp/disk0.pid)"
        kill_it "$(cat /tmp/daemon.pid)"
        serve disk0 $device
        goes_on both
    fi
done
touch /tmp/enough
wait "$load"
goes_on nobody
if dmesg | grep -E 'I/O error|WARNING|BUG:|Oops'; then fail nobody 'the kernel complains'; fi
kill -TERM "$(cat /tmp/disk0.pid)"
while kill -0 "$(cat /tmp/disk0.pid)" 2>/dev/null; do sleep 0.05; done
state=/run/viaduct/vduse-disk0
for left in /dev/vda /dev/vduse/disk0 $state $state.in-flight; do
    test ! -e "$left" || { echo "$left is left"; exit 1; }
done
if test -n "$daemon"; then
    kill -KILL "$(cat /tmp/daemon.pid)" 2>/dev/null || true
    wait "$keeper"
fi
