#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| scale_session::fuzzing::session_cookie(data));
