//! A small picture of each product, computed from its number: no files to serve, and neighbours
//! differ.

use maud::{Markup, PreEscaped};

const GROUNDS: [&str; 6] = ["#e9e2d6", "#dfe5dc", "#e3dfe8", "#e8dfd9", "#d9e3e6", "#ece6cf"];
const INKS: [&str; 6] = ["#7a5c3e", "#48624a", "#5d4f73", "#94513a", "#3d6470", "#8a7423"];

/// Returns the shape for the last word of the product's name; a jar for unknown words.
fn shape(name: &str) -> &'static str {
    match name.rsplit(' ').next().unwrap_or_default() {
        "bowl" | "tray" | "dish" => "<path d='M22 52h56c0 18-12 28-28 28s-28-10-28-28z'/>",
        "mug" => {
            "<path d='M30 34h34v44H30z'/><path d='M64 42h8a8 8 0 0 1 0 24h-8' fill='none' \
             stroke-width='5' stroke='currentColor'/>"
        }
        "board" | "towel" => {
            "<rect x='32' y='18' width='36' height='60' rx='5'/><path d='M44 78h12v8H44z'/>"
        }
        "lamp" | "lantern" => {
            "<path d='M36 22h28l10 26H26z'/><path d='M47 48h6v26h-6zM36 74h28v6H36z'/>"
        }
        "stool" | "bench" => {
            "<path d='M22 40h56v9H22z'/><path d='M28 49h7l-3 33h-7zM65 49h7l3 33h-7z'/>"
        }
        "basket" | "planter" => {
            "<path d='M24 44h52l-7 36H31z'/><path d='M34 44c0-26 32-26 32 0' fill='none' \
             stroke-width='4' stroke='currentColor'/>"
        }
        "clock" => {
            "<circle cx='50' cy='50' r='29'/><path d='M50 32v18l12 8' fill='none' stroke='#fff' \
             stroke-width='4'/>"
        }
        "hook" => {
            "<path d='M46 20h8v30a12 12 0 1 1-20 9' fill='none' stroke-width='7' \
             stroke='currentColor'/>"
        }
        "trowel" => "<path d='M46 18h8v26h-8z'/><path d='M36 44h28l-4 24-10 14-10-14z'/>",
        "vase" => "<path d='M42 18h16v14c0 8 10 14 10 28s-8 22-18 22-18-8-18-22 10-20 10-28z'/>",
        "box" | "holder" | "organiser" => {
            "<rect x='24' y='40' width='52' height='38' rx='4'/><path d='M24 52h52' stroke='#fff' \
             stroke-width='3'/>"
        }
        _ => {
            "<rect x='32' y='34' width='36' height='46' rx='8'/><rect x='36' y='22' width='28' \
             height='10' rx='3'/>"
        }
    }
}

pub(super) fn of(id: i64, name: &str) -> Markup {
    let pick = |from: [&'static str; 6], salt: i64| from[((id * 7 + salt).rem_euclid(6)) as usize];
    PreEscaped(format!(
        "<svg viewBox='0 0 100 100' aria-hidden='true' color='{ink}' fill='{ink}'>\
         <rect width='100' height='100' fill='{}'/>{}</svg>",
        pick(GROUNDS, id / 6),
        shape(name),
        ink = pick(INKS, id / 5),
    ))
}
