# A type that the kernel's VDUSE does not admit: nothing appears, and the message says what would.
set -eu
if viaduct bridge vduse:rng0 rng: >/tmp/out 2>&1 </dev/null; then cat /tmp/out; exit 1; fi
cat /tmp/out
grep -q 'admits no rng device' /tmp/out
grep -q "admits: $admitted)" /tmp/out
grep -q 'User Mode Linux' /tmp/out
test "$(ls /dev/vduse)" = control
test -z "$(ls /sys/bus/vdpa/devices)"
