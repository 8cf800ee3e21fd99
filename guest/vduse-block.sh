# The guest plays a machine without a hypervisor: $serve starts whatever serves $disk, which must
# appear, keep every byte, survive a driver that lets go and comes back, and leave nothing behind.
set -eu
name=${disk#/dev/}
log=/tmp/viaduct.log

RUST_LOG=info setsid sh -c "echo \$\$ >/tmp/viaduct.pid; exec viaduct bridge vduse:disk0 $bridge" \
    >"$log" 2>&1 </dev/null &
until grep -q 'disk0 is attached' "$log"; do
    sleep 0.1
    test ! -e /tmp/viaduct.pid || kill -0 "$(cat /tmp/viaduct.pid)" || { cat "$log"; exit 1; }
done
grep "disk0 is attached: $disk" "$log" || { cat "$log"; exit 1; }
grep "mode=$mode" "$log" || { cat "$log"; exit 1; }

/bin/fio --filename="$disk" --direct=1 --ioengine=libaio --output=/tmp/fio --name=verify \
    --iodepth=16 --rw=randwrite --bs=4k --size=4M --verify=crc32c --verify_fatal=1 ||
    { cat /tmp/fio "$log"; exit 1; }

mkfs.ext4 -q -F "$disk"
mount -t ext4 "$disk" /mnt
for number in $(seq 8); do head -c $((number * 50003)) /dev/urandom >"/mnt/$number"; done
(cd /mnt && sha256sum [1-8] >/tmp/sums)
umount /mnt

device=$(basename "$(readlink -f "/sys/block/$name/device")")
echo "$device" >/sys/bus/virtio/drivers/virtio_blk/unbind
test ! -e "/sys/block/$name"
echo "$device" >/sys/bus/virtio/drivers/virtio_blk/bind
until test -b "$disk"; do sleep 0.1; done
mount -t ext4 "$disk" /mnt
(cd /mnt && sha256sum -c -s /tmp/sums)
umount /mnt

pid=$(cat /tmp/viaduct.pid)
kill -TERM "$pid"
while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
cat "$log"
! grep -E 'WARN|ERROR' "$log"
test ! -e "$disk"
test ! -e /dev/vduse/disk0
test ! -e /sys/bus/vdpa/devices/disk0
