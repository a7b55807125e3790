//! RESP over one TCP connection: prepared bytes out, replies counted in.
//!
//! Always true: a reply is framed but not decoded, as `redis-benchmark` does it, so the client costs Redis as little as
//! a client can; an error reply is an error here.

use crate::error::{Error, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PEER: &str = "Redis";
/// Arrays in arrays in replies, at most.
const DEPTH_MAX: usize = 4;

/// Appends one command to a request.
pub fn command(out: &mut Vec<u8>, parts: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", parts.len()).as_bytes());
    for part in parts {
        bulk(out, part);
    }
}

/// Appends one part of a command whose `*count` is already there.
pub fn bulk(out: &mut Vec<u8>, part: &[u8]) {
    out.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
    out.extend_from_slice(part);
    out.extend_from_slice(b"\r\n");
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    replies: Vec<u8>,
}

impl Connection {
    /// # Errors
    /// `System` when the server is not there.
    pub async fn open(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(Error::system("a connection to Redis"))?;
        stream.set_nodelay(true).map_err(Error::system("a connection to Redis"))?;
        Ok(Self { stream, replies: Vec::with_capacity(64 << 10) })
    }

    /// Sends commands and waits for all `count` replies; returns their bytes.
    ///
    /// # Errors
    /// `Peer` for an error reply or bytes that are no reply; `System` for a lost connection.
    pub async fn ask(&mut self, request: &[u8], count: usize) -> Result<&[u8]> {
        self.replies.clear();
        self.stream.write_all(request).await.map_err(Error::system("a connection to Redis"))?;
        let (mut whole, mut at) = (0, 0);
        loop {
            while whole < count
                && let Some(end) = reply_end(&self.replies, at, 0)?
            {
                (whole, at) = (whole + 1, end);
            }
            if whole == count {
                return Ok(&self.replies);
            }
            let read = self.stream.read_buf(&mut self.replies).await.map_err(Error::system("a connection to Redis"))?;
            if read == 0 {
                return Err(Error::peer(PEER, "closed the connection"));
            }
        }
    }
}

/// Where the reply that begins at `at` ends; `None` when it is not whole yet.
fn reply_end(bytes: &[u8], at: usize, depth: usize) -> Result<Option<usize>> {
    let Some(line) = bytes.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == b'\n')) else {
        return Ok(None);
    };
    let text = bytes.get(at..(at + line).saturating_sub(1)).unwrap_or_default();
    let after = at + line + 1;
    let Some((kind, text)) = text.split_first() else {
        return Err(Error::peer(PEER, "an empty reply"));
    };
    let bad = || Error::peer(PEER, format!("a reply that begins {:?}", String::from_utf8_lossy(text)));
    let number = || std::str::from_utf8(text).ok().and_then(|text| text.parse::<i64>().ok()).ok_or_else(bad);
    match kind {
        b'+' | b':' => Ok(Some(after)),
        b'-' => Err(Error::peer(PEER, String::from_utf8_lossy(text))),
        b'$' => {
            // A missing value has the length -1 and nothing behind it.
            let end = usize::try_from(number()?).map_or(after, |length| after.saturating_add(length).saturating_add(2));
            Ok((end <= bytes.len()).then_some(end))
        }
        b'*' if depth < DEPTH_MAX => {
            let mut end = after;
            for _ in 0..number()? {
                let Some(next) = reply_end(bytes, end, depth + 1)? else { return Ok(None) };
                end = next;
            }
            Ok(Some(end))
        }
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[test]
    fn a_command_is_an_array_of_bulk_strings() {
        let mut out = Vec::new();
        command(&mut out, &[b"GET", b"b:1"]);
        assert_eq!(out, b"*2\r\n$3\r\nGET\r\n$3\r\nb:1\r\n");
    }

    #[test]
    fn replies_end_where_they_end_and_not_before() {
        for reply in
            [&b"+OK\r\n"[..], b":27\r\n", b"$-1\r\n", b"$4\r\na\r\nb\r\n", b"*2\r\n$1\r\nx\r\n*1\r\n:3\r\n", b"*0\r\n"]
        {
            let twice = [reply, reply].concat();
            assert_eq!(reply_end(&twice, 0, 0).unwrap(), Some(reply.len()));
            assert_eq!(reply_end(&twice, reply.len(), 0).unwrap(), Some(2 * reply.len()));
            for cut in 0..reply.len() {
                assert_eq!(reply_end(&reply[..cut], 0, 0).unwrap(), None, "{cut} of {reply:?}");
            }
        }
    }

    #[test]
    fn errors_and_garbage_are_refused() {
        for reply in
            [&b"-ERR unknown command\r\n"[..], b"!x\r\n", b"$x\r\n", b"\r\n", b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n+x\r\n"]
        {
            assert!(reply_end(reply, 0, 0).is_err(), "{reply:?}");
        }
        assert_eq!(reply_end(b"$9223372036854775807\r\nx", 0, 0).unwrap(), None);
    }

    #[tokio::test]
    async fn replies_that_come_in_pieces_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4];
            stream.read_exact(&mut request).await.unwrap();
            for piece in [&b"$3\r"[..], b"\nab", b"c\r\n+O", b"K\r\n"] {
                stream.write_all(piece).await.unwrap();
                stream.flush().await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let mut connection = Connection::open(port).await.unwrap();
        assert_eq!(connection.ask(b"PING", 2).await.unwrap(), b"$3\r\nabc\r\n+OK\r\n");
        assert!(connection.ask(b"", 1).await.is_err());
        server.await.unwrap();
    }
}
