//! HTTP/1.1 as `curl` would send it: one request a connection, the whole answer read.

use super::TestResult;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> TestResult<serde_json::Value> {
        serde_json::from_str(&self.body).map_err(|error| format!("{error} in {self:?}").into())
    }
}

pub fn get(address: &str, path: &str) -> TestResult<Answer> {
    send(address, &format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"))
}

pub fn post(address: &str, path: &str, body: &str) -> TestResult<Answer> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    send(address, &(head + body))
}

fn send(address: &str, request: &str) -> TestResult<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| format!("not an HTTP answer: {text:?}"))?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let announced =
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    if announced.is_some_and(|length: usize| length != body.len()) {
        return Err(format!("the answer was cut off: {text:?}").into());
    }
    Ok(Answer { status: status.ok_or_else(|| format!("no status: {head:?}"))?, body: body.to_owned() })
}
