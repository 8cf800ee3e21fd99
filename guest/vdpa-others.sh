# Software of others on viaduct's disk through vhost-vdpa: libblkio, and a virtual machine in the
# machine, whose firmware starts from the disk, reads a block, writes it to another place, and says
# so on its serial line.
truncate -s 16M /tmp/disk.img
serve inner blk:path=/tmp/disk.img
echo inner >/sys/bus/vdpa/drivers/virtio_vdpa/unbind
echo vhost_vdpa >/sys/bus/vdpa/devices/inner/driver_override
echo inner >/sys/bus/vdpa/drivers/vhost_vdpa/bind
until test -c /dev/vhost-vdpa-0; do sleep 0.05; done
ulimit -l unlimited
for mode in randread randwrite; do
    blkio-bench --runtime=1 --readwrite "$mode" --iodepth=8 virtio-blk-vhost-vdpa \
        path=/dev/vhost-vdpa-0 >/tmp/bench 2>&1 || { cat /tmp/bench /tmp/inner.log; exit 1; }
done

# xor ax,ax; ds and es = 0; int 13h: read sector 2 to 7e00h; int 13h: write it to sector 3; then
# the text behind the code to port 3f8h, byte by byte.
code=31c08ed88ec0b80102bb007eb90200ba8000cd137218
code=${code}b80103b90300cd13720ebe317cac84c07406baf803eeebf5f4ebfd
{
    echo "$code" | sed 's/../\\x&/g' | xargs -0 printf '%b' | head -c 49
    printf 'the disk works\n\0'
} >/tmp/sector
truncate -s 510 /tmp/sector
printf '\125\252' >>/tmp/sector
dd if=/dev/urandom of=/tmp/some bs=512 count=1 2>/dev/null
cat /tmp/sector /tmp/some | dd of=/tmp/disk.img conv=notrunc 2>/dev/null
/bin/qemu-system-x86_64 -accel tcg -machine q35,memory-backend=mem -m 64M -nodefaults \
    -display none -object memory-backend-memfd,id=mem,size=64M,share=on \
    -bios /bin/bios-256k.bin -no-reboot -serial file:/tmp/serial \
    -device vhost-vdpa-device-pci,vhostdev=/dev/vhost-vdpa-0 >/tmp/qemu.log 2>&1 </dev/null &
qemu=$!
until grep -q 'the disk works' /tmp/serial 2>/dev/null; do
    sleep 0.2
    kill -0 $qemu || { cat /tmp/qemu.log /tmp/inner.log; exit 1; }
    test "$(cut -d. -f1 /proc/uptime)" -lt 150 || { cat /tmp/qemu.log /tmp/inner.log; exit 1; }
done
kill $qemu
wait $qemu || true
dd if=/tmp/disk.img bs=512 skip=2 count=1 2>/dev/null | cmp - /tmp/some
release inner
if dmesg | grep -E 'WARNING|BUG:|Oops'; then exit 1; fi
