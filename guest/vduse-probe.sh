# viaduct is killed while the kernel's driver finds the device: at any step between the node and the
# disk, and while it waits for the first blocks, which a daemon that hangs does not give. The next
# viaduct has a disk that works, and nothing of the kernel's waits for ever.
truncate -s 16M /tmp/disk.img
start() {
    : >/tmp/disk0.log
    RUST_LOG=info setsid viaduct bridge vduse:disk0,release-timeout=1 "$@" \
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
setsid viaduct device blk --socket-path=/tmp/disk.sock path=/tmp/disk.img \
    >/tmp/daemon.log 2>&1 </dev/null &
daemon=$!
until test -S /tmp/disk.sock; do sleep 0.05; done
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
if dmesg | grep -E 'WARNING|BUG:|Oops|blocked for more'; then exit 1; fi
