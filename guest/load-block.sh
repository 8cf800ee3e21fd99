# Puts disk $disk under load in the background and returns when requests flow. The load writes
# every block of its range in random order, reads all back and compares; its status goes to
# /tmp/load.status. Slow on purpose ($rate requests/s), so that it outlasts what is done to it.
set -eu
until test -b "$disk"; do sleep 0.1; done
rm -f /tmp/load.status
(
    /bin/fio --name=load --filename="$disk" --direct=1 --ioengine=libaio --iodepth=16 \
        --rw=randwrite --bs=4k --size=16M --rate_iops="$rate" --verify=crc32c --verify_fatal=1
    echo $? >/tmp/load.status
) >/tmp/load.log 2>&1 </dev/null &
until test "$(awk '{print $5}' "/sys/block/${disk#/dev/}/stat")" -gt 200; do
    sleep 0.05
    test ! -e /tmp/load.status || { cat /tmp/load.log; exit 1; }
done
