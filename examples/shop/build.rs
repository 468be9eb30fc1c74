//! Builds the shop again when there is a new migration.

fn main() {
    println!("cargo::rerun-if-changed=migrations");
}
