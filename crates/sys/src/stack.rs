use std::ffi::c_void;
use std::mem::MaybeUninit;

/// Kept below the frame of [`give_back_stack`]: the system call's return address, and what the
/// processor's ABI lets a function use below its frame (128 bytes).
const MARGIN_BYTES: usize = 512;

/// Smallest page of any machine this runs on; an address that is not at a page's end is refused by
/// the kernel, and then nothing happens.
const PAGE_BYTES: usize = 4096;

/// Gives the pages of the calling thread's stack that its frames do not reach back to the system,
/// which brings zeros when they are needed again. For a thread that sleeps for long after it needed
/// much. Does nothing where that can't be.
#[inline(never)]
pub fn give_back_stack() {
    let frame = 0_u8;
    let Some(lowest) = lowest_address() else { return };
    let here = std::ptr::from_ref(std::hint::black_box(&frame)).addr();
    let end = here.saturating_sub(MARGIN_BYTES) & !(PAGE_BYTES - 1);
    let Some(len) = end.checked_sub(lowest.addr()).filter(|len| *len > 0) else { return };
    crate::calls::note();
    // SAFETY: the range is part of this thread's own stack and below every frame there is: stacks
    // grow downwards, nothing is kept below the frame of a function that runs, and what the call
    // itself needs is within the margin. No other thread has business there.
    let _ = unsafe { libc::madvise(lowest, len, libc::MADV_DONTNEED) };
}

/// Where the calling thread's stack ends at most.
fn lowest_address() -> Option<*mut c_void> {
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: always possible.
    let this = unsafe { libc::pthread_self() };
    // SAFETY: the thread is there, and there is room for its attributes.
    if unsafe { libc::pthread_getattr_np(this, attributes.as_mut_ptr()) } != 0 {
        return None;
    }
    let (mut lowest, mut len) = (std::ptr::null_mut(), 0);
    // SAFETY: the attributes were filled in just now, and both places can be written.
    let got =
        unsafe { libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut lowest, &raw mut len) };
    // SAFETY: the attributes were filled in and are not used any more.
    unsafe { libc::pthread_attr_destroy(attributes.as_mut_ptr()) };
    (got == 0 && !lowest.is_null()).then_some(lowest)
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;

    fn stack_use() -> u64 {
        let frame = 0_u8;
        let here = std::ptr::from_ref(black_box(&frame)).addr();
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_mine = false;
        for line in maps.lines() {
            let first = line.split_whitespace().next().unwrap();
            if let Some((from, to)) = first.split_once('-') {
                let address = |text| usize::from_str_radix(text, 16).unwrap();
                is_mine = (address(from)..address(to)).contains(&here);
            } else if is_mine && first == "Rss:" {
                return line.split_whitespace().nth(1).unwrap().parse().unwrap();
            }
        }
        panic!("a thread has a stack")
    }

    #[inline(never)]
    fn deep(levels: u32) -> u64 {
        let filled = black_box([levels as u8; 4096]);
        let below = if levels == 0 { 0 } else { deep(levels - 1) };
        below + u64::from(black_box(filled)[17])
    }

    #[test]
    fn what_was_needed_once_is_given_back_and_can_be_used_again() {
        let kept = [7_u8; 3000];
        for _ in 0..3 {
            black_box(deep(100));
            let before = stack_use();
            give_back_stack();
            let after = stack_use();
            assert!(after + 300 < before, "{before} KiB before, {after} KiB after");
            assert!(black_box(&kept).iter().all(|byte| *byte == 7));
        }
    }
}
