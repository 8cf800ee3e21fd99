use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines per [`WINDOW`] about peers that break rules. A driver can reset its device and break a
/// rule again thousands of times a second.
const LINES: u32 = 10;

/// The time [`LINES`] is for.
const WINDOW: Duration = Duration::from_secs(5);

static STATE: Mutex<Option<(Instant, u32)>> = Mutex::new(None);

/// Whether one more line may be logged now.
pub(crate) fn allowed() -> bool {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Instant::now();
    let (since, lines) = state.get_or_insert((now, 0));
    if now.duration_since(*since) > WINDOW {
        (*since, *lines) = (now, 0);
    }
    *lines += 1;
    *lines <= LINES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_off() {
        let lines = (0..1000).filter(|_| allowed()).count();
        assert!((1..=LINES as usize).contains(&lines), "{lines}");
    }
}
