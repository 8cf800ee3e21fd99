# What a killed process leaves is not taken for a new device, and is removed on request.
serve disk0 blk:ram=1M
kill -KILL "$(cat /tmp/disk0.pid)"
while kill -0 "$(cat /tmp/disk0.pid)" 2>/dev/null; do sleep 0.05; done
test -e /sys/bus/vdpa/devices/disk0
if viaduct bridge vduse:disk0 blk:ram=1M >/tmp/out 2>&1 </dev/null; then exit 1; fi
grep -q 'nobody serves it: replace=on' /tmp/out || { cat /tmp/out; exit 1; }
serve disk0,replace=on blk:ram=1M
dd if=/dev/vda of=/dev/null bs=64k count=4 iflag=direct
# A name that is in use is nobody else's.
if viaduct bridge vduse:disk0,replace=on blk:ram=1M >/tmp/out 2>&1 </dev/null; then exit 1; fi
grep -q 'another process serves disk0' /tmp/out || { cat /tmp/out; exit 1; }
dd if=/dev/vda of=/dev/null bs=64k count=4 iflag=direct
release disk0
test ! -e /dev/vda
