# What a person meets who makes a daemon's disk the machine's own: all that is missing at once, a
# name, the node, no more rights than are needed, nothing left behind.
daemon="qemu-storage-daemon --blockdev driver=file,node-name=disk,filename=/tmp/disk.img
    --export type=vhost-user-blk,id=export,node-name=disk,writable=on\
,addr.type=unix,addr.path=/tmp/qsd.sock"
truncate -s 16M /tmp/disk.img
# As a service manager would: the daemon comes back whenever it goes. qemu-storage-daemon may abort
# when its driver is killed with work in flight.
while test ! -e /tmp/enough; do $daemon >>/tmp/daemon.log 2>&1 </dev/null || true; done &
until test -S /tmp/qsd.sock; do sleep 0.05; done
device=vhost-user:/tmp/qsd.sock

# attach FILE ARGUMENT... starts it and waits until it has printed what appeared.
attach() {
    file=/tmp/$1
    shift
    : >"$file"
    setsid viaduct attach "$@" >"$file" 2>"$file.log" </dev/null &
    echo "$!" >"$file.pid"
    until test -s "$file"; do
        kill -0 "$(cat "$file.pid")" || { cat "$file.log"; return 1; }
        sleep 0.05
    done
}
# refused WORDS ARGUMENT... must say them and end with status 3.
refused() {
    words=$1 status=0
    shift
    "$@" >/tmp/out 2>&1 </dev/null || status=$?
    test "$status" = 3 || { echo "status $status"; cat /tmp/out; exit 1; }
    grep -q "$words" /tmp/out || { echo "no '$words'"; cat /tmp/out; exit 1; }
}
gone() {
    while kill -0 "$(cat "/tmp/$1.pid")" 2>/dev/null; do sleep 0.05; done
}

rmmod virtio_vdpa
rmmod vduse
refused 'modprobe vduse$' viaduct attach $device
grep -q 'modprobe virtio_vdpa$' /tmp/out || { cat /tmp/out; exit 1; }
for module in /modules/*vduse.ko /modules/*virtio_vdpa.ko; do insmod "$module"; done
refused 'only CAP_NET_ADMIN' /bin/setpriv --bounding-set -net_admin viaduct attach $device
test "$(ls /dev/vduse)" = control

attach first $device
test "$(cat /tmp/first)" = /dev/vda || { cat /tmp/first /tmp/first.log; exit 1; }
test -e /dev/vduse/qsd
# CAP_NET_ADMIN is bit 12; every thread.
for status in "/proc/$(cat /tmp/first.pid)"/task/*/status; do
    grep -q 'CapEff:.0000000000001000' "$status" || { cat "$status"; exit 1; }
    grep -q 'CapPrm:.0000000000001000' "$status" || { cat "$status"; exit 1; }
    grep -q 'CapBnd:.0000000000001000' "$status" || { cat "$status"; exit 1; }
done
dd if=/dev/urandom of=/tmp/some bs=64k count=16 2>/dev/null
dd if=/tmp/some of=/dev/vda bs=64k oflag=direct 2>/dev/null
cmp -n 1048576 /tmp/some /tmp/disk.img

# A name that is taken gets a number; what the kernel refuses appears nowhere.
attach second blk:ram=1M
attach third blk:ram=1M
test "$(cat /tmp/second /tmp/third | tr '\n' ' ')" = '/dev/vdb /dev/vdc '
test -e /dev/vduse/blk -a -e /dev/vduse/blk-2
if viaduct attach rng: >/tmp/out 2>&1 </dev/null; then exit 1; fi
grep -q 'admits no rng device' /tmp/out || { cat /tmp/out; exit 1; }
kill -INT "$(cat /tmp/second.pid)" "$(cat /tmp/third.pid)"
gone second
gone third

# Killed, it is left, and nobody else takes its place by accident.
kill -KILL "$(cat /tmp/first.pid)"
gone first
refused "attach --name qsd $device' goes on with it" viaduct attach $device
attach first $device --name qsd
test "$(cat /tmp/first)" = /dev/vda
dd if=/dev/vda bs=64k count=16 iflag=direct 2>/dev/null | cmp - /tmp/some
kill -INT "$(cat /tmp/first.pid)"
gone first
if grep -E 'WARN|ERROR' /tmp/first.log; then exit 1; fi
test "$(ls /dev/vduse)" = control
test -z "$(ls /sys/bus/vdpa/devices)"
test -z "$(ls /run/viaduct)"
test ! -e /dev/vda
touch /tmp/enough
kill "$(pidof qemu-storage-daemon)"
