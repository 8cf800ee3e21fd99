# The two cards of examples/vpcie that are written in VHDL: one writes a page in pieces of 64 bytes,
# from the end, whose other half is rubbish; the other has LEDs and no acknowledgement.
set -eu
for round in 1 2 3; do
    poke 2a2a:2b2b p w 4 A w 8 AH w 12 $round w 0 1 u 0 2 c 0 $round w 16 $round u 16 $round
done
poke 2a2a:1ed5 w 0 10 u 0 10 w 0 5 u 0 5
# A driver's reset reaches the design, by way of the clock.
for card in /sys/bus/pci/devices/*; do
    test "$(cat "$card/device")" != 0x1ed5 || echo 1 > "$card/reset"
done
poke 2a2a:1ed5 u 0 0 w 0 3 u 0 3
