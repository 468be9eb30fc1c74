#![doc = include_str!("../README.md")]

/// Growing from one server to many: each step, its sign and its cost.
#[doc = include_str!("../docs/growing.md")]
pub mod growing {}

/// Coming from Laravel.
#[doc = include_str!("../docs/laravel.md")]
pub mod laravel {}

/// Coming from Rails.
#[doc = include_str!("../docs/rails.md")]
pub mod rails {}

/// Coming from Django.
#[doc = include_str!("../docs/django.md")]
pub mod django {}

/// Coming from Express.
#[doc = include_str!("../docs/express.md")]
pub mod express {}

/// Testing an application that uses the crates.
#[doc = include_str!("../docs/testing.md")]
pub mod testing {}

/// Operating the crates: pools, time-outs, Redis, upgrades, alerts.
#[doc = include_str!("../docs/operating.md")]
pub mod operating {}

/// Comparison with other crates.
#[doc = include_str!("../docs/comparison.md")]
pub mod comparison {}
