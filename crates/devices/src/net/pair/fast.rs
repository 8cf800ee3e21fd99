use mem::{Piece, Pieces};
use virtqueue::Burst;

use super::lane::Half;
use crate::net::header::HEADER;
use crate::net::port::MIN_FRAME;

/// Frames looked at together: their memory is fetched into the cache while those before are copied.
const AHEAD: usize = 32;

/// Bytes of the longest frame whose memory is fetched while the burst is looked through, so that
/// all are under way at a time. Of long ones there would be more lines than are fetched without
/// waiting, and copying one takes long enough to fetch another meanwhile.
const SHORT: u32 = 256;

/// How many frames before it is copied a long one is fetched: as many as take what a line takes
/// from far away.
const LEAD: usize = 4;

/// A header that asks for nothing and names one buffer (VIRTIO 1.4, 5.1.6).
const PLAIN: [u8; HEADER] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// Bytes of the header before the number of buffers, which means nothing in transmission.
const MEANINGFUL: usize = 10;

/// What became of the frames there were.
pub(super) enum Moved {
    /// So many are over there.
    Frames(u32),
    /// There are some and no buffers.
    NoRoom,
    /// The next one, if there is one, is not for this path.
    NothingSimple,
}

/// Frames that lie in one buffer, fit one buffer, and ask for nothing: as good as all of them.
#[derive(Default)]
pub(super) struct Fast {
    frames: Burst,
    rooms: Burst,
}

/// Where a frame is and where it goes, headers included.
#[derive(Clone, Copy)]
struct Job<'a> {
    from: Piece<'a>,
    to: Piece<'a>,
    len: u32,
}

impl Fast {
    /// Copies up to `budget` frames. The queues' batches have begun.
    pub(super) fn run(&mut self, from: &mut Half, to: &mut Half, budget: u32) -> Moved {
        if from.header_len != HEADER || to.header_len != HEADER {
            return Moved::NothingSimple;
        }
        let most = AHEAD.min(budget as usize);
        from.access.prefetch_burst(most);
        from.access.take_burst(most, &mut self.frames);
        if self.frames.is_empty() {
            return Moved::NothingSimple;
        }
        to.access.prefetch_burst(self.frames.len());
        to.access.take_burst(self.frames.len(), &mut self.rooms);
        let no_room = self.rooms.is_empty() && !to.access.has_available();
        let mut written = [0; AHEAD];
        let done = self.copy(from.access.map().pieces(), to.access.map().pieces(), &mut written);
        while self.frames.len() > done {
            from.access.untake_last(&mut self.frames);
        }
        while self.rooms.len() > done {
            to.access.untake_last(&mut self.rooms);
        }
        if done == 0 {
            return if no_room { Moved::NoRoom } else { Moved::NothingSimple };
        }
        to.access.give_back_burst(&mut self.rooms, &written[..done]);
        from.access.give_back_burst(&mut self.frames, &[0; AHEAD][..done]);
        Moved::Frames(done as u32)
    }

    /// Copies the frames of the burst up to the first that is not simple; returns how many.
    #[inline]
    fn copy<'a>(
        &self,
        mut from: Pieces<'a>,
        mut to: Pieces<'a>,
        written: &mut [u32; AHEAD],
    ) -> usize {
        let count = self.frames.len().min(self.rooms.len());
        let mut jobs = [None; AHEAD];
        for (index, job) in jobs[..count].iter_mut().enumerate() {
            *job = self.job(&mut from, &mut to, index);
            if job.is_none() {
                break;
            }
        }
        for (index, job) in jobs[..count].iter().enumerate() {
            let Some(Job { from, to, len }) = job else { return index };
            if let Some(Some(later)) = jobs[..count].get(index + LEAD) {
                later.fetch(later.len > SHORT);
            }
            // A peer may write there meanwhile, so a copy of the header is looked at and one of our
            // own goes over.
            if from.first::<MEANINGFUL>() != [0; MEANINGFUL] {
                return index;
            }
            from.copy_behind(PLAIN, to);
            written[index] = *len;
        }
        count
    }

    /// The job at `index`, its memory on the way into the cache if that is due; `None` if it is not
    /// simple.
    #[inline]
    fn job<'a>(&self, from: &mut Pieces<'a>, to: &mut Pieces<'a>, index: usize) -> Option<Job<'a>> {
        if self.frames.writable()[index] || !self.rooms.writable()[index] {
            return None;
        }
        let (source, room) = (self.frames.segments()[index], self.rooms.segments()[index]);
        let len = source.len;
        if (len as usize) < HEADER + MIN_FRAME || len > room.len {
            return None;
        }
        let from = from.piece(source.addr, len)?;
        let to = to.piece(room.addr, len)?;
        if !to.is_writable() {
            return None;
        }
        let job = Job { from, to, len };
        job.fetch(len <= SHORT || index < LEAD);
        Some(job)
    }
}

impl Job<'_> {
    /// Begins to fetch its memory, if it is `due`.
    #[inline]
    fn fetch(&self, due: bool) {
        if due {
            self.from.prefetch(false);
            self.to.prefetch(true);
        }
    }
}
