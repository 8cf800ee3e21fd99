#!/bin/sh
# Fills a fresh Debian 13 root with the software on the other side of the end-to-end tests. Runs
# inside that root and takes the mirror from what debootstrap wrote there. Lines that start with
# "==" are shown as progress.
set -eu
mirror=$(sed -n 's/^deb \([^ ]*\) .*/\1/p' /etc/apt/sources.list | head -n 1)
export DEBIAN_FRONTEND=noninteractive LC_ALL=C

echo "== package lists"
cat > /etc/apt/sources.list <<LISTS
deb $mirror trixie main
deb $mirror trixie-backports main
LISTS
cat > /etc/apt/apt.conf.d/10viaduct <<CONF
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::Retries "5";
Dpkg::Use-Pty "0";
CONF
# A frozen or mirrored archive may carry an expired Release file; signatures are still checked.
echo 'Acquire::Check-Valid-Until "false";' > /etc/apt/apt.conf.d/11frozen
echo force-unsafe-io > /etc/dpkg/dpkg.cfg.d/unsafe-io
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
chmod +x /usr/sbin/policy-rc.d
apt-get -qq update

# passt of Debian 13 itself ends with an assertion when a driver offers it two buffers for a packet,
# as iPXE does.
echo "== QEMU and passt from backports"
apt-get -qq install -y -t trixie-backports \
    qemu-system-x86 qemu-system-arm qemu-utils qemu-block-extra seabios ipxe-qemu passt >/dev/null

echo "== daemons, User Mode Linux and the guests' tools"
apt-get -qq install -y virtiofsd user-mode-linux busybox-static kmod fio iperf3 e2fsprogs \
    iproute2 iputils-ping ethtool pciutils libblkio-dev gcc libc6-dev zstd xz-utils \
    syslinux syslinux-common mtools dosfstools >/dev/null

# dpdk-dev holds testpmd, but its dependencies conflict with QEMU's, so only its libraries are
# installed and the program is taken out of the package.
echo "== DPDK"
libraries=$(apt-cache depends dpdk-dev | sed -n 's/^ *Depends: \(librte-.*\)$/\1/p')
apt-get -qq install -y $libraries librte-net-vhost25 librte-net-virtio25 librte-bus-vdev25 \
    librte-mempool-ring25 libpcap0.8t64 ibverbs-providers >/dev/null
work=$(mktemp -d)
chmod 755 "$work"
cd "$work"
apt-get -qq -o APT::Sandbox::User=root download dpdk-dev
dpkg-deb -x dpdk-dev_*.deb dpdk
install dpdk/usr/bin/dpdk-testpmd /usr/local/bin/
ldd /usr/local/bin/dpdk-testpmd | grep 'not found' && exit 1

# Both code generators of GHDL: mcode is Debian's default, llvm the faster one.
echo "== simulators"
apt-get -qq install -y verilator ghdl-mcode ghdl-llvm iverilog g++ make \
    python3 python3-venv python3-dev >/dev/null

echo "== libblkio's benchmark"
gcc -O2 -o /usr/local/bin/blkio-bench /usr/share/doc/libblkio-dev/examples/blkio-bench.c -lblkio \
    -lpthread -lm

# Kernels are unpacked, not installed: nothing boots this root, and no initramfs is wanted.
# /kernels/NAME/{vmlinuz,vmlinux,modules} where NAME is the version as people say it. vmlinux is
# what vmlinuz unpacks to: an emulated processor would need a second to do that at every boot. For
# the same reason the modules are stored uncompressed.
for suite in trixie trixie-backports; do
    image=$(apt-cache show "linux-image-cloud-amd64/$suite" \
        | sed -n 's/^Depends:.*\(linux-image-[^ ,]*\).*/\1/p' | head -n 1)
    release=${image#linux-image-}
    name=$(echo "$release" | cut -d. -f1,2)
    echo "== Linux $name ($release)"
    mkdir "linux-$name"
    (
        cd "linux-$name"
        parts=$image
        for part in base binary modules; do
            part=linux-$part-$release
            apt-cache show "$part" >/dev/null 2>&1 && parts="$parts $part"
        done
        apt-get -qq -o APT::Sandbox::User=root download $parts
        for package in *.deb; do dpkg-deb -x "$package" x; done
        # Old packages have lib/modules, new ones usr/lib/modules; the image is in boot or there.
        mkdir -p x/lib "/kernels/$name"
        test -d x/usr/lib/modules && mv x/usr/lib/modules x/lib/
        mv "$(find x -name 'vmlinuz*' -type f)" "/kernels/$name/vmlinuz"
        find x/lib/modules -name '*.ko.xz' -print0 | xargs -0 -r -n 200 -P 2 xz -d
        depmod -b x "$release"
        # Where the payload is stands in the boot header (Linux: arch/x86/boot.rst, 0x1f1, 0x248);
        # its last four bytes are its unpacked size.
        image=/kernels/$name/vmlinuz
        number() { od -An "-tu$2" "-j$1" "-N$2" "$image"; }
        begin=$((($(number 497 1) + 1) * 512 + $(number 584 4)))
        tail -c +$((begin + 1)) "$image" | head -c $(($(number 588 4) - 4)) | zstd -dcq \
            > "/kernels/$name/vmlinux"
        mv "x/lib/modules/$release" "/kernels/$name/modules"
    )
done

# A guest on another processor: its kernel as above, and the few programs it needs under /arm64.
echo "== Linux for aarch64"
dpkg --add-architecture arm64
apt-get -qq update
image=$(apt-cache show linux-image-cloud-arm64:arm64/trixie \
    | sed -n 's/^Depends:.*\(linux-image-[^ ,]*\).*/\1/p' | head -n 1)
release=${image#linux-image-}
mkdir arm64 /arm64
(
    cd arm64
    apt-get -qq -o APT::Sandbox::User=root download "$image:arm64"
    dpkg-deb -x linux-*.deb x
    rm linux-*.deb
    mkdir -p x/lib /kernels/arm64
    test -d x/usr/lib/modules && mv x/usr/lib/modules x/lib/
    mv "$(find x -name 'vmlinuz*' -type f)" /kernels/arm64/vmlinuz
    find x/lib/modules -name '*.ko.xz' -print0 | xargs -0 -r -n 200 -P 2 xz -d
    depmod -b x "$release"
    mv "x/lib/modules/$release" /kernels/arm64/modules
    for package in busybox-static pciutils libpci3 libkmod2 libc6 zlib1g liblzma5 libzstd1 \
        libssl3t64 libudev1 libcap2; do
        apt-get -qq -o APT::Sandbox::User=root download "$package:arm64"
    done
    for package in *.deb; do dpkg-deb -x "$package" /arm64; done
)
dpkg --remove-architecture arm64

echo "== tidying up"
cd /
rm -rf "$work" /var/lib/apt/lists/* /var/cache/apt/archives/*.deb
