# A daemon that turns against the machine finds in the memory it was given what its own device was
# sent, and nothing else of the machine, can't leave that memory, and can't keep its device.
# $ways are modes; with `:spoil` it also overwrites all it can, rings included.
random_text() { head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n'; }
secret=$(random_text)
# In a file's pages, in the memory of a process, in another disk's requests.
echo "$secret" >/tmp/secret
sh -c 'read -r held </tmp/secret; echo read >/tmp/held; kill -STOP $$; echo "$held"' &
until test -s /tmp/held; do sleep 0.05; done
serve other,bounce-size=1M blk:ram=1M
dd if=/tmp/secret of=/dev/vda bs=4k conv=sync oflag=direct 2>/dev/null

for way in $ways; do
    mode=${way%%:*} bait=$(random_text) spoils=${way#"$mode"}
    echo "$bait" >/tmp/bait
    rm -f /tmp/spy.sock
    setsid /bin/setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set -all \
        /bin/spy /tmp/spy.sock "$bait" "$secret" ${spoils:+spoil} >/tmp/spy.log 2>&1 </dev/null &
    spy=$!
    until test -S /tmp/spy.sock; do sleep 0.05; done
    serve disk0,bounce-size=4M,release-timeout=1 vhost-user:/tmp/spy.sock,type=blk,timeout=1000 \
        "mode=$mode" || { cat /tmp/spy.log; exit 1; }
    grep -q "mode=$mode" /tmp/disk0.log || { cat /tmp/disk0.log; exit 1; }
    # It is answered never, so nobody waits for it here.
    dd if=/tmp/bait of=/dev/vdb bs=4k conv=sync oflag=direct 2>/dev/null &
    writer=$!
    until grep '^spy: ' /tmp/spy.log; do
        sleep 0.1
        kill -0 "$spy" || { cat /tmp/spy.log /tmp/disk0.log; exit 1; }
    done
    # What it was sent shows that it can find something.
    grep -q ' pages, [1-9][0-9]* baits, 0 secrets, 0 escapes' /tmp/spy.log ||
        { cat /tmp/spy.log /tmp/disk0.log; exit 1; }
    start=$(cut -d. -f1 /proc/uptime)
    pid=$(cat /tmp/disk0.pid)
    # Where the rings it has spoilt are ours, viaduct takes the device away by itself.
    test -n "$spoils" || kill -TERM "$pid"
    while kill -0 "$pid" 2>/dev/null; do
        sleep 0.1
        now=$(cut -d. -f1 /proc/uptime)
        test $((now - start)) -lt 20 || { tail -n 8 /tmp/disk0.log; echo "$way: it stays"; exit 1; }
    done
    grep -q '1 requests to disk0 fail' /tmp/disk0.log || { cat /tmp/disk0.log; exit 1; }
    if wait "$writer"; then echo 'a write that nobody did'; exit 1; fi
    test ! -e /dev/vdb
    test ! -e /dev/vduse/disk0
    kill "$spy"
    wait "$spy" || true
done
dd if=/dev/vda bs=4k count=1 iflag=direct 2>/dev/null | grep -q "$secret"
release other
if dmesg | grep -E 'WARNING|BUG:|Oops'; then exit 1; fi
