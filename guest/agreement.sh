# What the driver of the only virtio device has agreed on: packed rings if $packed is 1, addresses
# of a virtual IOMMU if $iommu is 1, more than one queue used if $two_queues is 1, indirect
# descriptors if $indirect is 1.
set -eu
until test -e /sys/bus/virtio/devices/virtio0/driver; do sleep 0.1; done
device=/sys/bus/virtio/devices/virtio0
test "$(ls /sys/bus/virtio/devices)" = virtio0
# VIRTIO 1.3, 6: bit 34 is RING_PACKED, 33 ACCESS_PLATFORM; the first character is bit 0.
agreed() {
    cut -c "$(($1 + 1))" "$device/features"
}
test "$(agreed 34)" = "$packed" || { echo "packed rings: $(agreed 34)"; exit 1; }
if [ "$iommu" = 1 ]; then
    test "$(agreed 33)" = 1
    type=$(cat "$(readlink -f $device)/../iommu_group/type")
    case $type in DMA*) ;; *) echo "no addresses are translated: $type"; exit 1 ;; esac
fi
if [ "$indirect" = 1 ]; then
    # Bit 28.
    test "$(agreed 28)" = 1 || { echo "no indirect descriptors"; exit 1; }
fi
if [ "$two_queues" = 1 ]; then
    queues=$(ls -d $device/block/*/mq/? $device/net/*/queues/tx-? 2>/dev/null | wc -l)
    test "$queues" = 2 || { echo "$queues queues"; exit 1; }
fi
