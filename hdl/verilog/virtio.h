// A virtio PCI device whose data path is the design: configuration, registers, rings and interrupts
// are done here, and the design sees streams of bytes.
//
//     driver  --- registers of VIRTIO 1.2, 4.1.4.3 -->  this  --- doorbell, addresses ------> RTL
//             --- readable part of a chain ---------->        --- s_axis -------------------->
//             <-- writable part, used ring, MSI-X ---         <-- m_axis ---------------------
//
// Split rings, no indirect descriptors, no event index. A chain's readable bytes are sent to the
// design, the last word with tlast; then its writable part is filled, until it is full or tlast. A
// design without s_axis doesn't see readable bytes; without m_axis it writes none.
#pragma once
#include <array>
#include <vector>

#include "access.h"
#include "bits.h"
#include "pace.h"
#include "viaduct.h"

namespace viaduct {

namespace virtio {

// Offsets in BAR 0, as the capabilities have them.
constexpr uint64_t COMMON = 0, ISR = 0x1000, DEVICE = 0x2000, NOTIFY = 0x3000;
constexpr unsigned NONE = 0xffff;
// VERSION_1 and ACCESS_PLATFORM: behind an IOMMU it works too.
constexpr uint64_t FEATURES = 3ull << 32;
enum Status { DRIVER_OK = 4, FEATURES_OK = 8, NEEDS_RESET = 64 };
enum Flag { NEXT = 1, WRITABLE = 2, INDIRECT = 4 };
// Largest queue, and most bytes that one chain may carry in one direction.
constexpr unsigned LARGEST = 256;
constexpr size_t MOST_BYTES = 1 << 20;

struct Segment {
    uint64_t address;
    uint32_t len;
};

struct Chain {
    unsigned head = 0;
    std::vector<uint8_t> readable;
    std::vector<Segment> writable;
    size_t room = 0;
};

} // namespace virtio

// One queue: what the driver said of it, and its ring.
class VirtioQueue {
public:
    uint16_t size = virtio::LARGEST, vector = virtio::NONE, enabled = 0;
    // Descriptors, driver area, device area.
    std::array<uint64_t, 3> areas = {};
    bool is_kicked = false;

    // The next chain; 1 if there is one, 0 if not, negative if the driver breaks a rule.
    int take(viaduct_device *dev, virtio::Chain &chain)
    {
        using namespace virtio;
        uint16_t available[2], head;
        if (viaduct_host_read(dev, areas[1], available, sizeof available))
            return -1;
        if (available[1] == next)
            return 0;
        if (uint16_t(available[1] - next) > size)
            return -1;
        if (viaduct_host_read(dev, areas[1] + 4 + 2 * (next % size), &head, sizeof head))
            return -1;
        next++;
        chain = Chain();
        chain.head = head;
        unsigned at = head;
        for (unsigned n = 0; n < size; n++) {
            struct { uint64_t address; uint32_t len; uint16_t flags, next; } d;
            if (at >= size || viaduct_host_read(dev, areas[0] + 16 * at, &d, sizeof d))
                return -1;
            if (d.flags & INDIRECT || !add(dev, chain, d.address, d.len, d.flags & WRITABLE))
                return -1;
            if (!(d.flags & NEXT))
                return 1;
            at = d.next;
        }
        return -1;
    }

    // Gives it back with these bytes; whether the driver wants to be interrupted, or negative.
    int give_back(viaduct_device *dev, const virtio::Chain &chain, const std::vector<uint8_t> &data)
    {
        size_t done = 0;
        for (const virtio::Segment &segment : chain.writable) {
            size_t len = std::min<size_t>(segment.len, data.size() - done);
            if (len && viaduct_host_write(dev, segment.address, &data[done], len))
                return -1;
            done += len;
        }
        uint32_t element[2] = { chain.head, uint32_t(data.size()) };
        uint16_t flags, index = used + 1;
        if (viaduct_host_write(dev, areas[2] + 4 + 8 * (used % size), element, sizeof element) ||
            viaduct_host_write(dev, areas[2] + 2, &index, sizeof index) ||
            viaduct_host_read(dev, areas[1], &flags, sizeof flags))
            return -1;
        used = index;
        return !(flags & 1);
    }

private:
    static bool add(viaduct_device *dev, virtio::Chain &chain, uint64_t address, uint32_t len,
                    bool is_writable)
    {
        if (is_writable) {
            chain.writable.push_back({ address, len });
            chain.room += len;
            return chain.room <= virtio::MOST_BYTES;
        }
        size_t before = chain.readable.size();
        if (!chain.writable.empty() || before + len > virtio::MOST_BYTES)
            return false;
        chain.readable.resize(before + len);
        return !len || !viaduct_host_read(dev, address, &chain.readable[before], len);
    }

    uint16_t next = 0, used = 0;
};

template <class Wires> class Virtio {
public:
    Virtio(Wires wires, viaduct_device *dev) : w(wires), dev(dev) {}

    static constexpr unsigned WIDTH = Wires::DATA_BITS / 8;

    bool is_busy() const { return phase != IDLE || queue.is_kicked; }
    bool has_accesses() const { return false; }

    // Registers are no work for the design: they are answered at once.
    void push(Access &&access)
    {
        if (access.is_write) {
            uint64_t value = 0;
            std::memcpy(&value, access.data(), std::min<size_t>(access.len, 8));
            write(access.offset, value, access.len);
        } else {
            read(access.offset, access.data(), access.len);
        }
        access.finish(true);
    }

    void clear()
    {
        queue = VirtioQueue();
        phase = IDLE;
        status = isr = 0;
        driver_features = 0;
        selected = feature_select = driver_select = 0;
        config_vector = virtio::NONE;
        is_rung = false;
    }

    void drive()
    {
        w.status() = status;
        w.queue_enable() = queue.enabled;
        w.queue_desc() = queue.areas[0];
        w.queue_driver() = queue.areas[1];
        w.queue_device() = queue.areas[2];
        w.doorbell() = is_rung;
        is_rung = false;
        bool sends = phase == SENDING;
        w.s_tvalid() = sends;
        if (sends) {
            size_t len = std::min<size_t>(WIDTH, chain.readable.size() - done);
            std::memcpy(bytes_of(w.s_tdata()), &chain.readable[done], len);
            w.s_tkeep() = ones(len);
            w.s_tlast() = done + len == chain.readable.size();
        }
        w.m_tready() = phase == FILLING;
    }

    void sample()
    {
        if (phase == IDLE && queue.is_kicked)
            begin();
        else if (phase == SENDING && w.s_tready())
            send_more();
        else if (phase == FILLING && w.m_tvalid())
            take_word();
    }

private:
    enum Phase { IDLE, SENDING, FILLING };

    void begin()
    {
        int found = is_live() ? queue.take(dev, chain) : 0;
        if (found < 0)
            return break_down();
        if (!found) {
            queue.is_kicked = false;
            return;
        }
        done = 0;
        data.clear();
        phase = SENDING;
        if (!Wires::HAS_S || chain.readable.empty())
            fill();
    }

    void send_more()
    {
        done += WIDTH;
        if (done >= chain.readable.size())
            fill();
    }

    void fill()
    {
        phase = FILLING;
        if (!Wires::HAS_M || chain.room == 0)
            give_back();
    }

    void take_word()
    {
        uint64_t keep = w.m_tkeep();
        const uint8_t *word = bytes_of(w.m_tdata());
        for (unsigned n = 0; n < WIDTH && data.size() < chain.room; n++)
            if (keep >> n & 1)
                data.push_back(word[n]);
        if (w.m_tlast() || data.size() == chain.room)
            give_back();
    }

    void give_back()
    {
        phase = IDLE;
        int wants = queue.give_back(dev, chain, data);
        if (wants < 0)
            return break_down();
        if (wants)
            interrupt(queue.vector, 1);
    }

    void interrupt(unsigned vector, unsigned reason)
    {
        isr |= reason;
        if (vector != virtio::NONE)
            viaduct_msix(dev, vector);
        else
            viaduct_line(dev, 1);
    }

    bool is_live() const { return queue.enabled && status & virtio::DRIVER_OK; }

    void break_down()
    {
        phase = IDLE;
        queue.is_kicked = false;
        queue.enabled = 0;
        status |= virtio::NEEDS_RESET;
        viaduct_log(dev, 1, "the driver breaks a rule of its queue, or its memory is not there");
        interrupt(config_vector, 2);
    }

    // The common configuration as it reads now.
    std::array<uint8_t, 64> common() const
    {
        std::array<uint8_t, 64> c = {};
        auto put = [&c](unsigned at, uint64_t value, size_t len) {
            std::memcpy(&c[at], &value, len);
        };
        put(0x00, feature_select, 4);
        put(0x04, feature_select < 2 ? virtio::FEATURES >> 32 * feature_select : 0, 4);
        put(0x08, driver_select, 4);
        put(0x0c, driver_select < 2 ? driver_features >> 32 * driver_select : 0, 4);
        put(0x10, config_vector, 2);
        put(0x12, 1, 2);
        put(0x14, status, 1);
        put(0x16, selected, 2);
        if (selected == 0) {
            put(0x18, queue.size, 2);
            put(0x1a, queue.vector, 2);
            put(0x1c, queue.enabled, 2);
            for (unsigned n = 0; n < 3; n++)
                put(0x20 + 8 * n, queue.areas[n], 8);
        }
        return c;
    }

    void read(uint64_t at, uint8_t *into, size_t len)
    {
        if (at < virtio::ISR) {
            auto c = common();
            for (size_t n = 0; n < len; n++)
                into[n] = at + n < c.size() ? c[at + n] : 0;
        } else if (at == virtio::ISR) {
            std::memset(into, 0, len);
            into[0] = isr;
            isr = 0;
            viaduct_line(dev, 0);
        } else {
            std::memset(into, 0, len);
        }
    }

    void write(uint64_t at, uint64_t value, size_t len)
    {
        using namespace virtio;
        if (at >= NOTIFY) {
            queue.is_kicked = is_rung = true;
            return;
        }
        uint16_t word = uint16_t(value);
        switch (at) {
        case 0x00: feature_select = uint32_t(value); return;
        case 0x08: driver_select = uint32_t(value); return;
        case 0x0c: set_features(uint32_t(value)); return;
        case 0x10: config_vector = word < VECTORS ? word : NONE; return;
        case 0x14: set_status(uint8_t(value)); return;
        case 0x16: selected = word; return;
        }
        if (selected != 0 || at < 0x18 || at >= 0x38)
            return;
        if (at == 0x18 && word && word <= LARGEST && !(word & (word - 1)))
            queue.size = word;
        else if (at == 0x1a)
            queue.vector = word < VECTORS ? word : NONE;
        else if (at == 0x1c)
            queue.enabled = word == 1;
        else if (at >= 0x20)
            std::memcpy(reinterpret_cast<uint8_t *>(queue.areas.data()) + (at - 0x20), &value,
                        std::min<size_t>(len, 0x38 - at));
    }

    void set_features(uint32_t value)
    {
        if (driver_select > 1)
            return;
        unsigned shift = 32 * driver_select;
        driver_features &= ~(0xffffffffull << shift);
        driver_features |= uint64_t(value) << shift;
    }

    void set_status(uint8_t value)
    {
        if (value == 0) {
            clear();
            viaduct_line(dev, 0);
            return;
        }
        bool is_refused = driver_features & ~virtio::FEATURES;
        status = is_refused ? value & ~virtio::FEATURES_OK : value;
    }

    // The interrupts of the configuration and of the queue.
    static constexpr unsigned VECTORS = 2;

    Wires w;
    viaduct_device *dev;
    VirtioQueue queue;
    virtio::Chain chain;
    std::vector<uint8_t> data;
    size_t done = 0;
    Phase phase = IDLE;
    uint64_t driver_features = 0;
    uint32_t feature_select = 0, driver_select = 0;
    uint16_t selected = 0, config_vector = virtio::NONE;
    uint8_t status = 0, isr = 0;
    bool is_rung = false;
};

} // namespace viaduct
