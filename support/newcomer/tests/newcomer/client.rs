//! A client of HTTP/1.1 that keeps its cookies.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Time for which a program may take to listen.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Client {
    address: String,
    /// Values by name.
    cookies: BTreeMap<String, String>,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Client {
    /// Returns a client, and the free address of the server that it will ask.
    pub(crate) fn of_free_port() -> Result<(Self, String)> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        Ok((Self { address: address.clone(), cookies: BTreeMap::new() }, address))
    }

    /// Returns another client of the same server, without cookies.
    pub(crate) fn another(&self) -> Self {
        Self { address: self.address.clone(), cookies: BTreeMap::new() }
    }

    /// Asks another server from now on, as behind a load balancer.
    pub(crate) fn moves_to(&mut self, address: &str) {
        address.clone_into(&mut self.address);
    }

    pub(crate) fn get(&mut self, path: &str) -> Result<Answer> {
        self.ask(&format!("GET {path} HTTP/1.1\r\n"), "")
    }

    pub(crate) fn post(&mut self, path: &str, form: &str) -> Result<Answer> {
        let head = format!(
            "POST {path} HTTP/1.1\r\naccept: text/html\r\ncontent-length: {}\r\n\
             content-type: application/x-www-form-urlencoded\r\n",
            form.len()
        );
        self.ask(&head, form)
    }

    fn ask(&mut self, head: &str, body: &str) -> Result<Answer> {
        let mut stream = self.connected()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let cookies = self.cookies.iter().map(|(name, value)| format!("{name}={value}"));
        let cookies = cookies.collect::<Vec<_>>().join("; ");
        let request = format!(
            "{head}host: localhost\r\ncookie: {cookies}\r\nconnection: close\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        for set in head.lines().filter_map(|line| line.strip_prefix("set-cookie: ")) {
            let cookie = set.split(';').next().unwrap_or_default();
            let (name, value) = cookie.split_once('=').context("no cookie")?;
            self.cookies.insert(name.to_owned(), value.to_owned());
        }
        Ok(Answer { status, head: head.to_lowercase(), body: body.to_owned() })
    }

    /// Connects as soon as the server listens.
    fn connected(&self) -> Result<TcpStream> {
        let began = Instant::now();
        loop {
            match TcpStream::connect(&self.address) {
                Ok(stream) => return Ok(stream),
                Err(_) if began.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => bail!("{} does not listen: {error}", self.address),
            }
        }
    }
}
