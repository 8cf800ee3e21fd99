# viaduct is killed while the kernel's driver finds the device: at any step between the node and the
# disk, and while it waits for the first blocks, which a daemon that hangs does not give; and while
# the driver is to let go, and waits for requests, or for its turn. The next viaduct has a disk that
# works, and nothing of the kernel's waits for ever.
truncate -s 16M /tmp/disk.img
patience=1
start() {
    : >/tmp/disk0.log
    RUST_LOG=info setsid viaduct bridge "vduse:disk0,release-timeout=$patience" "$@" \
        >/tmp/disk0.log 2>&1 </dev/null &
    pid=$!
}
again() {
    start "$@"
    echo "$pid" >/tmp/disk0.pid
    tries=0
    until grep -q 'disk0 is attached' /tmp/disk0.log; do
        sleep 0.1
        tries=$((tries + 1))
        if test "$tries" -lt 400 && kill -0 "$pid"; then continue; fi
        stacks
        echo "$step: not attached again"
        exit 1
    done
    disk=$(sed -n 's|.*disk0 is attached: \(/dev/vd[a-z]\).*|\1|p' /tmp/disk0.log)
    timeout 20 dd if="$disk" of=/dev/null bs=64k count=4 iflag=direct 2>/dev/null ||
        { cat /tmp/disk0.log; echo "$step: no answers"; exit 1; }
}
stacks() {
    tail -n 6 /tmp/disk0.log
    for stack in /proc/[0-9]*/task/*/stack; do
        grep -q 'virtio\|vdpa\|vduse\|blk_' "$stack" 2>/dev/null || continue
        echo "$stack"
        head -n 7 "$stack"
    done
}
virtio_status() { cat /sys/bus/vdpa/devices/disk0/virtio*/status 2>/dev/null || echo none; }
for step in node bus virtio bus 'status=0x0000000b' disk; do
    start blk:path=/tmp/disk.img
    case $step in
        node) until test -e /dev/vduse/disk0; do :; done ;;
        bus) until test -e /sys/bus/vdpa/devices/disk0; do :; done ;;
        virtio) until test "$(virtio_status)" != none; do :; done ;;
        status*) until test "$(virtio_status)" \> 0x00000007; do :; done ;;
        disk) until test -e /sys/bus/vdpa/devices/disk0/virtio*/block; do :; done ;;
    esac
    kill -KILL "$pid"
    again blk:path=/tmp/disk.img
    echo "$step: $(grep -c . /tmp/disk0.log) lines"
    release disk0
done
start_daemon() {
    rm -f /tmp/disk.sock
    setsid viaduct device blk --socket-path=/tmp/disk.sock path=/tmp/disk.img \
        >/tmp/daemon.log 2>&1 </dev/null &
    daemon=$!
    until test -S /tmp/disk.sock; do sleep 0.05; done
}
start_daemon
for mode in pass copy; do
    step="first blocks, $mode"
    start vhost-user:/tmp/disk.sock,type=blk,timeout=1000 "mode=$mode"
    until test -e /sys/bus/vdpa/devices/disk0; do :; done
    kill -STOP "$daemon"
    # The driver waits for its first block: nobody has answered it.
    until test "$(virtio_status)" = 0x0000000f; do sleep 0.05; done
    sleep 1
    kill -KILL "$pid"
    kill -CONT "$daemon"
    again vhost-user:/tmp/disk.sock,type=blk,timeout=1000 "mode=$mode"
    release disk0
done

for mode in pass copy; do
    step="requests wait when it is to go, $mode"
    patience=25
    again vhost-user:/tmp/disk.sock,type=blk,timeout=1000 "mode=$mode"
    kill -STOP "$daemon"
    for number in 1 2 3 4; do
        dd if="$disk" of=/dev/null bs=4k count=1 skip="$number" iflag=direct 2>/dev/null &
        echo $! >"/tmp/reader$number"
    done
    until test "$(awk '{ print $9 }' "/sys/block/${disk#/dev/}/stat")" = 4; do sleep 0.05; done
    kill -TERM "$pid"
    # The kernel forgets the name first, and waits then.
    while test -e /sys/bus/vdpa/devices/disk0; do sleep 0.05; done
    test -e /dev/vduse/disk0
    kill -KILL "$pid" "$daemon"
    start_daemon
    patience=1
    again vhost-user:/tmp/disk.sock,type=blk,timeout=1000 "mode=$mode"
    for number in 1 2 3 4; do
        if wait "$(cat "/tmp/reader$number")"; then echo "$step: read from nothing"; exit 1; fi
    done
    release disk0
done

step='first blocks that never come'
start_other() {
    RUST_LOG=info setsid viaduct bridge vduse:disk1 blk:path=/tmp/disk.img \
        >/tmp/disk1.log 2>&1 </dev/null &
    disk1=$!
    until grep -q 'disk1 is attached' /tmp/disk1.log; do sleep 0.05; done
}
# The kernel puts one device at a time on the bus, or takes one off: that call waits for its turn.
waits_its_turn() { cat /proc/"$1"/task/*/stack 2>/dev/null | grep -q genl_rcv; }
: >/tmp/disk1.log
start_other
start vhost-user:/tmp/disk.sock,type=blk,timeout=1000
until test -e /sys/bus/vdpa/devices/disk0; do :; done
kill -STOP "$daemon"
until test "$(virtio_status)" = 0x0000000f; do sleep 0.05; done
sleep 1
kill -TERM "$disk1"
until waits_its_turn "$disk1"; do sleep 0.05; done
kill -KILL "$disk1"
killed=$disk1
: >/tmp/disk1.log
start_other
kill -TERM "$pid"
while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
grep -q 'requests to disk0 fail' /tmp/disk0.log || { stacks; echo "$step: kept"; exit 1; }
while kill -0 "$killed" 2>/dev/null || waits_its_turn "$disk1"; do sleep 0.05; done
test "$(ls /sys/bus/vdpa/devices)" = disk1 || { cat /tmp/disk1.log; echo "$step: lost"; exit 1; }
disk=$(sed -n 's|.*disk1 is attached: \(/dev/vd[a-z]\).*|\1|p' /tmp/disk1.log | tail -n 1)
timeout 20 dd if="$disk" of=/dev/null bs=64k count=4 iflag=direct 2>/dev/null ||
    { cat /tmp/disk1.log; echo "$step: no answers"; exit 1; }
kill -CONT "$daemon"
kill -TERM "$disk1"
while kill -0 "$disk1" 2>/dev/null; do sleep 0.05; done
test "$(ls /dev/vduse)" = control
if dmesg | grep -E 'WARNING|BUG:|Oops|blocked for more'; then exit 1; fi
