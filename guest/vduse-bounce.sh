# A bounce pool of 1 MiB, and eight times as much in flight: it goes on, and no byte is lost.
serve disk0,bounce-size=1M,message-timeout=60 blk:ram=16M
test "$(cat /sys/class/vduse/disk0/bounce_size)" = 1048576
test "$(cat /sys/class/vduse/disk0/msg_timeout)" = 60
/bin/fio --filename=/dev/vda --direct=1 --ioengine=libaio --output=/tmp/fio --name=verify \
    --iodepth=128 --rw=randwrite --bs=64k --size=16M --verify=crc32c --verify_fatal=1 ||
    { cat /tmp/fio /tmp/disk0.log; exit 1; }
release disk0
