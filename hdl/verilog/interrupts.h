// A design's interrupts: by what the driver has enabled, MSI-X, MSI or the line. They come behind
// the writes to host memory that the design has sent in packets before.
#pragma once
#include <deque>

#include "bits.h"
#include "link.h"
#include "viaduct.h"

namespace viaduct {

// Levels: bit n goes up, vector n is sent; the line is up while any is.
template <class Wires> class InterruptLevels {
public:
    InterruptLevels(Wires wires, viaduct_device *dev, const Link &link)
        : w(wires), dev(dev), link(link)
    {
    }

    bool is_busy() const { return false; }
    void drive() {}

    void clear()
    {
        if (before)
            viaduct_line(dev, 0);
        before = 0;
    }

    void sample()
    {
        uint64_t now = w.irq();
        if (now == before || link.writes)
            return;
        uint64_t risen = now & ~before;
        for (unsigned n = 0; risen; n++, risen >>= 1)
            if (risen & 1)
                viaduct_interrupt(dev, n);
        if (!now)
            viaduct_line(dev, 0);
        before = now;
    }

private:
    Wires w;
    viaduct_device *dev;
    const Link &link;
    uint64_t before = 0;
};

// Requests: held until acknowledged for one cycle, with the vector beside them; or one bit each.
template <class Wires> class InterruptRequests {
public:
    InterruptRequests(Wires wires, viaduct_device *dev, const Link &link)
        : w(wires), dev(dev), link(link)
    {
    }

    bool is_busy() const { return ack != 0 || !held.empty(); }

    void clear()
    {
        ack = 0;
        held.clear();
    }

    void drive() { w.ack() = ack; }

    void sample()
    {
        uint64_t asked = w.request();
        uint64_t done = Wires::HAS_ACK ? asked & ack : asked;
        ack = asked & ~ack;
        for (unsigned n = 0; done; n++, done >>= 1)
            if (done & 1)
                held.push_back(Wires::HAS_VECTOR ? unsigned(w.vector()) : n);
        for (; !held.empty() && !link.writes; held.pop_front())
            viaduct_interrupt(dev, held.front());
    }

private:
    Wires w;
    viaduct_device *dev;
    const Link &link;
    uint64_t ack = 0;
    // Vectors that wait for writes.
    std::deque<unsigned> held;
};

} // namespace viaduct
