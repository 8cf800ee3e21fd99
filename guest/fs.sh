# The file system with tag $tag, from a driver's point of view: a tree written, dropped from the
# cache and read back; what the host put there is read too.
set -eu
mount -t virtiofs "$tag" /mnt
mkdir -p /mnt/a/b
for number in $(seq 30); do
    head -c $((number * 7001)) /dev/urandom >"/mnt/a/b/$number"
done
(cd /mnt && find a -type f -exec sha256sum {} + >/tmp/sums)
cp /tmp/sums /mnt/sums-of-guest
umount /mnt
echo 3 >/proc/sys/vm/drop_caches
mount -t virtiofs "$tag" /mnt
(cd /mnt && sha256sum -c -s /tmp/sums && sha256sum -c sums-of-host)
umount /mnt
