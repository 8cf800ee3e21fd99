# Functions for a guest that plays a machine without a hypervisor.
# serve NAME DEVICE-END [SETTING]... starts viaduct and waits until the device is attached;
# $serve_with may be a program that starts it; release NAME ends it and looks for leftovers.
set -eu

serve() {
    serve_name=${1%%,*} serve_end=$1
    shift
    # Now, and not when the child gets to it: the last one's lines must not be taken for its own.
    : >"/tmp/$serve_name.log"
    RUST_LOG=info setsid ${serve_with:-} viaduct bridge "vduse:$serve_end" "$@" \
        >"/tmp/$serve_name.log" 2>&1 </dev/null &
    serve_pid=$!
    echo "$serve_pid" >"/tmp/$serve_name.pid"
    until grep -q "$serve_name is attached" "/tmp/$serve_name.log"; do
        kill -0 "$serve_pid" || { cat "/tmp/$serve_name.log"; return 1; }
        sleep 0.05
    done
}

release() {
    kill -TERM "$(cat "/tmp/$1.pid")"
    while kill -0 "$(cat "/tmp/$1.pid")" 2>/dev/null; do sleep 0.05; done
    if grep -E 'WARN|ERROR' "/tmp/$1.log"; then return 1; fi
    for left in "/dev/vduse/$1" "/sys/bus/vdpa/devices/$1"; do
        test ! -e "$left" || { echo "$left is left"; return 1; }
    done
}
