// Host memory as an AXI4 slave, for a design's DMA master.
//
// A burst is one transfer of host memory: a read is fetched when its address is accepted, a write
// is stored with its last beat, and answered when it is done. Up to 16 of each are outstanding;
// they are answered in order. INCR, WRAP and FIXED, narrow transfers, unaligned ones, any strobes.
// No such memory, or bus mastering off: SLVERR.
#pragma once
#include <algorithm>
#include <cstdio>

#include "bits.h"
#include "pace.h"
#include "viaduct.h"

namespace viaduct {

// Addresses of the beats of a burst (AMBA AXI, A3.4.1).
struct Burst {
    uint64_t address = 0;
    unsigned id = 0, beats = 1, size = 0, kind = 1;

    uint64_t aligned() const { return address >> size << size; }

    uint64_t wrap_low() const { return address / (beats << size) * (uint64_t(beats) << size); }

    uint64_t beat(unsigned n) const
    {
        if (kind == 0 || n == 0)
            return address;
        uint64_t at = aligned() + (uint64_t(n) << size);
        if (kind != 2)
            return at;
        uint64_t end = wrap_low() + (uint64_t(beats) << size);
        return at < end ? at : at - (uint64_t(beats) << size);
    }

    // The lowest address of all, without regard to alignment.
    uint64_t low() const { return kind == 2 ? wrap_low() : aligned(); }

    size_t length() const { return size_t(kind == 0 ? 1 : beats) << size; }
};

template <class Wires> class AxiMemory {
public:
    AxiMemory(Wires wires, viaduct_device *dev, const Pace &pace)
        : w(wires), dev(dev), pace(pace)
    {
    }

    static constexpr unsigned WIDTH = Wires::DATA_BITS / 8;

    // Also while the design waits to be let in: then it stands still, but not for long.
    bool is_busy() const
    {
        return is_asked || read_head != read_tail || write_head != write_tail;
    }

    void clear()
    {
        // Ends of transfers that were begun are not told after a reset.
        read_head = read_tail = read_beat = 0;
        write_head = write_tail = write_filled = 0;
        is_shown = is_answered = is_asked = false;
        is_changed = true;
    }

    void drive()
    {
        if (pace.stalls)
            is_changed = true;
        if (!is_changed)
            return;
        is_changed = false;
        w.arready() = is_ar_ready = read_tail - read_head < DEPTH && pace.lets();
        w.awready() = is_aw_ready = write_tail - write_head < DEPTH && pace.lets();
        w.wready() = is_w_ready = write_filled != write_tail && pace.lets();
        w.rvalid() = is_shown;
        if (is_shown)
            put_beat();
        w.bvalid() = is_answered;
        if (is_answered) {
            const Write &write = writes[write_head % DEPTH];
            w.bid() = write.id;
            w.bresp() = write.is_bad ? 2 : 0;
        }
    }

    void sample()
    {
        is_asked = w.arvalid() || w.awvalid();
        if (is_ar_ready && w.arvalid())
            take_read();
        if (is_w_ready && w.wvalid())
            take_data();
        if (is_aw_ready && w.awvalid())
            take_write();
        if (is_shown && w.rready()) {
            is_shown = false;
            is_changed = true;
            if (++read_beat == reads[read_head % DEPTH].beats) {
                read_beat = 0;
                read_head++;
            }
        }
        if (is_answered && w.bready()) {
            is_answered = false;
            is_changed = true;
            write_head++;
        }
        if (!is_shown && read_head != read_tail && can_show_beat())
            is_shown = is_changed = true;
        if (!is_answered && write_head != write_filled && can_answer())
            is_answered = is_changed = true;
    }

private:
    static constexpr unsigned DEPTH = 16;
    static constexpr size_t LONGEST = 256 * WIDTH;
    static constexpr unsigned WIDEST = WIDTH == 4 ? 2 : WIDTH == 8 ? 3 : WIDTH == 16 ? 4
                                     : WIDTH == 32 ? 5 : WIDTH == 64 ? 6 : 7;

    struct Read : Burst {
        bool is_there = false, is_bad = false;
        uint64_t due = 0;
        uint8_t data[LONGEST];
    };

    struct Write : Burst {
        unsigned beat_count = 0, pending = 0;
        bool is_bad = false;
        uint64_t due = 0;
        // Bytes that follow each other and are not stored yet.
        uint64_t run_at = 0;
        size_t run_from = 0, run_to = 0;
        uint8_t data[LONGEST];
    };

    void take_read()
    {
        Read &read = reads[read_tail++ % DEPTH];
        static_cast<Burst &>(read) = { uint64_t(w.araddr()), unsigned(w.arid()),
            unsigned(w.arlen()) + 1, unsigned(w.arsize()), unsigned(w.arburst()) };
        read.is_there = read.is_bad = false;
        read.due = pace.due();
        is_changed = true;
        check(read);
        int status = viaduct_host_read_start(dev, read.low(), read.data, read.length(), read_done,
                                             &read);
        if (status)
            read_done(&read, status);
    }

    static void read_done(void *arg, int status)
    {
        Read &read = *static_cast<Read *>(arg);
        read.is_there = true;
        read.is_bad = status != 0;
    }

    bool can_show_beat() const
    {
        const Read &read = reads[read_head % DEPTH];
        return read.is_there && pace.is_over(read.due) && pace.lets();
    }

    void put_beat()
    {
        const Read &read = reads[read_head % DEPTH];
        uint64_t at = read.beat(read_beat) >> read.size << read.size;
        size_t place = at - read.low(), width = size_t(1) << read.size;
        uint8_t *lanes = bytes_of(w.rdata());
        if (width == WIDTH)
            std::memcpy(lanes, read.data + place, WIDTH);
        else
            std::memcpy(lanes + at % WIDTH, read.data + place, width);
        w.rid() = read.id;
        w.rresp() = read.is_bad ? 2 : 0;
        w.rlast() = read_beat + 1 == read.beats;
    }

    void take_write()
    {
        Write &write = writes[write_tail++ % DEPTH];
        static_cast<Burst &>(write) = { uint64_t(w.awaddr()), unsigned(w.awid()),
            unsigned(w.awlen()) + 1, unsigned(w.awsize()), unsigned(w.awburst()) };
        write.beat_count = write.pending = 0;
        write.is_bad = false;
        write.run_from = write.run_to = 0;
        is_changed = true;
        check(write);
    }

    void take_data()
    {
        Write &write = writes[write_filled % DEPTH];
        unsigned n = write.beat_count++;
        bool is_last = write.beat_count == write.beats;
        take_beat(write, write.beat(n));
        if (is_last != bool(w.wlast()) && !is_warned) {
            is_warned = true;
            complain("wlast is not with the last beat that awlen says");
        }
        if (!is_last)
            return;
        store_run(write);
        write.due = pace.due();
        write_filled++;
        is_changed = true;
    }

    void take_beat(Write &write, uint64_t at)
    {
        const uint8_t *lanes = bytes_of(w.wdata());
        uint64_t strobe = w.wstrb() & ones(WIDTH);
        size_t width = size_t(1) << write.size;
        if (strobe == ones(WIDTH) && width == WIDTH && at % WIDTH == 0)
            return append(write, at, lanes, WIDTH);
        // Strobes outside of a narrow beat's lanes are not to be set; if they are they don't count.
        uint64_t from = at >> write.size << write.size;
        for (size_t n = 0; n < width; n++) {
            size_t lane = (from + n) % WIDTH;
            if (strobe >> lane & 1)
                append(write, from + n, lanes + lane, 1);
        }
    }

    void append(Write &write, uint64_t at, const uint8_t *bytes, size_t count)
    {
        bool follows = write.run_to > write.run_from &&
                       at == write.run_at + (write.run_to - write.run_from);
        if (!follows) {
            store_run(write);
            write.run_at = at;
        }
        std::memcpy(write.data + write.run_to, bytes, count);
        write.run_to += count;
    }

    void store_run(Write &write)
    {
        size_t len = write.run_to - write.run_from;
        if (len == 0)
            return;
        write.pending++;
        int status = viaduct_host_write_start(dev, write.run_at, write.data + write.run_from, len,
                                              write_done, &write);
        if (status)
            write_done(&write, status);
        write.run_from = write.run_to;
    }

    static void write_done(void *arg, int status)
    {
        Write &write = *static_cast<Write *>(arg);
        write.pending--;
        write.is_bad |= status != 0;
    }

    bool can_answer() const
    {
        const Write &write = writes[write_head % DEPTH];
        return !write.pending && pace.is_over(write.due) && pace.lets();
    }

    // What is wrong is told once; a beat that can't be becomes one that can.
    void check(Burst &burst)
    {
        bool is_wide = (1u << burst.size) > WIDTH;
        if (is_wide)
            burst.size = WIDEST;
        if (is_warned)
            return;
        uint64_t last = burst.low() + burst.length() - 1;
        const char *why = is_wide ? "a beat is wider than the bus"
                        : burst.low() >> 12 != last >> 12 ? "a burst crosses a 4 KiB boundary"
                        : nullptr;
        if (why) {
            is_warned = true;
            complain(why);
        }
    }

    void complain(const char *why)
    {
        char line[160];
        std::snprintf(line, sizeof line, "%s: %s", Wires::NAME, why);
        viaduct_log(dev, 1, line);
    }

    Wires w;
    viaduct_device *dev;
    const Pace &pace;
    bool is_changed = true, is_warned = false, is_asked = false;
    bool is_ar_ready = false, is_aw_ready = false, is_w_ready = false;
    bool is_shown = false, is_answered = false;
    // Counters that only grow: head is the oldest, tail the next to come.
    unsigned read_head = 0, read_tail = 0, read_beat = 0;
    unsigned write_head = 0, write_tail = 0, write_filled = 0;
    Read reads[DEPTH];
    Write writes[DEPTH];
};

} // namespace viaduct
