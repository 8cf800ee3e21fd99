# The program that calls every function of VPCIe's interface; then its configuration space and a BAR
# that nobody handles.
set -eu
poke 2a2a:2c2c p w 4 A w 8 AH w 0 1 u 0 0x600d c 0 9
for card in /sys/bus/pci/devices/*; do
    test "$(cat "$card/device")" = 0x2c2c || continue
    test "$(cat "$card/revision")" = 0x42
    test "$(cat "$card/subsystem_vendor") $(cat "$card/subsystem_device")" = "0x2a2a 0x5a5a"
    test "$(cat "$card/class")" = 0x118000
done
BAR=1 poke 2a2a:2c2c u 0 0xffffffff
poke 2a2a:2c2c w 16 1
