// What the harness needs of Verilator's runtime where there is none: types of ports, as wide as
// Verilator has them.
#pragma once
#include <cstddef>
#include <cstdint>

using CData = uint8_t;
using SData = uint16_t;
using IData = uint32_t;
using QData = uint64_t;

template <size_t N> struct VlWide {
    uint32_t words[N];
    uint32_t &operator[](size_t n) { return words[n]; }
    const uint32_t &operator[](size_t n) const { return words[n]; }
};

struct VerilatedContext {
    void traceEverOn(bool) {}
    // A simulator that finishes ends the process.
    bool gotFinish() const { return false; }
};
