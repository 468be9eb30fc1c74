//! Bounded runs of fuzz targets on stable Rust.

/// Longest input, in bytes.
const LONGEST: usize = 2_048;

/// Calls a fuzz target with this number of inputs, made from the seeds by a few mutations each:
/// bytes changed, removed, repeated, inserted, and pieces of other seeds. The inputs are the same
/// each time; `fuzz/` explores further.
///
/// # Panics
/// If the target does: the message then contains the input.
pub fn mutated(seeds: &[&[u8]], inputs: usize, target: fn(&[u8])) {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut below = |bound: usize| {
        // xorshift64*: small, and the same on every machine.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound.max(1)
    };
    for seed in seeds {
        target(seed);
    }
    for _ in 0..inputs {
        let mut input = seeds.get(below(seeds.len())).map(|seed| seed.to_vec()).unwrap_or_default();
        for _ in 0..=below(6) {
            let at = below(input.len() + 1);
            match below(6) {
                0 => input.truncate(at),
                1 => input.insert(at, below(256) as u8),
                2 if at < input.len() => input[at] ^= 1 << below(8),
                3 if at < input.len() => drop(input.remove(at)),
                4 => {
                    let end = at + below(input.len() - at + 1);
                    let piece = input[at..end].to_vec();
                    input.splice(at..at, piece);
                }
                _ => {
                    let other = seeds.get(below(seeds.len())).copied().unwrap_or_default();
                    let piece = &other[below(other.len() + 1)..];
                    input.splice(at..at, piece.iter().copied());
                }
            }
            input.truncate(LONGEST);
        }
        let run = std::panic::catch_unwind(|| target(&input));
        assert!(run.is_ok(), "the target fails on {:?}", input.escape_ascii().to_string());
    }
}
