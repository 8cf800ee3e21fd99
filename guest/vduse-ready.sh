# A driver comes and goes $cycles times. Its first requests are made, and completed, while the
# kernel is still to note that the driver is ready, and takes no interrupt until then.
serve disk0 blk:ram=1M "mode=$mode"
grep -q "mode=$mode" /tmp/disk0.log || { cat /tmp/disk0.log; exit 1; }
device=$(basename "$(readlink -f /sys/block/vda/device)")
files=$(ls "/proc/$(cat /tmp/disk0.pid)/fd" | wc -l)
for cycle in $(seq "$cycles"); do
    echo "$device" >/sys/bus/virtio/drivers/virtio_blk/unbind
    # It reads the first blocks before it returns, so a lost interrupt is one that does not end.
    timeout 30 sh -c "echo $device >/sys/bus/virtio/drivers/virtio_blk/bind" ||
        { echo "cycle $cycle does not end"; cat /tmp/disk0.log; exit 1; }
    test -b /dev/vda
done
dd if=/dev/vda of=/dev/null bs=64k count=4 iflag=direct 2>/dev/null
left=$(ls "/proc/$(cat /tmp/disk0.pid)/fd" | wc -l)
test "$left" -le "$files" || { echo "$left descriptors, $files before"; exit 1; }
release disk0
if dmesg | grep -E 'I/O error|WARNING|BUG:|Oops'; then exit 1; fi
