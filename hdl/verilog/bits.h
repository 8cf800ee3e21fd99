// Ports of any width as bytes. Verilator keeps bit 0 in the first byte, on every machine that it
// runs on with a port of ours.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "verilated.h"

namespace viaduct {

template <class T> inline uint8_t *bytes_of(T &port)
{
    if constexpr (std::is_integral_v<T>)
        return reinterpret_cast<uint8_t *>(&port);
    else
        return reinterpret_cast<uint8_t *>(&port[0]);
}

template <class T> inline const uint8_t *bytes_of(const T &port)
{
    if constexpr (std::is_integral_v<T>)
        return reinterpret_cast<const uint8_t *>(&port);
    else
        return reinterpret_cast<const uint8_t *>(&port[0]);
}

// The low 64 bits.
template <class T> inline uint64_t number(const T &port)
{
    if constexpr (std::is_integral_v<T>) {
        return port;
    } else {
        uint64_t value;
        std::memcpy(&value, bytes_of(port), sizeof value);
        return value;
    }
}

// A port that is not there: what is written to it is lost.
struct Nothing {
    template <class T> Nothing &operator=(const T &) { return *this; }
};

inline uint64_t ones(unsigned bits) { return bits >= 64 ? ~0ull : (1ull << bits) - 1; }

} // namespace viaduct
