use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sys::EventFd;

/// Names a read that waits for its answer; never reused within a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// The right and the duty to answer one read. Not `Clone`; dropping it unanswered is a bug of the
/// function: a panic in debug builds, else an error in the log and all ones for the driver.
#[derive(Debug)]
pub struct Completion {
    queue: Arc<CompletionQueue>,
    ticket: Ticket,
    len: usize,
    answered: bool,
}

impl Completion {
    /// How many bytes are wanted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no bytes are wanted; never true.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Answers with `bytes`; what is missing is filled with zeros, what is too much is left out.
    pub fn answer(mut self, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(self.len)];
        self.finish(|out, end| {
            out.extend_from_slice(bytes);
            out.resize(end, 0);
        });
    }

    /// Answers with all ones: the register does not exist, or nobody is there.
    pub fn all_ones(mut self) {
        self.finish(|out, end| out.resize(end, 0xff));
    }

    fn finish(&mut self, fill: impl FnOnce(&mut Vec<u8>, usize)) {
        self.answered = true;
        let mut answers = self.queue.lock();
        // `fill` appends and is told the length that the buffer has in the end.
        let end = answers.bytes.len() + self.len;
        fill(&mut answers.bytes, end);
        answers.done.push((self.ticket, self.len));
        let watched = answers.watched;
        drop(answers);
        if !watched {
            self.queue.wake.signal();
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if !self.answered {
            self.finish(|out, end| out.resize(end, 0xff));
            tracing::error!("a read was dropped without an answer; the driver gets all ones");
            debug_assert!(std::thread::panicking(), "a completion was dropped without an answer");
        }
    }
}

#[derive(Debug, Default)]
struct Answers {
    bytes: Vec<u8>,
    done: Vec<(Ticket, usize)>,
    next: u64,
    /// Whoever collects is looking right now, so need not be woken.
    watched: bool,
}

/// Where answers arrive, in order of their arrival.
#[derive(Debug)]
pub struct CompletionQueue {
    answers: Mutex<Answers>,
    wake: EventFd,
}

impl CompletionQueue {
    /// An empty one.
    ///
    /// # Errors
    /// The system is out of file descriptors.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { answers: Mutex::default(), wake: EventFd::new()? }))
    }

    fn lock(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A duty to answer `len` bytes, and its name. Until the next [`CompletionQueue::collect`]
    /// answers don't wake anybody, so that the common case, an answer before [`Function::read`]
    /// returns, costs no system call.
    ///
    /// [`Function::read`]: crate::Function::read
    pub fn begin(self: &Arc<Self>, len: usize) -> (Ticket, Completion) {
        let mut answers = self.lock();
        let ticket = Ticket(answers.next);
        answers.next += 1;
        answers.watched = true;
        drop(answers);
        let queue = Arc::clone(self);
        (ticket, Completion { queue, ticket, len, answered: false })
    }

    /// As after [`CompletionQueue::begin`] nobody is woken until the next
    /// [`CompletionQueue::collect`], which has to follow.
    pub fn watch(&self) {
        self.lock().watched = true;
    }

    /// Acknowledges that the queue was readable; [`CompletionQueue::collect`] has to follow. Apart
    /// from it because whoever comes without having been woken saves a system call.
    pub fn acknowledge(&self) {
        self.wake.drain();
    }

    /// Hands every answer that has arrived to `take`.
    pub fn collect(&self, mut take: impl FnMut(Ticket, &[u8])) {
        let mut answers = self.lock();
        answers.watched = false;
        let Answers { bytes, done, .. } = &mut *answers;
        let mut at = 0;
        for (ticket, len) in done.drain(..) {
            take(ticket, &bytes[at..at + len]);
            at += len;
        }
        bytes.clear();
    }
}

impl AsFd for CompletionQueue {
    /// Readable when answers have arrived since it was last acknowledged, but for those that were
    /// collected at once.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_back_with_their_names() {
        let queue = CompletionQueue::new().unwrap();
        let (first, a) = queue.begin(4);
        let (second, b) = queue.begin(2);
        b.answer(&[7, 8, 9]);
        a.answer(&[1]);
        let mut seen = Vec::new();
        queue.collect(|ticket, bytes| seen.push((ticket, bytes.to_vec())));
        assert_eq!(seen, [(second, vec![7, 8]), (first, vec![1, 0, 0, 0])]);
        queue.collect(|_, _| panic!("nothing is left"));
    }

    #[test]
    fn an_answer_from_another_thread_wakes_the_collector() {
        let queue = CompletionQueue::new().unwrap();
        let (ticket, late) = queue.begin(1);
        queue.collect(|_, _| panic!("not yet"));
        std::thread::spawn(move || late.all_ones()).join().unwrap();
        assert!(queue.wake.drain(), "the collector was not woken");
        queue.acknowledge();
        let mut seen = Vec::new();
        queue.collect(|ticket, bytes| seen.push((ticket, bytes.to_vec())));
        assert_eq!(seen, [(ticket, vec![0xff])]);
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "dropped without an answer")]
    fn a_dropped_completion_is_a_bug() {
        let queue = CompletionQueue::new().unwrap();
        drop(queue.begin(1));
    }
}
