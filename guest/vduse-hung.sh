# A daemon that takes requests and answers nothing, ever again, can't keep the device.
truncate -s 16M /tmp/disk.img
for mode in $modes; do
    rm -f /tmp/disk.sock
    setsid viaduct device blk --socket-path=/tmp/disk.sock path=/tmp/disk.img \
        >/tmp/daemon.log 2>&1 </dev/null &
    daemon=$!
    until test -S /tmp/disk.sock; do sleep 0.05; done
    serve disk0,release-timeout=1 vhost-user:/tmp/disk.sock,timeout=1000 "mode=$mode"
    kill -STOP "$daemon"
    for number in 1 2 3 4; do
        dd if=/dev/vda of=/dev/null bs=4k count=1 skip="$number" iflag=direct 2>/dev/null &
        echo $! >"/tmp/reader$number"
    done
    until test "$(awk '{ print $9 }' /sys/block/vda/stat)" = 4; do sleep 0.05; done
    start=$(cut -d. -f1 /proc/uptime)
    kill -TERM "$(cat /tmp/disk0.pid)"
    while kill -0 "$(cat /tmp/disk0.pid)" 2>/dev/null; do
        sleep 0.1
        now=$(cut -d. -f1 /proc/uptime)
        test $((now - start)) -lt 20 ||
            { cat /tmp/disk0.log; ps; cat /proc/$(cat /tmp/disk0.pid)/task/*/stack; exit 1; }
    done
    now=$(cut -d. -f1 /proc/uptime)
    grep -q '4 requests to disk0 fail' /tmp/disk0.log || { cat /tmp/disk0.log; exit 1; }
    test ! -e /dev/vda
    for number in 1 2 3 4; do wait "$(cat "/tmp/reader$number")" && exit 1; done
    test "$(ls /dev/vduse)" = control
    kill -CONT "$daemon"
    kill "$daemon"
    wait "$daemon" || true
done
