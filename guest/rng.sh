# The virtio entropy device, from a driver's point of view: it delivers, and never the same twice.
set -eu
until grep -q virtio /sys/class/misc/hw_random/rng_available; do sleep 0.1; done
name=$(tr ' ' '\n' </sys/class/misc/hw_random/rng_available | grep virtio | head -n 1)
echo "$name" >/sys/class/misc/hw_random/rng_current
dd if=/dev/hwrng of=/tmp/random bs=64 count=256 iflag=fullblock
size=$(gzip -c /tmp/random | wc -c)
test "$size" -ge 16384 || { echo "16384 bytes were compressed to $size: not random"; exit 1; }
pieces=$(hexdump -v -e '64/1 "%02x" "\n"' /tmp/random | sort -u | wc -l)
test "$pieces" = 256 || { echo "only $pieces of 256 blocks differ"; exit 1; }
