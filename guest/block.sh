# Block device $disk, from a driver's point of view: random writes verified, $requests requests
# (70,000 are more than a ring's 16-bit index can count), a file system that survives an unmount and
# a driver that lets go and comes back.
set -eu
name=${disk#/dev/}
until test -b "$disk"; do sleep 0.1; done

fio() {
    /bin/fio --filename="$disk" --direct=1 --ioengine=libaio --output=/tmp/fio "$@" && return
    cat /tmp/fio
    exit 1
}
fio --name=verify --iodepth=16 --rw=randwrite --bs=4k \
    --size=$((requests / 17 * 4096)) --verify=crc32c --verify_fatal=1
# 512-byte reads, because the number matters and not the bytes.
fio --name=many --iodepth=32 --rw=randread --bs=512 --size=16M --io_size=$((requests * 512))
reads=$(awk '{print $1}' "/sys/block/$name/stat")
test "$reads" -ge "$requests" || { echo "only $reads reads reached the device"; exit 1; }

mkfs.ext4 -q -F "$disk"
mount -t ext4 "$disk" /mnt
mkdir -p /mnt/a/b/c
for number in $(seq 40); do
    head -c $((number * 5003)) /dev/urandom >"/mnt/a/b/c/$number"
done
(cd /mnt && find . -type f -exec sha256sum {} + >/tmp/sums)
test "$(wc -l </tmp/sums)" = 40
umount /mnt

device=$(basename "$(readlink -f "/sys/block/$name/device")")
echo "$device" >/sys/bus/virtio/drivers/virtio_blk/unbind
test ! -e "/sys/block/$name"
echo "$device" >/sys/bus/virtio/drivers/virtio_blk/bind
until test -b "$disk"; do sleep 0.1; done

mount -t ext4 "$disk" /mnt
(cd /mnt && sha256sum -c -s /tmp/sums)
umount /mnt
