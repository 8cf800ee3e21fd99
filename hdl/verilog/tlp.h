// Transaction layer packets as they are, on one stream each way: what the driver asks of BARs and
// what comes back from host memory on rx, what the design answers and asks on tx.
//
//     driver, memory --requests, completions--> rx --> design --> tx --> the same the other way
//
// A dword of a packet has its first byte in bits 31 to 24, in header (PCI Express 5.0, 2.2) and
// payload alike, and the first dword of a beat is the lowest one: so do the blocks of Xilinx's
// seventh series (PG054). A beat holds dwords of one packet. The device is 01:00.0, whatever number
// the driver's bus has, which no monitor tells.
#pragma once
#include "packets.h"
#include "transactions.h"

namespace viaduct {

// What the sideband of the seventh series tells, as far as it has room: the BAR, and at 128 bits
// beginning and end.
template <class Stream>
void tlp_sideband(Stream &s, const Packet &packet, bool is_first, bool is_last, unsigned len)
{
    uint32_t bits = packet.bar < 0 ? 0 : 4u << packet.bar;
    if (Stream::DATA_BITS == 128)
        bits |= (is_first ? 1u << 14 : 0) | (is_last ? 1u << 21 | (4 * len - 1) << 17 : 0);
    std::memcpy(bytes_of(s.tuser()), &bits, std::min<size_t>(Stream::USER_BYTES, sizeof bits));
}

template <class Wires> class TlpStreams {
public:
    TlpStreams(Wires wires, viaduct_device *dev, const Pace &pace, Link &link)
        : rx(wires.rx()), tx(wires.tx()), pace(pace), accesses(dev, pace), memory(dev, pace, link)
    {
    }

    bool has_accesses() const { return !accesses.is_empty(); }
    void push(Access &&access) { accesses.push(std::move(access)); }

    bool is_busy() const
    {
        return has_accesses() || rx.is_busy() || tx.is_busy() || memory.is_busy();
    }

    void clear()
    {
        accesses.clear();
        memory.clear();
        rx.clear(), tx.clear();
        is_asking = false;
        lines = 0;
    }

    void drive()
    {
        accesses.expire();
        memory.advance();
        if (!rx.is_busy()) {
            // Neither waits for the other for ever.
            Completion completion;
            bool has_completion = pace.lets() && memory.next(completion);
            if (has_completion)
                complete(completion);
            Request request;
            const uint8_t *payload;
            is_asking = accesses.next(request, payload);
            if (is_asking)
                ask(request, payload);
        }
        rx.drive();
        tx.drive(memory.has_room() && pace.lets());
    }

    void sample()
    {
        rx.sample();
        tx.sample([this](Packet &packet) { sent(packet); });
        if (is_asking && !rx.is_busy()) {
            is_asking = false;
            accesses.arrived();
        }
    }

private:
    // Fmt and Type, in one number (table 2-3): without the bit for addresses of 64 bits.
    enum Kind { MEMORY_READ = 0x00, MEMORY_WRITE = 0x40, IO_READ = 0x02, IO_WRITE = 0x42,
                ANSWER = 0x0a, ANSWER_DATA = 0x4a };
    static constexpr unsigned WIDE = 0x20, DEVICE = 0x0100;

    void ask(const Request &request, const uint8_t *payload)
    {
        bool is_wide = request.address >> 32;
        unsigned kind = (request.is_io ? IO_READ : MEMORY_READ) + (request.is_write ? 0x40 : 0);
        Packet packet;
        packet.bar = int(request.bar);
        packet.dwords = {(kind | (is_wide ? WIDE : 0)) << 24 | request.dwords,
                         request.tag << 8 | request.last << 4 | request.first};
        if (is_wide)
            packet.dwords.push_back(uint32_t(request.address >> 32));
        packet.dwords.push_back(uint32_t(request.address));
        if (request.is_write)
            append(packet, payload, request.dwords);
        rx.push(std::move(packet));
    }

    void complete(const Completion &completion)
    {
        Packet packet;
        unsigned kind = completion.dwords ? ANSWER_DATA : ANSWER;
        // A byte count of 4096 is told as 0.
        packet.dwords = {kind << 24 | completion.dwords,
                         completion.status << 13 | (completion.count & 0xfff),
                         DEVICE << 16 | completion.tag << 8 | unsigned(completion.address & 0x7f)};
        append(packet, completion.data, completion.dwords);
        rx.push(std::move(packet));
    }

    static void append(Packet &packet, const uint8_t *data, unsigned dwords)
    {
        for (unsigned n = 0; n < dwords; n++) {
            uint32_t dword;
            std::memcpy(&dword, data + 4 * n, sizeof dword);
            packet.dwords.push_back(__builtin_bswap32(dword));
        }
    }

    // A packet of the design's: what it is, and whether it is whole.
    void sent(Packet &packet)
    {
        auto &dwords = packet.dwords;
        if (dwords.size() < 3)
            return memory.complain("a packet of fewer than three dwords on tx");
        unsigned kind = dwords[0] >> 24, count = dwords[0] & 0x3ff;
        size_t header = kind & WIDE ? 4 : 3, payload = kind & 0x40 ? (count ? count : 1024) : 0;
        bool has_digest = dwords[0] >> 15 & 1;
        if (dwords.size() != header + payload + has_digest)
            return memory.complain("a packet on tx that is longer or shorter than it says");
        for (size_t n = header; n < header + payload; n++)
            dwords[n] = __builtin_bswap32(dwords[n]);
        const auto *data = reinterpret_cast<const uint8_t *>(dwords.data() + header);
        bool is_poisoned = dwords[0] >> 14 & 1;
        if (is_poisoned && payload)
            return memory.complain("a poisoned packet on tx: lost");
        if (kind == ANSWER || kind == ANSWER_DATA)
            return accesses.answered(dwords[2] >> 8 & 0xff, dwords[1] >> 13 & 7, dwords[2] & 0x7f,
                                     byte_count(dwords[1]), data, 4 * payload);
        if ((kind & ~7u) == (0x10 | WIDE))
            return message(dwords[1] & 0xff);
        requested(kind, dwords, data);
    }

    void requested(unsigned kind, const std::vector<uint32_t> &dwords, const uint8_t *data)
    {
        unsigned count = dwords[0] & 0x3ff;
        Request request;
        request.dwords = count ? count : 1024;
        request.first = dwords[1] & 15;
        request.last = dwords[1] >> 4 & 15;
        request.tag = dwords[1] >> 8 & 0xff;
        request.address = dwords[2] & ~3u;
        if (kind & WIDE)
            request.address = uint64_t(dwords[2]) << 32 | (dwords[3] & ~3u);
        if ((request.dwords == 1) != (request.last == 0) || (request.dwords > 1 && !request.first))
            return memory.complain("a request on tx with byte enables that can't be: lost");
        if ((kind & ~WIDE) == MEMORY_WRITE)
            return memory.write(request, data);
        if ((kind & ~WIDE) == MEMORY_READ)
            return memory.read(request);
        memory.complain("a request on tx that is for neither memory nor a line: refused");
        memory.refuse(request);
    }

    // Assert_INTA to Deassert_INTD (PCI Express 5.0, 2.2.8.1): a function here has one line.
    void message(unsigned code)
    {
        if ((code & ~7u) != 0x20)
            return memory.complain("a message on tx that is not of a line: lost");
        unsigned line = 1u << (code & 3);
        lines = code & 4 ? lines & ~line : lines | line;
        memory.set_line(lines != 0);
    }

    static unsigned byte_count(uint32_t dword) { return dword & 0xfff ? dword & 0xfff : 4096; }

    PacketSource<typename Wires::Rx> rx;
    PacketSink<typename Wires::Tx> tx;
    const Pace &pace;
    Accesses accesses;
    HostMemory memory;
    // The driver's request is among what goes over rx now.
    bool is_asking = false;
    unsigned lines = 0;
};

} // namespace viaduct
