//! `peers actix CASE PORT COUNT`, `peers underway URL COUNT` or `peers apalis FILE COUNT`: measures
//! one peer; prints one number.

mod actix;
mod apalis;
mod underway;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let figure = match words[..] {
        ["actix", case, port, count] => actix::run(case, port.parse()?, count.parse()?)?,
        ["underway", url, count] => underway::run(url, count.parse()?)?,
        ["apalis", file, count] => apalis::run(file, count.parse()?)?,
        _ => bail!(
            "peers actix CASE PORT COUNT, peers underway URL COUNT, or peers apalis FILE COUNT"
        ),
    };
    println!("{figure}");
    Ok(())
}
