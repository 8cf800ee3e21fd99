// Packets of dwords on AXI4-Stream, as PCI Express blocks have them, with a bit of tkeep for each
// dword or for each byte. A packet begins with a beat and ends with tlast; where a stream of the
// design tells beginnings and ends in its sideband, a beat may hold the end of one and another.
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
    unsigned first_enables = 0, last_enables = 0, sequence = 0;
    // The BAR that it is for, if it is a request.
    int bar = -1;

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

// Where packets begin and end in a beat, in dwords; none where a stream does not tell.
struct Marks {
    unsigned starts = 0, ends = 0;
    unsigned start_at[2] = {}, end_at[2] = {};
};

// Bits `low` to `low + count - 1` of a port.
template <class T> inline unsigned bits_of(const T &port, unsigned low, unsigned count)
{
    const uint8_t *bytes = bytes_of(port);
    unsigned value = 0;
    for (unsigned n = 0; n < count; n++)
        value |= unsigned(bytes[(low + n) / 8] >> (low + n) % 8 & 1) << n;
    return value;
}

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
        s.tkeep() = ones(unsigned(len) * Stream::KEEP);
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
        is_asked = is_open = is_marked = false;
    }

    void drive(bool is_ready)
    {
        ready = is_ready;
        s.tready() = is_ready ? Stream::READY : 0;
    }

    // Calls `taken` with each packet that is whole now.
    template <class Taken> void sample(Taken taken)
    {
        is_asked = s.tvalid();
        if (!ready || !is_asked)
            return;
        uint32_t beat[DWORDS];
        std::memcpy(beat, bytes_of(s.tdata()), sizeof beat);
        Marks marks = s.marks();
        if (!marks.ends && (s.tlast() || !(marks.starts || is_marked))) {
            if (!is_open)
                s.enables(packet, 0);
            uint64_t keep = s.tkeep();
            for (unsigned n = 0; n < DWORDS; n++)
                if (keep >> n * Stream::KEEP & 1)
                    add(beat[n]);
            if (s.tlast())
                end(taken);
            return;
        }
        unsigned begun = 0, ended = 0;
        for (unsigned n = 0; n < DWORDS; n++) {
            if (begun < marks.starts && marks.start_at[begun] == n)
                s.enables(packet, begun++), is_open = is_marked = true;
            if (is_open)
                add(beat[n]);
            if (ended < marks.ends && marks.end_at[ended] == n)
                end(taken), ended++;
        }
    }

private:
    void add(uint32_t dword)
    {
        is_open = true;
        if (packet.dwords.size() < MOST)
            packet.dwords.push_back(dword);
    }

    template <class Taken> void end(Taken taken)
    {
        Packet whole = std::move(packet);
        packet = Packet();
        is_open = is_marked = false;
        taken(whole);
    }

    Stream s;
    Packet packet;
    bool ready = false, is_asked = false;
    // A packet has begun; it was the sideband that told.
    bool is_open = false, is_marked = false;
};

} // namespace viaduct
