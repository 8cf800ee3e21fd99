// What a PCI Express block tells a design beside its streams, by ports of their usual names: limits
// that the driver has set, credits, the configuration space.
#pragma once
#include "bits.h"
#include "link.h"

namespace viaduct {

template <class Wires> class LinkSignals {
public:
    LinkSignals(Wires wires, viaduct_device *dev, const Link &link) : w(wires), dev(dev), link(link)
    {
    }

    bool is_busy() const { return is_done; }
    void clear() { is_done = false; }

    void drive()
    {
        w.show(link);
        w.read_write_done() = is_done;
        w.read_data() = data;
    }

    // The configuration space by dwords: a request is held until it is done.
    void sample()
    {
        bool is_read = w.read(), is_write = w.write();
        if (is_done || !(is_read || is_write)) {
            is_done = false;
            return;
        }
        is_done = true;
        unsigned at = unsigned(w.addr()) % 1024 * 4;
        uint32_t written = uint32_t(w.write_data()), enables = unsigned(w.byte_enable());
        for (unsigned n = 0; is_write && n < 4; n++)
            if (uint8_t byte = uint8_t(written >> 8 * n); enables >> n & 1)
                viaduct_put_config(dev, at + n, &byte, 1);
        data = 0;
        if (is_read)
            viaduct_get_config(dev, at, &data, 4);
    }

private:
    Wires w;
    viaduct_device *dev;
    const Link &link;
    bool is_done = false;
    uint32_t data = 0;
};

} // namespace viaduct
