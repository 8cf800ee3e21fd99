# The DMA engine by VFIO behind an IOMMU: each kind of interrupt, function level reset.
set -eu
for device in /sys/bus/pci/devices/*; do
    test "$(cat "$device/vendor"):$(cat "$device/device")" = 0x1234:0x0da7 && break
done
address=${device##*/}
# The emulated IOMMU can't remap interrupts.
echo 1 >/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts
echo vfio-pci >"$device/driver_override"
echo "$address" >/sys/bus/pci/drivers_probe
for kind in msix msi intx; do
    dma vfio 40 "$kind"
done
