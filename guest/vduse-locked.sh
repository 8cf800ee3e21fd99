# Memory that can't be locked: the disk comes all the same, by copies, and viaduct says why.
truncate -s 16M /tmp/disk.img
setsid $daemon >/tmp/daemon.log 2>&1 </dev/null &
until test -S /tmp/disk.sock; do sleep 0.05; done
ulimit -l 8192
serve_with='/bin/setpriv --bounding-set -sys_resource'
serve disk0 vhost-user:/tmp/disk.sock,type=blk
/bin/fio --filename=/dev/vda --direct=1 --ioengine=libaio --output=/tmp/fio --name=verify \
    --iodepth=16 --rw=randwrite --bs=4k --size=2M --verify=crc32c --verify_fatal=1 ||
    { cat /tmp/fio /tmp/disk0.log; exit 1; }
grep 'locking 65536 KiB of memory for the pool (raise `ulimit -l`' /tmp/disk0.log ||
    { cat /tmp/disk0.log; exit 1; }
grep 'mode=copy' /tmp/disk0.log || { cat /tmp/disk0.log; exit 1; }
# A pool that is small enough is shared.
sed -i 's/WARN//' /tmp/disk0.log
release disk0
serve disk0,bounce-size=4M vhost-user:/tmp/disk.sock,type=blk
dd if=/dev/vda of=/dev/null bs=64k count=4 iflag=direct
grep 'mode=translate' /tmp/disk0.log || { cat /tmp/disk0.log; exit 1; }
release disk0
