// A design's interrupts: by what the driver has enabled, MSI-X, MSI or the line.
#pragma once
#include "bits.h"
#include "viaduct.h"

namespace viaduct {

// Levels: bit n goes up, vector n is sent; the line is up while any is.
template <class Wires> class InterruptLevels {
public:
    InterruptLevels(Wires wires, viaduct_device *dev) : w(wires), dev(dev) {}

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
        if (now == before)
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
    uint64_t before = 0;
};

// Requests: held until acknowledged for one cycle, with the vector beside them; or one bit each.
template <class Wires> class InterruptRequests {
public:
    InterruptRequests(Wires wires, viaduct_device *dev) : w(wires), dev(dev) {}

    bool is_busy() const { return ack != 0; }

    void clear() { ack = 0; }

    void drive() { w.ack() = ack; }

    void sample()
    {
        uint64_t asked = w.request();
        uint64_t done = Wires::HAS_ACK ? asked & ack : asked;
        ack = asked & ~ack;
        for (unsigned n = 0; done; n++, done >>= 1)
            if (done & 1)
                viaduct_interrupt(dev, Wires::HAS_VECTOR ? unsigned(w.vector()) : n);
    }

private:
    Wires w;
    viaduct_device *dev;
    uint64_t ack = 0;
};

} // namespace viaduct
