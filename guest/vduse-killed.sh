# What a killed process leaves is not taken for a new device, and is removed on request.
kill_it() {
    kill -KILL "$(cat /tmp/disk0.pid)"
    while kill -0 "$(cat /tmp/disk0.pid)" 2>/dev/null; do sleep 0.05; done
}
# A file of an earlier device of that name means nothing.
mkdir -p /run/viaduct
echo 'viaduct vduse 1' >/run/viaduct/vduse-disk0
serve disk0 blk:ram=1M
kill_it
# One that can do less does not take its place.
if viaduct bridge vduse:disk0 blk:ram=1M,queue-size=16 >/tmp/out 2>&1 </dev/null; then exit 1; fi
grep -q "can't be resumed: the device has fewer or shorter queues" /tmp/out ||
    { cat /tmp/out; exit 1; }
# The file is lost.
rm /run/viaduct/vduse-disk0
test -e /sys/bus/vdpa/devices/disk0
if viaduct bridge vduse:disk0 blk:ram=1M >/tmp/out 2>&1 </dev/null; then exit 1; fi
grep -q 'nobody serves it, and how far it was is not known: replace=on' /tmp/out ||
    { cat /tmp/out; exit 1; }
serve disk0,replace=on blk:ram=1M
dd if=/dev/vda of=/dev/null bs=64k count=4 iflag=direct
# A name that is in use is nobody else's.
if viaduct bridge vduse:disk0,replace=on blk:ram=1M >/tmp/out 2>&1 </dev/null; then exit 1; fi
grep -q 'another process serves disk0' /tmp/out || { cat /tmp/out; exit 1; }
dd if=/dev/vda of=/dev/null bs=64k count=4 iflag=direct
release disk0
# Whoever wants none has no file.
serve disk0,state=off blk:ram=1M
test ! -e /run/viaduct/vduse-disk0
kill_it
serve disk0,state=off,replace=on blk:ram=1M
release disk0
# What waits on a device that nobody serves fails when it is replaced, and keeps nothing.
for state in /run/viaduct/vduse-disk0 off; do
    serve disk0,state=$state blk:ram=1M
    kill_it
    for number in 1 2 3; do
        dd if=/dev/vda of=/dev/null bs=4k count=1 skip=$number iflag=direct 2>/dev/null &
        echo $! >/tmp/reader$number
    done
    until test "$(awk '{ print $9 }' /sys/block/vda/stat)" = 3; do sleep 0.05; done
    serve disk0,state=$state,replace=on blk:ram=1M,queue-size=16
    for number in 1 2 3; do
        if wait "$(cat /tmp/reader$number)"; then echo 'read from nothing'; exit 1; fi
    done
    # Its letter may be another one, as the old disk goes with its last reader.
    disk=$(sed -n 's|.*disk0 is attached: \(/dev/vd[a-z]\).*|\1|p' /tmp/disk0.log)
    dd if="$disk" of=/dev/null bs=64k count=4 iflag=direct
    release disk0
done
test ! -e /dev/vda
