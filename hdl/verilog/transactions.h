// What goes over a PCI Express link in transactions, whatever its packets look like: accesses of
// BARs become requests, and are answered by completions; requests for host memory are done, and
// answered in pieces.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <list>
#include <set>
#include <vector>

#include "access.h"
#include "bits.h"
#include "link.h"
#include "pace.h"
#include "viaduct.h"

namespace viaduct {

// A request for memory or I/O ports, of `dwords` from a multiple of four on. The enables are those
// of the first and the last dword; the last has none if there is one dword.
struct Request {
    bool is_write = false, is_io = false;
    unsigned bar = 0;
    uint64_t address = 0;
    unsigned dwords = 0, first = 0, last = 0, tag = 0;

    // Bytes before the first that is enabled.
    unsigned skip() const { return first ? unsigned(__builtin_ctz(first)) : 0; }

    // Bytes from the first that is enabled to the last one: what a completion's byte count says.
    unsigned len() const
    {
        unsigned enables = dwords > 1 ? last : first;
        unsigned end = enables ? 32 - unsigned(__builtin_clz(enables)) : 1;
        return 4 * (dwords - 1) + end - skip();
    }
};

// Lines in the port's log, each of them once.
class Complaints {
public:
    explicit Complaints(viaduct_device *dev) : dev(dev) {}

    void add(const char *why)
    {
        if (told.insert(why).second)
            viaduct_log(dev, 1, why);
    }

private:
    viaduct_device *dev;
    std::set<const char *> told;
};

// What a driver does: one access at a time, in pieces that stay within 128 bytes.
class Accesses {
public:
    Accesses(viaduct_device *dev, const Pace &pace) : dev(dev), pace(pace), complaints(dev) {}

    bool is_empty() const { return queue.empty(); }
    // Whether the next request is a write.
    bool is_write() const { return !queue.empty() && queue.front().is_write; }

    void push(Access &&access)
    {
        if (queue.empty())
            since = pace.cycle;
        queue.push_back(std::move(access));
    }

    void clear()
    {
        for (Access &access : queue)
            access.finish(false);
        queue.clear();
        done = 0;
        is_sent = false;
    }

    // In each cycle, whether or not the design takes requests: those behind are to have their turn.
    void expire()
    {
        if (queue.empty() || pace.cycle - since <= PATIENCE)
            return;
        complaints.add(is_sent ? "the design has not completed a request in time"
                               : "the design has not taken a request in time");
        finish_piece(false);
    }

    // Whether there is a request to send: the design gets `into`, and `payload` if it is a write.
    bool next(Request &into, const uint8_t *&payload)
    {
        if (queue.empty() || is_sent)
            return false;
        const Access &access = queue.front();
        uint64_t at = access.offset + done;
        piece = std::min<size_t>(access.len - done, LARGEST - at % LARGEST);
        unsigned skip = at % 4;
        uint32_t low = 0, high = 0;
        viaduct_get_config(dev, 0x10 + 4 * access.bar, &low, 4);
        if ((low & 7) == 4)
            viaduct_get_config(dev, 0x14 + 4 * access.bar, &high, 4);
        request.is_io = low & 1;
        if (request.is_io)
            piece = std::min<size_t>(piece, 4 - skip);
        // Where the driver has put the BAR.
        uint64_t base = uint64_t(high) << 32 | (low & (request.is_io ? ~3u : ~15u));
        unsigned end = (skip + unsigned(piece) - 1) % 4 + 1;
        request.is_write = access.is_write;
        request.bar = access.bar;
        request.address = (base + at) & ~3ull;
        request.dwords = unsigned(skip + piece + 3) / 4;
        request.first = unsigned(ones(4) << skip & 15);
        request.last = request.dwords > 1 ? unsigned(ones(end)) : 0;
        if (request.dwords == 1)
            request.first &= unsigned(ones(end));
        request.tag = (request.tag + 1) % 32;
        if (access.is_write) {
            std::memset(words, 0, sizeof words);
            std::memcpy(words + skip, queue.front().data() + done, piece);
        }
        payload = words;
        got = 0;
        is_sent = true;
        since = pace.cycle;
        into = request;
        return true;
    }

    // A posted write has reached the design.
    void arrived()
    {
        if (is_sent && request.is_write && !request.is_io)
            finish_piece(true);
    }

    // A completion: `low` is its lower address, `count` its byte count, `data` its dwords.
    void answered(unsigned tag, unsigned status, unsigned low, unsigned count, const uint8_t *data,
                  size_t len)
    {
        bool is_posted = request.is_write && !request.is_io;
        if (!is_sent || is_posted || tag != request.tag)
            return complaints.add("a completion from the design that nobody waits for");
        if (status != 0)
            return finish_piece(false);
        if (request.is_write)
            return finish_piece(true);
        unsigned skip = low % 4;
        if (count != piece - got || low % 128 != (request.address + request.skip() + got) % 128)
            complaints.add("a completion from the design whose byte count or lower address is "
                           "not that of what was asked for");
        len = len > skip ? std::min(len - skip, piece - got) : 0;
        std::memcpy(queue.front().data() + done + got, data + skip, len);
        got += len;
        if (got == piece)
            finish_piece(true);
        else if (len == 0)
            finish_piece(false);
    }

private:
    void finish_piece(bool is_good)
    {
        Access &access = queue.front();
        is_sent = false;
        since = pace.cycle;
        done += piece;
        if (is_good && done < access.len)
            return;
        access.finish(is_good);
        queue.pop_front();
        done = 0;
    }

    static constexpr size_t LARGEST = 128;
    // Cycles. The port has long told the driver that there is no answer.
    static constexpr uint64_t PATIENCE = 1 << 20;

    viaduct_device *dev;
    const Pace &pace;
    Complaints complaints;
    std::deque<Access> queue;
    Request request;
    // Of the first access: bytes done, bytes of the piece on its way, of those that have come.
    size_t done = 0, piece = 0, got = 0;
    // When it was sent or, until then, could have been.
    uint64_t since = 0;
    bool is_sent = false;
    uint8_t words[LARGEST + 4] = {};
};

// A part of the answer to a read, or all of it.
struct Completion {
    unsigned tag = 0;
    // 0, or 1 for an unsupported request, which has no data.
    unsigned status = 0;
    // Of the first byte; how many are to come, with this one.
    uint64_t address = 0;
    unsigned count = 0;
    bool is_last = false;
    unsigned dwords = 0;
    const uint8_t *data = nullptr;
};

// Host memory, by requests of the design. Without stalls reads are answered in order, in pieces as
// long as may be; with stalls in any order, in pieces of any length that is allowed.
class HostMemory {
public:
    HostMemory(viaduct_device *dev, const Pace &pace, Link &link)
        : dev(dev), pace(pace), link(link), complaints(dev)
    {
    }

    bool is_busy() const { return !reads.empty() || !writes.empty(); }
    // As many reads as there are tags: a design that uses each once never waits here.
    bool has_room() const { return reads.size() < 256 && writes.size() < 256; }
    void complain(const char *why) { complaints.add(why); }

    void clear()
    {
        reads.clear();
        for (const Write &write : writes)
            link.writes_done += !write.is_interrupt();
        writes.clear();
        if (is_raised)
            viaduct_line(dev, is_raised = false);
    }

    // Whether the design's lines are up, once the writes before are done.
    void set_line(bool up)
    {
        writes.emplace_back();
        writes.back().line = up;
        advance();
    }

    void read(const Request &request)
    {
        if (crosses(request))
            return complaints.add("a read across a multiple of 4096 bytes: not answered");
        if (4 * request.dwords > link.largest_request())
            complaints.add("a read that is longer than Max_Read_Request_Size");
        for (const Read &other : reads)
            if (other.request.tag == request.tag)
                complaints.add("a read with a tag that is in use");
        reads.emplace_back();
        Read &read = reads.back();
        read.request = request;
        read.due = pace.due();
        read.data.resize(4 * request.dwords);
        start();
    }

    // A request that is answered, and is not one that host memory does.
    void refuse(const Request &request)
    {
        reads.emplace_back();
        Read &read = reads.back();
        read.request = request;
        read.is_started = read.is_there = read.is_bad = true;
        read.due = pace.due();
    }

    void write(const Request &request, const uint8_t *data)
    {
        size_t len = 4 * size_t(request.dwords);
        if (crosses(request))
            return complaints.add("a write across a multiple of 4096 bytes: lost");
        if (len > link.largest_payload())
            return complaints.add("a write that is longer than Max_Payload_Size: lost");
        uint32_t first = 0;
        std::memcpy(&first, data, sizeof first);
        int vector = len == 4 ? link.msi_vector(request.address, first) : -1;
        if (vector >= 0) {
            writes.emplace_back();
            writes.back().vector = vector;
            return advance();
        }
        auto is_on = [&](size_t n) {
            unsigned enables = n < 4 ? request.first : n >= len - 4 ? request.last : 15;
            return enables >> n % 4 & 1;
        };
        // Only the first and the last dword may have holes.
        for (size_t n = 0; n < len;) {
            size_t end = n;
            while (end < len && is_on(end))
                end++;
            if (end > n)
                write_run(request.address + n, data + n, end - n);
            n = end + 1;
        }
        advance();
    }

    // Writes, in order; an interrupt waits for those before it. In each cycle.
    void advance()
    {
        size_t n = 0;
        for (Write &write : writes) {
            if (write.is_interrupt() || n++ == MOST_WRITES)
                break;
            if (write.is_started)
                continue;
            write.is_started = true;
            // Posted: the design does not hear how it ends.
            if (viaduct_host_write_start(dev, write.address, write.data.data(), write.data.size(),
                                         Write::done, &write))
                write.is_done = true;
        }
        for (; !writes.empty(); writes.pop_front()) {
            const Write &write = writes.front();
            if (write.vector >= 0)
                viaduct_msi(dev, unsigned(write.vector));
            else if (write.line >= 0)
                viaduct_line(dev, is_raised = write.line);
            else if (write.is_done)
                link.writes_done++;
            else
                return;
        }
    }

    // Whether there is a completion to send. Its data lasts until the next call.
    bool next(Completion &into)
    {
        finished.clear();
        auto read = reads.begin();
        while (read != reads.end() && !is_ready(*read) && pace.stalls)
            ++read;
        // In any order: as many are passed over as chance wants, as long as others are ready.
        for (auto other = read; pace.stalls && other != reads.end(); ++other)
            if (is_ready(*other) && chance(2))
                read = other;
        if (read == reads.end() || !is_ready(*read))
            return false;
        fill(*read, into);
        if (into.is_last) {
            finished.splice(finished.begin(), reads, read);
            start();
        }
        return true;
    }

private:
    struct Read {
        Request request;
        bool is_started = false, is_there = false, is_bad = false;
        uint64_t due = 0;
        // Bytes that are answered.
        size_t at = 0;
        std::vector<uint8_t> data;
    };

    // Or an interrupt: the vector of an MSI, or 1 or 0 for the line.
    struct Write {
        uint64_t address = 0;
        int vector = -1, line = -1;
        bool is_started = false, is_done = false;
        std::vector<uint8_t> data;

        bool is_interrupt() const { return vector >= 0 || line >= 0; }
        static void done(void *arg, int) { static_cast<Write *>(arg)->is_done = true; }
    };

    bool is_ready(const Read &read) const { return read.is_there && pace.is_over(read.due); }

    static bool crosses(const Request &request)
    {
        return request.address % 4096 + 4 * request.dwords > 4096;
    }

    void start()
    {
        size_t n = 0;
        for (Read &read : reads) {
            if (n++ == MOST_READS)
                return;
            if (read.is_started)
                continue;
            read.is_started = true;
            int status = viaduct_host_read_start(dev, read.request.address, read.data.data(),
                                                 read.data.size(), done, &read);
            if (status)
                done(&read, status);
        }
    }

    static void done(void *arg, int status)
    {
        Read &read = *static_cast<Read *>(arg);
        read.is_there = true;
        read.is_bad = status != 0;
    }

    // Completions end at multiples of the largest payload, which are multiples of the Read
    // Completion Boundary, or at the end (PCI Express 5.0, 2.3.1.1).
    void fill(Read &read, Completion &into)
    {
        const Request &request = read.request;
        unsigned skip = read.at ? 0 : request.skip();
        size_t cut = link.largest_payload();
        if (pace.stalls && chance(2))
            cut = BOUNDARY;
        uint64_t from = request.address + read.at;
        size_t end = std::min<size_t>(read.data.size(), read.at + cut - from % cut);
        into = Completion();
        into.tag = request.tag;
        into.address = from + skip;
        into.count = request.len() - unsigned(read.at ? read.at - request.skip() : 0);
        into.is_last = read.is_bad || end == read.data.size();
        if (read.is_bad) {
            into.status = 1;
            return;
        }
        into.dwords = unsigned(end - read.at) / 4;
        into.data = read.data.data() + read.at;
        read.at = end;
    }

    void write_run(uint64_t address, const uint8_t *data, size_t len)
    {
        writes.emplace_back();
        writes.back().address = address;
        writes.back().data.assign(data, data + len);
        link.writes_begun++;
    }

    // One time in so many.
    bool chance(unsigned of)
    {
        seed ^= seed << 13, seed ^= seed >> 17, seed ^= seed << 5;
        return seed % of == 0;
    }

    // The Read Completion Boundary. The library lets 64 transfers be under way.
    static constexpr size_t BOUNDARY = 64, MOST_READS = 32, MOST_WRITES = 32;

    viaduct_device *dev;
    const Pace &pace;
    Link &link;
    Complaints complaints;
    // Lists: their addresses are lent.
    std::list<Read> reads, finished;
    std::list<Write> writes;
    // By a message of the design's.
    bool is_raised = false;
    uint32_t seed = 88172645u;
};

} // namespace viaduct
