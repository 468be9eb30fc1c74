//! Plays a new user: see the tests.
