// The driver's side of a design's AXI4-Lite (or AXI4) slave: one access at a time, in order.
//
// An access of any length is done in words of the bus, with byte strobes. The design's answer
// SLVERR or DECERR to a read becomes all ones, as an unsupported request does on PCI Express.
//
//     cycle   1         2
//     awvalid ########__________      accepted together or one after the other
//     wvalid  ########__________
//     bvalid  _________#########      bready is always 1
#pragma once
#include <deque>

#include "access.h"
#include "bits.h"

namespace viaduct {

template <class Wires> class AxiLite {
public:
    explicit AxiLite(Wires wires) : w(wires) {}

    static constexpr unsigned WIDTH = Wires::DATA_BITS / 8;

    bool is_busy() const { return state != IDLE; }
    bool has_accesses() const { return is_busy(); }

    void push(Access &&access)
    {
        waiting.push_back(std::move(access));
        if (state == IDLE)
            begin_next();
    }

    // Nothing goes on any more; what was asked gets all ones.
    void clear()
    {
        for (Access &access : waiting)
            access.finish(false);
        waiting.clear();
        state = IDLE;
        aw = wv = ar = false;
        is_changed = true;
    }

    void drive()
    {
        if (!is_changed)
            return;
        is_changed = false;
        w.awvalid() = aw;
        w.wvalid() = wv;
        w.arvalid() = ar;
        w.bready() = 1;
        w.rready() = 1;
        if (aw)
            w.awaddr() = address;
        if (ar)
            w.araddr() = address;
        if (wv) {
            w.wstrb() = strobe;
            std::memcpy(bytes_of(w.wdata()), word, WIDTH);
        }
        w.awlen() = 0, w.arlen() = 0;
        w.awsize() = SIZE, w.arsize() = SIZE;
        w.awburst() = 1, w.arburst() = 1;
        w.wlast() = 1;
    }

    void sample()
    {
        if (state == IDLE)
            return;
        if (state == WRITING) {
            if (aw && w.awready())
                aw = false, is_changed = true;
            if (wv && w.wready())
                wv = false, is_changed = true;
            if (!aw && !wv && w.bvalid())
                end_word(w.bresp());
        } else {
            if (ar && w.arready())
                ar = false, is_changed = true;
            if (!ar && w.rvalid()) {
                std::memcpy(word, bytes_of(w.rdata()), WIDTH);
                end_word(w.rresp());
            }
        }
    }

private:
    static constexpr unsigned SIZE = WIDTH == 4 ? 2 : WIDTH == 8 ? 3 : WIDTH == 16 ? 4
                                   : WIDTH == 32 ? 5 : 6;

    void begin_next()
    {
        done = 0;
        is_bad = false;
        state = IDLE;
        if (!waiting.empty())
            begin_word();
    }

    void begin_word()
    {
        Access &access = waiting.front();
        uint64_t at = access.offset + done;
        skip = at % WIDTH;
        count = std::min<size_t>(WIDTH - skip, access.len - done);
        address = at - skip;
        is_changed = true;
        if (access.is_write) {
            state = WRITING;
            aw = wv = true;
            std::memset(word, 0, sizeof word);
            std::memcpy(word + skip, access.data() + done, count);
            strobe = ones(count) << skip;
        } else {
            state = READING;
            ar = true;
        }
    }

    void end_word(unsigned response)
    {
        Access &access = waiting.front();
        is_bad |= response >= 2;
        if (!access.is_write)
            std::memcpy(access.data() + done, word + skip, count);
        done += count;
        if (done < access.len)
            return begin_word();
        access.finish(!is_bad);
        waiting.pop_front();
        begin_next();
    }

    enum State { IDLE, WRITING, READING };

    Wires w;
    State state = IDLE;
    bool is_changed = true, is_bad = false;
    bool aw = false, wv = false, ar = false;
    std::deque<Access> waiting;
    // Of the first access: how much of it is done, and the word that is on the bus.
    size_t done = 0, skip = 0, count = 0;
    uint64_t address = 0, strobe = 0;
    uint8_t word[WIDTH] = {};
};

} // namespace viaduct
