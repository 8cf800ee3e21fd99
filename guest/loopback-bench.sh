# Three disks of the machine itself, each on a qemu-storage-daemon of its own with a device that
# does nothing: /dev/vda by its own VDUSE export, /dev/vdb through viaduct in pass mode, /dev/vdc in
# translate mode. Leaves them there; the processes of each are in /tmp/vdX.pids.
disk='driver=null-co,node-name=disk,size=1073741824,read-zeroes=on'
ulimit -l unlimited
setsid qemu-storage-daemon --blockdev "$disk" --export \
    type=vduse-blk,id=e,node-name=disk,name=peer,num-queues=1,queue-size=256,writable=on \
    >/tmp/peer.log 2>&1 </dev/null &
echo "$!" >/tmp/vda.pids
until test -e /dev/vduse/peer; do sleep 0.05; done
/bin/vdpa dev add name peer mgmtdev vduse
test -b /dev/vda
for way in b:pass c:translate; do
    letter=${way%%:*} mode=${way##*:}
    setsid qemu-storage-daemon --blockdev "$disk" --export type=vhost-user-blk,id=e,\
node-name=disk,num-queues=1,writable=on,addr.type=unix,addr.path="/tmp/$mode.sock" \
        >"/tmp/$mode-daemon.log" 2>&1 </dev/null &
    echo "$!" >"/tmp/vd$letter.pids"
    until test -S "/tmp/$mode.sock"; do sleep 0.05; done
    serve "$mode" "vhost-user:/tmp/$mode.sock,queue-size=256" "mode=$mode"
    cat "/tmp/$mode.pid" >>"/tmp/vd$letter.pids"
    test -b "/dev/vd$letter"
done
