# Block device $disk, by a guest that has busybox only: random bytes written past the page cache,
# read back in requests of another size, also by a driver that let go and came back.
set -eu
name=${disk#/dev/}
until test -b "$disk"; do sleep 0.1; done

dd if=/dev/urandom of=/tmp/bytes bs=64k count=64 2>/dev/null
wanted=$(sha256sum </tmp/bytes)
check() {
    found=$(dd if="$disk" iflag=direct bs="$1" count="$2" skip="$3" 2>/dev/null | sha256sum)
    test "$found" = "$wanted" || { echo "other bytes in requests of $1"; exit 1; }
}
# The sectors around it must stay as they are.
around() {
    for skip in 79 1104; do dd if="$disk" iflag=direct bs=4k count=1 skip=$skip 2>/dev/null; done |
        sha256sum
}
before=$(around)
dd if=/tmp/bytes of="$disk" oflag=direct bs=64k seek=5 2>/dev/null
test "$(around)" = "$before" || { echo "more was written than asked for"; exit 1; }
check 64k 64 5
check 4k 1024 80
check 512 8192 640

device=$(basename "$(readlink -f "/sys/block/$name/device")")
echo "$device" >/sys/bus/virtio/drivers/virtio_blk/unbind
test ! -e "/sys/block/$name"
echo "$device" >/sys/bus/virtio/drivers/virtio_blk/bind
until test -b "$disk"; do sleep 0.1; done
check 32k 128 10
