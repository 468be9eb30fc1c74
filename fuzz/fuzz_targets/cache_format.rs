#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| scale_cache::fuzzing::cache_format(data));
