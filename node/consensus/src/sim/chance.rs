//! Where chance and clocks come from while a simulation runs on this thread: from its seed, and from simulated time.
//!
//! Random keys of hash maps, tokio's choice among ready branches, `rand::rng()` (openraft draws its election time-outs
//! from it) and every other source ask the C library, `getrandom`; `std::time::Instant` asks it too, `clock_gettime`.
//! A test binary may define both itself, and then they are the ones everybody calls. On a thread without a simulation
//! they ask the kernel, as the library's own do. Each simulation gets a fresh thread, because generators and hash keys
//! are kept per thread. Source of the idea: madsim, which does the same.

use std::cell::Cell;
use std::time::Duration;

/// Where a simulated machine's clock starts: what `Instant` counts from is nobody's business, but zero is too special.
const BOOT: Duration = Duration::from_secs(1_000_000);

thread_local! {
    static CHANCE: Cell<Option<u64>> = const { Cell::new(None) };
    static NOW: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// From now on this thread's chance comes from `seed`, and its clocks stand until [`set_elapsed`].
pub fn enter(seed: u64) {
    CHANCE.set(Some(seed));
    NOW.set(Some(BOOT));
}

/// Moves this thread's clocks to `elapsed` after the start of the simulation.
pub fn set_elapsed(elapsed: Duration) {
    NOW.set(Some(BOOT + elapsed));
}

/// SplitMix64.
fn next(state: u64) -> (u64, u64) {
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (state, mixed ^ (mixed >> 31))
}

/// Takes the place of the C library's in this test binary.
///
/// # Safety
/// `buffer` must point to `length` bytes that may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut libc::c_void, length: libc::size_t, flags: libc::c_uint) -> libc::ssize_t {
    let Ok(Some(mut state)) = CHANCE.try_with(Cell::get) else {
        // SAFETY: the arguments are the caller's, and the kernel checks them.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as libc::ssize_t };
    };
    if length == 0 {
        return 0;
    }
    // SAFETY: the caller promises `length` writable bytes.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    for chunk in bytes.chunks_mut(8) {
        let (advanced, drawn) = next(state);
        state = advanced;
        chunk.copy_from_slice(&drawn.to_le_bytes()[..chunk.len()]);
    }
    CHANCE.set(Some(state));
    length as libc::ssize_t
}

/// Takes the place of the C library's in this test binary.
///
/// # Safety
/// `time` must point to a `timespec` that may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    let Ok(Some(now)) = NOW.try_with(Cell::get) else {
        // SAFETY: the arguments are the caller's, and the kernel checks them.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as libc::c_int };
    };
    // SAFETY: the caller promises a writable `timespec`.
    unsafe {
        (*time).tv_sec = now.as_secs() as libc::time_t;
        (*time).tv_nsec = libc::c_long::from(now.subsec_nanos() as i32);
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngCore;
    use std::collections::HashMap;
    use std::time::Instant;

    fn drawn(seed: u64) -> (u64, Vec<u32>, Duration) {
        let on_its_own = move || {
            enter(seed);
            let began = Instant::now();
            set_elapsed(Duration::from_secs(3));
            let keys = (0..100).map(|n| (n, ())).collect::<HashMap<u32, ()>>().into_keys().collect();
            (rand::rng().next_u64(), keys, began.elapsed())
        };
        std::thread::spawn(on_its_own).join().unwrap()
    }

    #[test]
    fn chance_and_clocks_come_from_the_seed() {
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1).0, drawn(2).0);
        assert_ne!(drawn(1).1, drawn(2).1);
        assert_eq!(drawn(1).2, Duration::from_secs(3));
    }

    #[test]
    fn other_threads_keep_real_chance_and_real_clocks() {
        let random = || std::thread::spawn(|| rand::rng().next_u64()).join().unwrap();
        assert_ne!(random(), random());
        assert!(Instant::now().elapsed() < Duration::from_secs(1000));
    }
}
