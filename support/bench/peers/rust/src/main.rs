//! `peers actix CASE PORT COUNT` or `peers underway URL COUNT`: one peer, one question; prints one number.

mod actix;
mod underway;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let figure = match words[..] {
        ["actix", case, port, count] => actix::run(case, port.parse()?, count.parse()?)?,
        ["underway", url, count] => underway::run(url, count.parse()?)?,
        _ => bail!("peers actix CASE PORT COUNT, or peers underway URL COUNT"),
    };
    println!("{figure}");
    Ok(())
}
