// How quickly host memory answers a design: never the same on real hardware, so a design can be
// tried with latency and with stalls at random cycles.
#pragma once
#include <cstdint>

namespace viaduct {

struct Pace {
    // Cycles from a request to its answer, at least.
    unsigned latency = 0;
    // Percent of the cycles in which nothing is taken or given.
    unsigned stalls = 0;
    uint64_t cycle = 0;

    uint64_t due() const { return cycle + latency; }

    bool is_over(uint64_t due) const { return cycle >= due; }

    // Whether something may be taken or given in this cycle.
    bool lets() const
    {
        if (!stalls)
            return true;
        // Marsaglia's xorshift32: the same stalls in every run.
        seed ^= seed << 13, seed ^= seed >> 17, seed ^= seed << 5;
        return seed % 100 >= stalls;
    }

private:
    mutable uint32_t seed = 2463534242u;
};

} // namespace viaduct
