# The console's size, which must become $columns and $rows.
set -eu
exec 3<>/dev/hvc0
until test "$(stty size <&3)" = "$rows $columns"; do sleep 0.1; done
