// Host memory by descriptors and AXI4-Stream, as DMA cores offer it to a design: an address and a
// length go out, data comes in or goes out as bytes without gaps, a status comes back.
//
//     read_desc_addr, _len, _tag, _valid -->   --> read_data_t...   (packed, tlast at the end)
//                                              --> read_desc_status_tag, _error, _valid (a strobe)
//     write_desc_addr, _len, _tag, _valid -->
//     write_data_t... -->                      --> write_desc_status_tag, _error, _valid
//
// Any address, up to 1 MiB, 16 descriptors outstanding each way, done in order.
#pragma once
#include <deque>
#include <vector>

#include "bits.h"
#include "pace.h"
#include "viaduct.h"

namespace viaduct {

struct Descriptor {
    uint64_t address = 0;
    size_t len = 0;
    uint64_t tag = 0;
    bool is_there = false, is_bad = false;
    uint64_t due = 0;
    std::vector<uint8_t> data;

    static constexpr size_t LONGEST = 1 << 20;
    static constexpr size_t MOST = 16;

    static void done(void *arg, int status)
    {
        auto &descriptor = *static_cast<Descriptor *>(arg);
        descriptor.is_there = true;
        descriptor.is_bad = status != 0;
    }
};

// What both directions have in common.
template <class Wires> class DescriptorQueue {
public:
    DescriptorQueue(Wires wires, viaduct_device *dev, const Pace &pace)
        : w(wires), dev(dev), pace(pace)
    {
    }

    static constexpr unsigned WIDTH = Wires::DATA_BITS / 8;

    bool is_busy() const { return !queue.empty() || has_status || is_asked; }

    void clear()
    {
        queue.clear();
        has_status = is_asked = false;
        done = 0;
    }

protected:
    void drive_descriptors()
    {
        w.desc_ready() = is_ready = queue.size() < Descriptor::MOST && pace.lets();
        w.status_valid() = has_status;
        w.status_tag() = status_tag;
        w.status_error() = status_error;
        has_status = false;
    }

    // The descriptor that has come, if one has.
    Descriptor *take()
    {
        // Until it is let in the design stands still, but not for long.
        is_asked = w.desc_valid();
        if (!is_ready || !is_asked)
            return nullptr;
        queue.emplace_back();
        Descriptor &descriptor = queue.back();
        descriptor.address = w.desc_addr();
        descriptor.len = size_t(w.desc_len());
        descriptor.tag = w.desc_tag();
        descriptor.due = pace.due();
        descriptor.is_bad = descriptor.len > Descriptor::LONGEST;
        descriptor.is_there = descriptor.is_bad || descriptor.len == 0;
        if (!descriptor.is_bad)
            descriptor.data.resize(descriptor.len);
        return &descriptor;
    }

    void tell()
    {
        const Descriptor &descriptor = queue.front();
        has_status = true;
        status_tag = descriptor.tag;
        status_error = descriptor.is_bad;
        queue.pop_front();
        done = 0;
    }

    Wires w;
    viaduct_device *dev;
    const Pace &pace;
    std::deque<Descriptor> queue;
    // Bytes of the first descriptor that have gone over the stream.
    size_t done = 0;

private:
    bool is_ready = false, is_asked = false, has_status = false, status_error = false;
    uint64_t status_tag = 0;
};

template <class Wires> class DescriptorReads : public DescriptorQueue<Wires> {
public:
    using Base = DescriptorQueue<Wires>;
    using Base::Base, Base::done, Base::queue, Base::w, Base::WIDTH;

    void drive()
    {
        this->drive_descriptors();
        w.tvalid() = is_shown;
        if (!is_shown)
            return;
        const Descriptor &descriptor = queue.front();
        size_t len = std::min<size_t>(WIDTH, descriptor.len - done);
        std::memcpy(bytes_of(w.tdata()), &descriptor.data[done], len);
        w.tkeep() = ones(unsigned(len));
        w.tlast() = done + len == descriptor.len;
    }

    void clear()
    {
        Base::clear();
        is_shown = false;
    }

    void sample()
    {
        if (is_shown && w.tready()) {
            done += WIDTH;
            is_shown = false;
            if (done >= queue.front().len)
                this->tell();
        }
        Descriptor *taken = this->take();
        if (taken && !taken->is_there) {
            int status = viaduct_host_read_start(this->dev, taken->address, taken->data.data(),
                                                 taken->len, Descriptor::done, taken);
            if (status)
                Descriptor::done(taken, status);
        }
        if (is_shown || queue.empty() || !queue.front().is_there)
            return;
        const Descriptor &first = queue.front();
        if (!this->pace.is_over(first.due) || !this->pace.lets())
            return;
        // What could not be read is told by the status alone.
        if (first.len == 0 || first.is_bad)
            this->tell();
        else
            is_shown = true;
    }

private:
    bool is_shown = false;
};

template <class Wires> class DescriptorWrites : public DescriptorQueue<Wires> {
public:
    using Base = DescriptorQueue<Wires>;
    using Base::Base, Base::done, Base::queue, Base::w, Base::WIDTH;

    void drive()
    {
        this->drive_descriptors();
        w.tready() = is_open = !queue.empty() && done < queue.front().len && this->pace.lets();
    }

    void sample()
    {
        if (is_open && w.tvalid())
            take_word();
        this->take();
        if (!queue.empty() && queue.front().is_there && this->pace.is_over(queue.front().due))
            this->tell();
    }

private:
    void take_word()
    {
        Descriptor &first = queue.front();
        uint64_t keep = w.tkeep();
        const uint8_t *word = bytes_of(w.tdata());
        for (unsigned n = 0; n < WIDTH && done < first.len; n++)
            if (keep >> n & 1) {
                if (!first.is_bad)
                    first.data[done] = word[n];
                done++;
            }
        if (!w.tlast() && done < first.len)
            return;
        size_t len = done;
        done = first.len;
        if (first.is_bad || !len)
            return;
        int status = viaduct_host_write_start(this->dev, first.address, first.data.data(), len,
                                              Descriptor::done, &first);
        if (status)
            Descriptor::done(&first, status);
    }

    bool is_open = false;
};

} // namespace viaduct
