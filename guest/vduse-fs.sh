# A shared folder of virtiofsd, mounted on the machine itself: bytes arrive both ways.
mkdir /tmp/shared
head -c 300000 /dev/urandom >/tmp/shared/there
setsid virtiofsd --sandbox none --seccomp none --socket-path /tmp/fs.sock \
    --shared-dir /tmp/shared >/tmp/fs.log 2>&1 </dev/null &
pid=$!
until test -S /tmp/fs.sock; do
    sleep 0.05
    kill -0 $pid || { cat /tmp/fs.log; exit 1; }
done
serve fs0 vhost-user:/tmp/fs.sock,type=fs,tag=shared
mount -t virtiofs shared /mnt || { cat /tmp/fs0.log /tmp/fs.log; exit 1; }
cmp /mnt/there /tmp/shared/there
# It gets a memfd to map: the kernel's file, which has no size, it would refuse and leave.
grep 'mode=translate' /tmp/fs0.log || { cat /tmp/fs0.log; exit 1; }
head -c 700001 /dev/urandom >/mnt/back
sync
cmp /mnt/back /tmp/shared/back
umount /mnt
release fs0
