# Function level reset and D3hot by the kernel: the registers are those of a fresh function.
set -eu
for device in /sys/bus/pci/devices/*; do
    test "$(cat "$device/vendor"):$(cat "$device/device")" = 0x1234:0x0da7 && break
done
cat "$device/reset_method"
dma sysfs 3
echo 1 >"$device/reset"
dma sysfs 3
echo pm >"$device/reset_method"
echo 1 >"$device/reset"
dma sysfs 3
