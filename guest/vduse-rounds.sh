# A device that comes and goes $rounds times, while another one is at work; then eight at once.
serve busy blk:ram=8M
test -b /dev/vda
(while test ! -e /tmp/enough; do
    dd if=/dev/vda of=/dev/null bs=64k count=32 iflag=direct 2>/dev/null || touch /tmp/failed
done) &
reader=$!
files=$(ls "/proc/$(cat /tmp/busy.pid)/fd" | wc -l)
for round in $(seq "$rounds"); do
    serve guest blk:ram=1M
    dd if=/dev/urandom of=/tmp/some bs=4k count=16 2>/dev/null
    dd if=/tmp/some of=/dev/vdb bs=4k oflag=direct 2>/dev/null
    dd if=/dev/vdb bs=4k count=16 iflag=direct 2>/dev/null | cmp - /tmp/some
    release guest
    test ! -e /dev/vdb || { echo "round $round: /dev/vdb is left"; exit 1; }
done
for number in 1 2 3 4 5 6 7; do serve "many$number" blk:ram=1M; done
for disk in b c d e f g h; do
    dd if=/tmp/some of="/dev/vd$disk" bs=64k oflag=direct 2>/dev/null
done
for disk in b c d e f g h; do
    dd if="/dev/vd$disk" bs=64k count=1 iflag=direct 2>/dev/null | cmp - /tmp/some
done
for number in 1 2 3 4 5 6 7; do release "many$number"; done
touch /tmp/enough
wait "$reader"
test ! -e /tmp/failed || { echo 'the busy device failed'; exit 1; }
# At the start the descriptors of attaching may not be closed yet.
left=$(ls "/proc/$(cat /tmp/busy.pid)/fd" | wc -l)
test "$left" -le "$files" || { echo "$left descriptors, $files before"; exit 1; }
release busy
test "$(ls /dev/vduse)" = control || { ls /dev/vduse; exit 1; }
if dmesg | grep -E 'WARNING|BUG|Oops'; then exit 1; fi
