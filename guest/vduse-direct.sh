# In mode=pass nothing passes viaduct but interrupts: nobody of it waits for the driver's
# notifications, no thread that moves requests wakes up, it touches no page of the bounce pool.
truncate -s 16M /tmp/disk.img
setsid $daemon >/tmp/daemon.log 2>&1 </dev/null &
daemon_pid=$!
until test -S /tmp/disk.sock; do sleep 0.05; done
serve disk0 vhost-user:/tmp/disk.sock,type=blk $setting
grep 'mode=pass' /tmp/disk0.log || { cat /tmp/disk0.log; exit 1; }
dd if=/dev/vda of=/dev/null bs=4k count=8 iflag=direct 2>/dev/null
viaduct=$(cat /tmp/disk0.pid)

events() { sed -n 's/^eventfd-id: *//p' "/proc/$1/fdinfo"/* | sort -n; }
# Descriptors that an epoll of viaduct's waits for.
watched() { sed -n 's/^tfd: *\([0-9]*\) .*/\1/p' "/proc/$viaduct/fdinfo"/* | sort -n | uniq; }
# How often the threads that move requests have woken.
wakes() {
    total=0
    for task in "/proc/$viaduct"/task/*; do
        case $(cat "$task/comm") in bridge-*)
            count=$(sed -n 's/^voluntary_ctxt_switches:[[:space:]]*//p' "$task/status")
            total=$((total + count)) ;;
        esac
    done
    echo "$total"
}
# Processor time in ticks; the words after the program's name in brackets.
ticks() { sed 's/.*) //' "/proc/$1/stat" | awk '{ print $12 + $13 }'; }
# Kilobytes of the driver's memory that viaduct has touched.
touched() {
    awk '/^[0-9a-f]+-/ { ours = /vduse/ } ours && /^Rss:/ { sum += $2 } END { print sum + 0 }' \
        "/proc/$viaduct/smaps"
}
bytes() { awk '/^[rw]char:/ { sum += $2 } END { print sum }' "/proc/$viaduct/io"; }

# One queue: its kick, call and error events are shared with the daemon. The kick is not waited for
# here.
events "$daemon_pid" >/tmp/theirs
shared=0 waited=0
for file in "/proc/$viaduct/fdinfo"/*; do
    id=$(sed -n 's/^eventfd-id: *//p' "$file")
    test -n "$id" && grep -qx "$id" /tmp/theirs || continue
    shared=$((shared + 1))
    if watched | grep -qx "${file##*/}"; then waited=$((waited + 1)); fi
done
echo "$shared events are shared with the daemon, viaduct waits for $waited"
test "$shared" -ge 2
test "$waited" = $((shared - 1))

wakes=$(wakes) bytes=$(bytes) ours=$(ticks "$viaduct") theirs=$(ticks "$daemon_pid")
/bin/fio --filename=/dev/vda --direct=1 --ioengine=libaio --output=/tmp/fio --name=verify \
    --iodepth=16 --rw=randwrite --bs=16k --size=8M --verify=crc32c --verify_fatal=1 ||
    { cat /tmp/fio /tmp/disk0.log; exit 1; }
wakes=$(($(wakes) - wakes)) bytes=$(($(bytes) - bytes))
ours=$(($(ticks "$viaduct") - ours)) theirs=$(($(ticks "$daemon_pid") - theirs))
touched=$(touched)
echo "$wakes wakes, $bytes bytes in system calls, $touched KiB touched," \
    "$ours ticks where the daemon took $theirs"
test "$wakes" = 0
# 1024 requests: at most one interrupt each, of eight bytes to read, and something to spare.
test "$bytes" -le 16384
test "$touched" -le 64
kill -USR1 "$viaduct"
until grep -q 'requests' /tmp/disk0.log; do sleep 0.05; done
grep 'none that are seen here (mode=pass)' /tmp/disk0.log || { cat /tmp/disk0.log; exit 1; }
release disk0
kill "$daemon_pid"
