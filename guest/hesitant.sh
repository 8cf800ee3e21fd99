# Reads that are hard to answer end, and the machine goes on. $fetched is what a read gets that
# needs host memory first.
set -eu
for round in 1 2 3; do
    poke 1234:4e51 u 0 0x45484456 p w 8 A w 12 AH u 16 "$fetched" u 32 0xffffffff u 0 0x45484456
done
