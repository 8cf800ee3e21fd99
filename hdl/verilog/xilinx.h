// The four streams of Xilinx's PCI Express hard blocks (UltraScale+, PG213, 64 to 512 bits,
// dword-aligned, no straddling): a design for such a block takes accesses of BARs on CQ, answers
// them on CC, reaches host memory on RQ, and gets what it has read on RC.
//
//     driver --access--> CQ --> design --> CC --answer--> driver
//     memory <--requests-- RQ <-- design <-- RC <--completions-- memory
//
// Completions of one read come in order, cut at multiples of 256 bytes. A read without memory gets
// one completion with status UR and error code 2.
#pragma once
#include <cstdio>

#include "access.h"
#include "packets.h"
#include "pace.h"
#include "viaduct.h"

namespace viaduct {

// Sideband bits of a beat (PG213, tables of the tuser signals).
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
    // Bytes of the payload: what follows the header of four or three dwords.
    unsigned header = is_first ? (is_cq ? 4 : 3) : 0;
    uint64_t payload = ones(4 * len) & ~ones(4 * std::min(header, len));
    set(is_cq ? (WIDE ? 16 : 8) : 0, payload);
    set(is_cq ? (WIDE ? 80 : 40) : (WIDE ? 64 : 32), is_first);
    if (is_last && WIDE)
        set(is_cq ? 86 : 76, 1), set(is_cq ? 88 : 80, len - 1);
    else if (is_last && !is_cq)
        set(34, 1 | (len - 1) << 1);
    std::memcpy(bytes_of(s.tuser()), bits, Stream::USER_BYTES);
}

template <class Wires> class XilinxPcie {
public:
    XilinxPcie(Wires wires, viaduct_device *dev, const Pace &pace)
        : cq(wires.cq()), cc(wires.cc()), rq(wires.rq()), rc(wires.rc()), dev(dev), pace(pace)
    {
    }

    bool has_accesses() const { return !accesses.empty(); }

    bool is_busy() const
    {
        return has_accesses() || cq.is_busy() || cc.is_busy() || rq.is_busy() || rc.is_busy() ||
               !reads.empty();
    }

    void push(Access &&access)
    {
        accesses.push_back(std::move(access));
        if (accesses.size() == 1)
            begin();
    }

    void clear()
    {
        for (Access &access : accesses)
            access.finish(false);
        accesses.clear();
        reads.clear();
        cq.clear(), cc.clear(), rq.clear(), rc.clear();
        done = 0;
    }

    void drive()
    {
        cq.drive();
        rc.drive();
        cc.drive(pace.lets());
        rq.drive(reads.size() + rc.waiting() < MOST_READS && pace.lets());
    }

    void sample()
    {
        Packet packet;
        cq.sample();
        rc.sample();
        if (cc.sample(packet))
            answered(packet);
        if (rq.sample(packet))
            requested(packet);
        while (!reads.empty() && reads.front().is_there && pace.is_over(reads.front().due)) {
            complete(reads.front());
            reads.pop_front();
        }
        if (!accesses.empty() && accesses.front().is_write && !cq.is_busy())
            finish_piece(true);
    }

private:
    enum Type { READ = 0, WRITE = 1 };
    static constexpr size_t LARGEST = 128, MOST_READS = 64, RCB = 256;

    // ---- accesses: one at a time, in pieces that stay within 128 bytes ----

    void begin()
    {
        Access &access = accesses.front();
        uint64_t at = access.offset + done;
        piece = std::min<size_t>(access.len - done, LARGEST - at % LARGEST);
        unsigned skip = at % 4, dwords = unsigned((skip + piece + 3) / 4);
        unsigned end = (skip + unsigned(piece) - 1) % 4 + 1;
        Packet packet;
        packet.dwords.assign(4 + (access.is_write ? dwords : 0), 0);
        packet.first_enables = unsigned(ones(4) << skip & 15);
        packet.last_enables = dwords > 1 ? unsigned(ones(end)) : 0;
        if (dwords == 1)
            packet.first_enables &= unsigned(ones(end));
        uint64_t address = base(access.bar) + at;
        packet.set(63, 2, address >> 2);
        packet.set(74, 64, dwords);
        packet.set(78, 75, access.is_write ? WRITE : READ);
        packet.set(103, 96, tag);
        packet.set(114, 112, access.bar);
        if (access.is_write)
            std::memcpy(reinterpret_cast<uint8_t *>(&packet.dwords[4]) + skip,
                        access.data() + done, piece);
        got = 0;
        cq.push(std::move(packet));
    }

    // Where the driver has put the BAR.
    uint64_t base(unsigned bar) const
    {
        uint32_t low = 0, high = 0;
        viaduct_get_config(dev, 0x10 + 4 * bar, &low, 4);
        if ((low & 7) == 4)
            viaduct_get_config(dev, 0x14 + 4 * bar, &high, 4);
        return uint64_t(high) << 32 | (low & (low & 1 ? ~3u : ~15u));
    }

    void answered(const Packet &packet)
    {
        if (accesses.empty() || accesses.front().is_write || packet.dwords.size() < 3 ||
            packet.field(71, 64) != tag)
            return warn("a completion on CC that nobody waits for");
        Access &access = accesses.front();
        if (packet.field(45, 43) != 0)
            return finish_piece(false);
        unsigned skip = unsigned(packet.field(6, 0) % 4);
        size_t len = std::min(packet.dwords.size() - 3, size_t(packet.field(42, 32))) * 4;
        len = len > skip ? std::min(len - skip, piece - got) : 0;
        const uint8_t *data = reinterpret_cast<const uint8_t *>(packet.dwords.data() + 3);
        std::memcpy(access.data() + done + got, data + skip, len);
        got += len;
        if (got == piece)
            finish_piece(true);
        else if (len == 0)
            finish_piece(false);
    }

    void finish_piece(bool is_good)
    {
        Access &access = accesses.front();
        tag = (tag + 1) % 32;
        done += piece;
        if (is_good && done < access.len)
            return begin();
        access.finish(is_good);
        accesses.pop_front();
        done = 0;
        if (!accesses.empty())
            begin();
    }

    // ---- host memory ----

    struct Read {
        uint64_t address = 0;
        unsigned tag = 0, dwords = 0, skip = 0, len = 0;
        bool is_there = false, is_bad = false;
        uint64_t due = 0;
        std::vector<uint8_t> data;
    };

    void requested(Packet &packet)
    {
        if (packet.dwords.size() < 4)
            return warn("a request on RQ without its four dwords");
        size_t count = packet.field(74, 64), type = packet.field(78, 75);
        uint64_t address = packet.field(31, 2) << 2 | packet.field(63, 32) << 32;
        if (type == WRITE && packet.dwords.size() - 4 == count)
            return store(packet, address, unsigned(count));
        if (type != READ || packet.dwords.size() != 4 || count == 0 || count > 1024)
            return warn("a request on RQ that is neither a memory read nor a memory write");
        reads.emplace_back();
        Read &read = reads.back();
        // Bytes that are not enabled at either end are not counted.
        unsigned first = packet.first_enables, last = count > 1 ? packet.last_enables : first;
        read.skip = first ? unsigned(__builtin_ctz(first)) : 0;
        unsigned end = last ? 32 - unsigned(__builtin_clz(last)) : 1;
        read.len = unsigned(4 * (count - 1)) + end - read.skip;
        read.address = address, read.dwords = unsigned(count);
        read.tag = unsigned(packet.field(103, 96));
        read.due = pace.due();
        read.data.resize(4 * count);
        int status = viaduct_host_read_start(dev, address, read.data.data(), read.data.size(),
                                             read_done, &read);
        if (status)
            read_done(&read, status);
    }

    static void read_done(void *arg, int status)
    {
        Read &read = *static_cast<Read *>(arg);
        read.is_there = true;
        read.is_bad = status != 0;
    }

    void complete(const Read &read)
    {
        size_t at = 0, left = read.len;
        do {
            size_t end = read.is_bad ? at : std::min<size_t>(read.data.size(),
                RCB - (read.address + at) % RCB + at);
            size_t skip = at ? 0 : read.skip;
            size_t len = std::min(left, end - at - (read.is_bad ? 0 : skip));
            Packet packet;
            packet.dwords.assign(3 + (end - at) / 4, 0);
            packet.set(11, 0, (read.address + at + skip) & 0xfff);
            packet.set(15, 12, read.is_bad ? 2 : 0);
            packet.set(28, 16, left);
            packet.set(30, 30, read.is_bad || end == read.data.size());
            packet.set(42, 32, (end - at) / 4);
            packet.set(45, 43, read.is_bad ? 1 : 0);
            packet.set(71, 64, read.tag);
            std::memcpy(packet.dwords.data() + 3, read.data.data() + at, end - at);
            rc.push(std::move(packet));
            left -= len;
            at = end;
        } while (!read.is_bad && at < read.data.size());
    }

    void store(const Packet &packet, uint64_t address, unsigned count)
    {
        const uint8_t *data = reinterpret_cast<const uint8_t *>(packet.dwords.data() + 4);
        auto is_on = [&](size_t n) {
            unsigned enables = n < 4 ? packet.first_enables
                             : n >= 4 * (count - 1) ? packet.last_enables : 15;
            return enables >> n % 4 & 1;
        };
        // Only the first and the last dword may have holes.
        for (size_t n = 0, len = 4 * size_t(count); n < len;) {
            size_t end = n;
            while (end < len && is_on(end))
                end++;
            if (end > n)
                store_run(address + n, data + n, end - n);
            n = end + 1;
        }
    }

    void store_run(uint64_t address, const uint8_t *data, size_t len)
    {
        // Lent until the end of the write, which is posted: the design does not hear of it.
        auto *kept = new std::vector<uint8_t>(data, data + len);
        if (viaduct_host_write_start(dev, address, kept->data(), len, write_done, kept))
            delete kept;
    }

    static void write_done(void *kept, int) { delete static_cast<std::vector<uint8_t> *>(kept); }

    void warn(const char *why)
    {
        if (!is_warned)
            viaduct_log(dev, 1, why);
        is_warned = true;
    }

    PacketSource<typename Wires::Cq> cq;
    PacketSink<typename Wires::Cc> cc;
    PacketSink<typename Wires::Rq> rq;
    PacketSource<typename Wires::Rc> rc;
    viaduct_device *dev;
    const Pace &pace;
    std::deque<Access> accesses;
    std::deque<Read> reads;
    // Of the first access: bytes done, bytes of the piece on its way, of those that have come.
    size_t done = 0, piece = 0, got = 0;
    unsigned tag = 0;
    bool is_warned = false;
};

} // namespace viaduct
