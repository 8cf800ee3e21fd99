# Whoever serves /dev/vda is killed $rounds times each under load: the daemon, viaduct, both. The
# disk stalls and nothing else: no error, no lost or doubled request, the same node all the time.
# $daemon is the daemon's command or empty, $device the device end, $mode what viaduct must choose.
# Once those who were killed are back, requests are answered within a second, to which is added what
# they take while nobody is killed: this processor is emulated, and may be busy.
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

# Hundredths of a second.
now() { awk '{ printf "%d", $1 * 100 }' /proc/uptime; }

# Whether somebody listens at the daemon's socket, and not only its name is there.
listens() { test -z "$daemon" || grep -q ' 00010000 .* /tmp/disk.sock$' /proc/net/unix; }

# Fails unless requests made from now on, where all are back, are answered in time, on the device
# that was there first.
goes_on() {
    back=$(now)
    timeout 60 dd if=/dev/vda of=/dev/null bs=4k count=8 iflag=direct 2>/dev/null ||
        fail "$1" 'no answers'
    took=$(($(now) - back))
    if test "$1" = nobody; then
        if test "$took" -gt "$usual"; then usual=$took; fi
    else
        if test "$took" -gt "$longest"; then longest=$took; fi
        test "$took" -le $((100 + 4 * usual)) ||
            fail "$1" "no answer for $took/100 s, usually $usual"
    fi
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
round=0 usual=0 longest=0
for again in 1 2 3 4; do goes_on nobody; done
while test "$round" -lt "$rounds"; do
    round=$((round + 1))
    if test -n "$daemon"; then
        kill_it "$(cat /tmp/daemon.pid)"
        until listens; do sleep 0.02; done
        goes_on daemon
    fi
    kill_it "$(cat /tmp/disk0.pid)"
    test -b /dev/vda || fail viaduct 'the disk is gone'
    serve disk0 $device
    grep -q 'disk0 is attached: /dev/vda, resumed' /tmp/disk0.log || fail viaduct 'not resumed'
    until listens; do sleep 0.02; done
    goes_on viaduct
    if test -n "$daemon"; then
        kill_it "$(cat /tmp/disk0.pid)"
        kill_it "$(cat /tmp/daemon.pid)"
        serve disk0 $device
        until listens; do sleep 0.02; done
        goes_on both
    fi
done
echo "$rounds rounds: at most $longest/100 s more than the outage, $usual/100 s without one"
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
