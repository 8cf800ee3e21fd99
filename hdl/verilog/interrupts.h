// A design's interrupts: by what the driver has enabled, MSI-X, MSI or the line. They come behind
// the writes to host memory that the design has sent in packets before.
#pragma once
#include <cstdint>
#include <deque>

#include "bits.h"
#include "link.h"
#include "viaduct.h"

namespace viaduct {

// Interrupts in their order, each until the writes that were begun before it are done.
//
// No more than two of a kind wait: a third is one with the second, behind all the writes so far.
// The first keeps its place, so a design that never stops writing interrupts nevertheless; what
// came last stays last, so the line is left as the design has it.
class HeldInterrupts {
public:
    // In place of a vector: the line goes down.
    static constexpr unsigned LOWER = ~0u;

    HeldInterrupts(viaduct_device *dev, const Link &link) : dev(dev), link(link) {}

    bool is_empty() const { return held.empty(); }
    void clear() { held.clear(); }

    void add(unsigned vector)
    {
        if (vector >= MOST_VECTORS && vector != LOWER)
            return;
        unsigned same = 0;
        auto latest = held.end();
        for (auto other = held.begin(); other != held.end(); ++other)
            if (other->vector == vector)
                same++, latest = other;
        if (same == 2)
            held.erase(latest);
        held.push_back({ link.writes_begun, vector });
    }

    // To be called in each cycle.
    void send()
    {
        for (; !held.empty() && link.writes_done >= held.front().writes; held.pop_front())
            if (held.front().vector == LOWER)
                viaduct_line(dev, 0);
            else
                viaduct_interrupt(dev, held.front().vector);
    }

private:
    struct Interrupt {
        // Those that were begun before.
        uint64_t writes;
        unsigned vector;
    };

    // As many as MSI-X has (PCI Express 5.0, 7.7.2.2).
    static constexpr unsigned MOST_VECTORS = 2048;

    viaduct_device *dev;
    const Link &link;
    std::deque<Interrupt> held;
};

// Levels: bit n goes up, vector n is sent; the line is up while any is.
template <class Wires> class InterruptLevels {
public:
    InterruptLevels(Wires wires, viaduct_device *dev, const Link &link)
        : w(wires), dev(dev), held(dev, link)
    {
    }

    bool is_busy() const { return !held.is_empty(); }
    void drive() {}

    void clear()
    {
        // What waits may be that the line goes down.
        if (before || !held.is_empty())
            viaduct_line(dev, 0);
        before = 0;
        held.clear();
    }

    // Each change counts, also one that lasts a cycle while writes are under way.
    void sample()
    {
        uint64_t now = w.irq(), risen = now & ~before;
        for (unsigned n = 0; risen; n++, risen >>= 1)
            if (risen & 1)
                held.add(n);
        if (before && !now)
            held.add(HeldInterrupts::LOWER);
        before = now;
        held.send();
    }

private:
    Wires w;
    viaduct_device *dev;
    HeldInterrupts held;
    uint64_t before = 0;
};

// Requests: held until acknowledged for one cycle, with the vector beside them; or one bit each.
template <class Wires> class InterruptRequests {
public:
    InterruptRequests(Wires wires, viaduct_device *dev, const Link &link)
        : w(wires), held(dev, link)
    {
    }

    bool is_busy() const { return ack != 0 || !held.is_empty(); }

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
                held.add(Wires::HAS_VECTOR ? unsigned(w.vector()) : n);
        held.send();
    }

private:
    Wires w;
    HeldInterrupts held;
    uint64_t ack = 0;
};

} // namespace viaduct
