# Waits until $more packets more have come in at card $card.
set -eu
counter=/sys/class/net/$card/statistics/rx_packets
wanted=$(($(cat "$counter") + more))
until test "$(cat "$counter")" -ge "$wanted"; do sleep 0.05; done
