# The pattern writer of examples/vpcie: it writes bytes that count up, begun by a register, and
# interrupts; then it copies them back by reading host memory.
set -eu
poke 2a2a:2b2b p w 4 A w 8 AH w 12 7 w 0 1 u 0 2 c 0 7 w 0 3 u 0 4 u 16 0x7f807
