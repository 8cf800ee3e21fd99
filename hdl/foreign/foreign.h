// A design that runs in a simulator of its own kind, in the place of Verilator's class.
//
// Harness and simulator both have a loop. So the harness has a stack of its own, and each goes on
// where the other waits:
//
//     harness     drive   eval() ---.            .---> sample   eval() ---.
//     simulator   ------------------'---> settle-'------------------------'---> edge
//
// eval() is the turn of the simulator: it takes the inputs, lets time pass until everything has
// settled, and brings the outputs.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace viaduct {

// A port: where it is in Vcard__Syms, and how wide.
struct Port {
    const char *name;
    size_t offset;
    unsigned bits;
    bool is_input, is_clock;
};

// To be called by the harness: the simulator's turn.
void yield();

// To be called by the simulator: the harness's turn, until eval(); false at its end.
bool resume();

// Cycles without any change on the ports after which the clock stands still. What goes on inside a
// design is not to be seen here.
inline unsigned quiet_limit()
{
    const char *text = std::getenv("VIADUCT_QUIET");
    return text && *text ? unsigned(std::strtoul(text, nullptr, 10)) : 10000;
}

// Tells the harness's search for standstill what it can't see itself.
class Quiet {
public:
    // Looks at the ports after each eval(); a number that stays as it is when nothing changes.
    template <class Ports> uint32_t look(const Ports &ports)
    {
        const uint8_t *now = reinterpret_cast<const uint8_t *>(&ports);
        static uint8_t before[2][sizeof ports];
        half ^= 1;
        if (std::memcmp(now, before[half], sizeof ports)) {
            std::memcpy(before[half], now, sizeof ports);
            count = 0;
        } else if (!limit || count < 2 * limit) {
            count++;
        }
        return count;
    }

private:
    unsigned half = 0, limit = quiet_limit();
    uint32_t count = 0;
};

} // namespace viaduct
