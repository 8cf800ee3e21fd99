// The four streams of Xilinx's PCI Express hard blocks (UltraScale and UltraScale+: PG156, PG213;
// 64 to 512 bits, dword-aligned): a design for such a block takes accesses of BARs on CQ, answers
// them on CC, reaches host memory on RQ, and gets what it has read on RC.
//
//     driver --access--> CQ --> design --> CC --answer--> driver
//     memory <--requests-- RQ <-- design <-- RC <--completions-- memory
//
// On CQ and RC a packet begins with a beat: a block may straddle, and need not. On CC and RQ of 512
// bits a beat may hold two packets, if the design's tuser says where they begin and end. A read
// without memory gets one completion with status UR and error code 2. A sequence number goes back
// when its request was taken. Not there: parity, TPH, tags that the block gives out.
#pragma once
#include "packets.h"
#include "transactions.h"

namespace viaduct {

// Sideband bits of a beat to the design (the tables of the tuser signals).
template <class Stream>
void xilinx_sideband(Stream &s, const Packet &packet, bool is_cq, bool is_first, bool is_last,
                     unsigned len)
{
    constexpr bool WIDE = Stream::DATA_BITS == 512;
    uint8_t bits[24] = {};
    auto set = [&bits](unsigned low, uint64_t value) {
        for (; value; low++, value >>= 1)
            bits[low / 8] |= uint8_t((value & 1) << low % 8);
    };
    if (is_cq && is_first) {
        set(0, packet.first_enables);
        set(WIDE ? 8 : 4, packet.last_enables);
    }
    // Bytes of the payload that count: it follows the header of four or three dwords.
    unsigned header = is_first ? (is_cq ? 4 : 3) : 0;
    uint64_t payload = ones(4 * len) & ~ones(4 * std::min(header, len));
    if (is_first && len > header)
        payload &= ~(uint64_t(~packet.first_enables & 15) << 4 * header);
    if (is_last && len > header && packet.last_enables)
        payload &= ~(uint64_t(~packet.last_enables & 15) << 4 * (len - 1));
    set(is_cq ? (WIDE ? 16 : 8) : 0, payload);
    set(is_cq ? (WIDE ? 80 : 40) : (WIDE ? 64 : 32), is_first);
    if (is_last && WIDE)
        set(is_cq ? 86 : 76, 1), set(is_cq ? 88 : 80, len - 1);
    else if (is_last && !is_cq)
        set(34, 1 | (len - 1) << 1);
    std::memcpy(bytes_of(s.tuser()), bits, std::min<size_t>(Stream::USER_BYTES, sizeof bits));
}

// Where packets of the design begin and end: the same in the tuser of CC and, 20 bits up, of RQ.
template <class Stream> Marks xilinx_marks(Stream &s, unsigned low)
{
    Marks marks;
    if (Stream::DATA_BITS != 512)
        return marks;
    for (unsigned n = 0; n < 2; n++) {
        marks.starts += bits_of(s.tuser(), low + n, 1);
        marks.start_at[n] = 4 * bits_of(s.tuser(), low + 2 + 2 * n, 2);
        marks.ends += bits_of(s.tuser(), low + 6 + n, 1);
        marks.end_at[n] = bits_of(s.tuser(), low + 8 + 4 * n, 4);
    }
    return marks;
}

// What RQ's tuser says of the packet that begins first or second in a beat.
template <class Stream> void xilinx_enables(Stream &s, Packet &packet, unsigned which)
{
    constexpr bool WIDE = Stream::DATA_BITS == 512;
    packet.first_enables = bits_of(s.tuser(), 4 * which, 4);
    packet.last_enables = bits_of(s.tuser(), WIDE ? 8 + 4 * which : 4, 4);
    packet.sequence = bits_of(s.tuser(), WIDE ? 61 + 6 * which : 24, WIDE ? 6 : 4);
    if (!WIDE && Stream::USER_BITS >= 62)
        packet.sequence |= bits_of(s.tuser(), 60, 2) << 4;
}

template <class Wires> class XilinxPcie {
public:
    XilinxPcie(Wires wires, viaduct_device *dev, const Pace &pace, Link &link)
        : w(wires), cq(wires.cq()), cc(wires.cc()), rq(wires.rq()), rc(wires.rc()), pace(pace),
          accesses(dev, pace), memory(dev, pace, link)
    {
    }

    bool has_accesses() const { return !accesses.is_empty(); }
    void push(Access &&access) { accesses.push(std::move(access)); }

    bool is_busy() const
    {
        return has_accesses() || cq.is_busy() || cc.is_busy() || rq.is_busy() || rc.is_busy() ||
               memory.is_busy() || !sequences.empty();
    }

    void clear()
    {
        accesses.clear();
        memory.clear();
        cq.clear(), cc.clear(), rq.clear(), rc.clear();
        sequences.clear();
        credits = 0;
    }

    void drive()
    {
        accesses.expire();
        memory.advance();
        Request request;
        const uint8_t *payload;
        if (!cq.is_busy() && may_ask() && accesses.next(request, payload))
            ask(request, payload);
        Completion completion;
        if (!rc.is_busy() && pace.lets() && memory.next(completion))
            complete(completion);
        cq.drive();
        rc.drive();
        cc.drive(pace.lets());
        rq.drive(memory.has_room() && pace.lets());
        w.sequence_valid() = !sequences.empty();
        if (!sequences.empty()) {
            w.sequence() = sequences.front();
            sequences.pop_front();
        }
    }

    void sample()
    {
        bool was_asked = cq.is_busy();
        cq.sample();
        rc.sample();
        cc.sample([this](const Packet &packet) { answered(packet); });
        rq.sample([this](const Packet &packet) { requested(packet); });
        if (was_asked && !cq.is_busy())
            accesses.arrived();
        if (Wires::HAS_CREDITS)
            credits = std::min(32u, credits + __builtin_popcount(unsigned(w.credits()) & 3));
    }

private:
    // Types of requests in descriptors.
    enum Type { READ = 0, WRITE = 1, IO_READ = 2, IO_WRITE = 3 };

    // What is to be completed waits for a design that asks for it by pcie_cq_np_req.
    bool may_ask() const { return !Wires::HAS_CREDITS || credits || accesses.is_write(); }

    void ask(const Request &request, const uint8_t *payload)
    {
        Packet packet;
        unsigned dwords = request.is_write ? request.dwords : 0;
        packet.dwords.assign(4 + dwords, 0);
        packet.first_enables = request.first;
        packet.last_enables = request.last;
        packet.set(63, 2, request.address >> 2);
        packet.set(74, 64, request.dwords);
        packet.set(78, 75, (request.is_io ? IO_READ : READ) + request.is_write);
        packet.set(103, 96, request.tag);
        packet.set(114, 112, request.bar);
        packet.set(120, 115, Wires::bar_bits(request.bar));
        std::memcpy(packet.dwords.data() + 4, payload, 4 * dwords);
        if (!request.is_write || request.is_io)
            credits -= credits > 0;
        cq.push(std::move(packet));
    }

    void answered(const Packet &packet)
    {
        if (packet.dwords.size() < 3)
            return memory.complain("a packet on CC without its three dwords");
        size_t dwords = std::min(packet.dwords.size() - 3, size_t(packet.field(42, 32)));
        accesses.answered(unsigned(packet.field(71, 64)), unsigned(packet.field(45, 43)),
                          unsigned(packet.field(6, 0)), unsigned(packet.field(28, 16)),
                          reinterpret_cast<const uint8_t *>(packet.dwords.data() + 3), 4 * dwords);
    }

    void requested(const Packet &packet)
    {
        if (packet.dwords.size() < 4)
            return memory.complain("a packet on RQ without its four dwords");
        if (Wires::HAS_SEQUENCE)
            sequences.push_back(packet.sequence);
        Request request;
        request.dwords = unsigned(packet.field(74, 64));
        request.address = packet.field(31, 2) << 2 | packet.field(63, 32) << 32;
        request.first = packet.first_enables;
        request.last = request.dwords > 1 ? packet.last_enables : 0;
        request.tag = unsigned(packet.field(103, 96));
        size_t type = packet.field(78, 75), payload = packet.dwords.size() - 4;
        bool is_whole = request.dwords > 0 && request.dwords <= 1024;
        if (type == WRITE && is_whole && payload == request.dwords)
            memory.write(request, reinterpret_cast<const uint8_t *>(packet.dwords.data() + 4));
        else if (type == READ && is_whole && payload == 0)
            memory.read(request);
        else
            memory.complain("a request on RQ that is neither a memory read nor a memory write, or "
                            "whose length is not its dword count");
    }

    void complete(const Completion &completion)
    {
        Packet packet;
        packet.dwords.assign(3 + completion.dwords, 0);
        packet.set(11, 0, completion.address & 0xfff);
        packet.set(15, 12, completion.status ? 2 : 0);
        packet.set(28, 16, completion.count);
        packet.set(30, 30, completion.is_last);
        packet.set(42, 32, completion.dwords);
        packet.set(45, 43, completion.status);
        packet.set(71, 64, completion.tag);
        std::memcpy(packet.dwords.data() + 3, completion.data, 4 * completion.dwords);
        packet.first_enables = 15u << completion.address % 4 & 15;
        unsigned end = unsigned(completion.address % 4) + completion.count;
        if (end < 4 * completion.dwords)
            (completion.dwords > 1 ? packet.last_enables : packet.first_enables) &=
                15u >> (4 * completion.dwords - end);
        rc.push(std::move(packet));
    }

    Wires w;
    PacketSource<typename Wires::Cq> cq;
    PacketSink<typename Wires::Cc> cc;
    PacketSink<typename Wires::Rq> rq;
    PacketSource<typename Wires::Rc> rc;
    const Pace &pace;
    Accesses accesses;
    HostMemory memory;
    // Sequence numbers to give back, one a cycle.
    std::deque<unsigned> sequences;
    unsigned credits = 0;
};

} // namespace viaduct
