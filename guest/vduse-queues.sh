# Two queues, of a daemon, and a disk that grows while it is in use.
truncate -s 16M /tmp/disk.img
setsid viaduct device blk --socket-path=/tmp/disk.sock path=/tmp/disk.img queues=2 \
    >/tmp/daemon.log 2>&1 </dev/null &
daemon=$!
until test -S /tmp/disk.sock; do sleep 0.05; done
serve disk0 vhost-user:/tmp/disk.sock mode=translate
test "$(ls /sys/block/vda/mq | tr '\n' ' ')" = '0 1 ' || { ls /sys/block/vda/mq; exit 1; }
/bin/fio --filename=/dev/vda --direct=1 --ioengine=libaio --output=/tmp/fio --iodepth=8 \
    --rw=randwrite --bs=4k --size=2M --verify=crc32c --verify_fatal=1 \
    --name=one --cpus_allowed=0 --name=two --cpus_allowed=1 --offset=8M ||
    { cat /tmp/fio /tmp/disk0.log; exit 1; }
kill -USR1 "$(cat /tmp/disk0.pid)"
until grep -q 'queue 1' /tmp/disk0.log; do sleep 0.05; done
grep 'queue [01]' /tmp/disk0.log
test "$(grep -cE 'queue [01]: *0 ' /tmp/disk0.log)" = 0

truncate -s 24M /tmp/disk.img
kill -USR2 "$daemon"
until test "$(cat /sys/block/vda/size)" = 49152; do sleep 0.05; done
dd if=/dev/urandom of=/tmp/some bs=64k count=4 2>/dev/null
dd if=/tmp/some of=/dev/vda bs=64k seek=320 oflag=direct 2>/dev/null
dd if=/tmp/disk.img bs=64k skip=320 count=4 2>/dev/null | cmp - /tmp/some
release disk0
kill "$daemon"
