// Packets of dwords on AXI4-Stream, with a bit of tkeep for each dword, as PCI Express hard blocks
// have them: a packet begins with a beat, and ends with tlast.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <vector>

#include "bits.h"

namespace viaduct {

// A packet and the sideband of its first beat.
struct Packet {
    std::vector<uint32_t> dwords;
    unsigned first_enables = 0, last_enables = 0;

    // Bits `low` to `high` of the header.
    uint64_t field(unsigned high, unsigned low) const
    {
        uint64_t word = dwords[low / 32];
        if (high / 32 != low / 32)
            word |= uint64_t(dwords[high / 32]) << 32;
        return word >> low % 32 & ones(high - low + 1);
    }

    void set(unsigned high, unsigned low, uint64_t value)
    {
        for (unsigned bit = low; bit <= high; bit++)
            dwords[bit / 32] |= uint32_t(value >> (bit - low) & 1) << bit % 32;
    }
};

// Towards the design.
template <class Stream> class PacketSource {
public:
    static constexpr unsigned DWORDS = Stream::DATA_BITS / 32;

    explicit PacketSource(Stream s) : s(s) {}

    bool is_busy() const { return !packets.empty(); }
    size_t waiting() const { return packets.size(); }
    void push(Packet &&packet) { packets.push_back(std::move(packet)); }

    void clear()
    {
        packets.clear();
        done = 0;
        is_shown = false;
    }

    void drive()
    {
        s.tvalid() = is_shown = !packets.empty();
        if (!is_shown)
            return;
        const Packet &packet = packets.front();
        size_t len = std::min<size_t>(DWORDS, packet.dwords.size() - done);
        uint32_t beat[DWORDS] = {};
        std::copy_n(&packet.dwords[done], len, beat);
        std::memcpy(bytes_of(s.tdata()), beat, sizeof beat);
        s.tkeep() = ones(len);
        bool is_last = done + len == packet.dwords.size();
        s.tlast() = is_last;
        s.sideband(packet, done == 0, is_last, unsigned(len));
    }

    void sample()
    {
        if (!is_shown || !s.tready())
            return;
        done += DWORDS;
        if (done >= packets.front().dwords.size()) {
            packets.pop_front();
            done = 0;
        }
    }

private:
    Stream s;
    std::deque<Packet> packets;
    size_t done = 0;
    bool is_shown = false;
};

// From the design.
template <class Stream> class PacketSink {
public:
    static constexpr unsigned DWORDS = Stream::DATA_BITS / 32;
    // More than the largest packet of PCI Express has: a design that never sets tlast is cut.
    static constexpr size_t MOST = 1100;

    explicit PacketSink(Stream s) : s(s) {}

    // Also while the design waits to be let in: then it stands still, but not for long.
    bool is_busy() const { return is_asked || !packet.dwords.empty(); }

    void clear()
    {
        packet = Packet();
        is_asked = false;
    }

    void drive(bool is_ready)
    {
        ready = is_ready;
        s.tready() = is_ready ? Stream::READY : 0;
    }

    // Whether `into` is a packet now.
    bool sample(Packet &into)
    {
        is_asked = s.tvalid();
        if (!ready || !is_asked)
            return false;
        if (packet.dwords.empty())
            s.enables(packet);
        uint32_t beat[DWORDS];
        std::memcpy(beat, bytes_of(s.tdata()), sizeof beat);
        uint64_t keep = s.tkeep();
        for (unsigned n = 0; n < DWORDS && packet.dwords.size() < MOST; n++)
            if (keep >> n & 1)
                packet.dwords.push_back(beat[n]);
        if (!s.tlast())
            return false;
        into = std::move(packet);
        packet = Packet();
        return true;
    }

private:
    Stream s;
    Packet packet;
    bool ready = false, is_asked = false;
};

} // namespace viaduct
