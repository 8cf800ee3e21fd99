# The console hvc0, or the port with the name $name, from a driver's point of view: the guest says
# that it is there, takes $bytes bytes, and gives them back while others come.
set -eu
if [ -z "$name" ]; then
    node=/dev/hvc0
else
    until grep -qx "$name" /sys/class/virtio-ports/*/name 2>/dev/null; do sleep 0.1; done
    node=/dev/$(basename "$(dirname "$(grep -lx "$name" /sys/class/virtio-ports/*/name)")")
fi
until test -c "$node"; do sleep 0.1; done
exec 3<>"$node"
if [ -z "$name" ]; then
    stty raw -echo <&3
fi
printf '@ready\n' >&3
head -c "$bytes" <&3 | tee /tmp/seen >&3
test "$(wc -c </tmp/seen)" = "$bytes"
