#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| scale_db::fuzzing::sql_router(data));
