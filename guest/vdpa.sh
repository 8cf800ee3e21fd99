# A device of the vDPA bus, driven by viaduct: VDUSE's own, bound to vhost_vdpa, and put on the bus
# once more by a second viaduct. Every mode; bytes, a driver that lets go and comes back, the end.
serve inner blk:ram=16M
release_from_driver() {
    echo inner >/sys/bus/vdpa/drivers/virtio_vdpa/unbind
    echo vhost_vdpa >/sys/bus/vdpa/devices/inner/driver_override
    echo inner >/sys/bus/vdpa/drivers/vhost_vdpa/bind
    until test -c /dev/vhost-vdpa-0; do sleep 0.05; done
}
release_from_driver
test ! -e /dev/vda
viaduct probe vdpa:/dev/vhost-vdpa-0 >/tmp/probe
grep -q '^device  *blk' /tmp/probe || { cat /tmp/probe; exit 1; }
grep -q '^queues  *1$' /tmp/probe || { cat /tmp/probe; exit 1; }
for mode in $modes; do
    serve outer vdpa:/dev/vhost-vdpa-0 "mode=$mode"
    test -b /dev/vda || { cat /tmp/outer.log /tmp/inner.log; exit 1; }
    grep -q "mode=$mode" /tmp/outer.log || { cat /tmp/outer.log; exit 1; }
    /bin/fio --filename=/dev/vda --direct=1 --ioengine=libaio --output=/tmp/fio --name=verify \
        --iodepth=16 --rw=randwrite --bs=4k --size=2M --verify=crc32c --verify_fatal=1 ||
        { cat /tmp/fio /tmp/outer.log /tmp/inner.log; exit 1; }
    dd if=/dev/urandom of=/tmp/some bs=64k count=16 2>/dev/null
    dd if=/tmp/some of=/dev/vda bs=64k oflag=direct 2>/dev/null
    device=$(basename "$(readlink -f /sys/block/vda/device)")
    echo "$device" >/sys/bus/virtio/drivers/virtio_blk/unbind
    echo "$device" >/sys/bus/virtio/drivers/virtio_blk/bind
    until test -b /dev/vda; do sleep 0.05; done
    dd if=/dev/vda bs=64k count=16 iflag=direct 2>/dev/null | cmp - /tmp/some
    if viaduct probe vdpa:/dev/vhost-vdpa-0 >/tmp/out 2>&1; then exit 1; fi
    grep -q 'another process has it' /tmp/out || { cat /tmp/out; exit 1; }
    release outer
    test ! -e /dev/vda
done
release inner
test ! -e /dev/vhost-vdpa-0
if dmesg | grep -E 'WARNING|BUG:|Oops'; then exit 1; fi
