# The LEDs of examples/led: what is lit comes back on the switches, and changes are counted.
set -eu
poke 1234:1ed0 w 0 0xaa u 4 0xaa w 0 0x55 u 4 0x55 u 8 2
# Function level reset puts them out.
for device in /sys/bus/pci/devices/*; do
    test "$(cat "$device/device")" = 0x1ed0 && break
done
echo 1 >"$device/reset"
test "$(poke 1234:1ed0 r 0)" = 0
