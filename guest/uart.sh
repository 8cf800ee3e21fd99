# A serial port on a card: the kernel's own driver has bound it, and bytes go both ways.
set -eu
for device in /sys/bus/pci/devices/*; do
    test "$(cat "$device/vendor"):$(cat "$device/device")" = 0x1234:0x0550 && break
done
test "$(basename "$(readlink "$device/driver")")" = serial
for port in /sys/class/tty/ttyS*; do
    case $(readlink -f "$port") in *"${device##*/}"*) break;; esac
done
name=${port##*/}
test "$(cat "$port/type")" = 4
stty -F "/dev/$name" raw -echo 115200
exec 3<>"/dev/$name"
echo "hello from the guest" >&3
read -r line <&3
test "$line" = "HELLO FROM THE GUEST"
n=0
while test $n -lt 100; do
    echo "line $n of many that go there and back" >&3
    read -r line <&3
    test "$line" = "LINE $n OF MANY THAT GO THERE AND BACK"
    n=$((n + 1))
done
grep "$name" /proc/interrupts
