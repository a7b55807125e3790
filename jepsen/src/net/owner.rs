//! Which process holds a TCP connection of this machine, as Linux tells in `/proc`.
//!
//! All nodes dial from 127.0.0.1, so a proxy cannot tell them apart by address. The kernel lists each connection with an
//! inode, and each process its open inodes.

use std::net::SocketAddrV4;

/// The one of `processes` that holds the connection from `local` to `remote`.
pub fn of(local: SocketAddrV4, remote: SocketAddrV4, processes: &[Option<u32>]) -> Option<usize> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let inode = inode(&table, local, remote)?;
    let wanted = format!("socket:[{inode}]");
    processes.iter().position(|process| process.is_some_and(|id| holds(id, &wanted)))
}

fn holds(process: u32, wanted: &str) -> bool {
    let Ok(files) = std::fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    let mut links = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
    links.any(|link| link.as_os_str() == wanted)
}

/// The inode column of the line with these two ends.
fn inode(table: &str, local: SocketAddrV4, remote: SocketAddrV4) -> Option<u64> {
    let (local, remote) = (hex(local), hex(remote));
    table.lines().find_map(|line| {
        let mut columns = line.split_whitespace().skip(1);
        let ends = columns.next() == Some(&local) && columns.next() == Some(&remote);
        ends.then(|| columns.nth(6)?.parse().ok()).flatten()
    })
}

/// `0100007F:1F90`: the address as the kernel prints it, bytes in memory order.
fn hex(address: SocketAddrV4) -> String {
    format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{SocketAddr, TcpListener, TcpStream};

    fn v4(address: SocketAddr) -> SocketAddrV4 {
        match address {
            SocketAddr::V4(address) => address,
            SocketAddr::V6(_) => unreachable!("bound to 127.0.0.1"),
        }
    }

    #[test]
    fn this_process_holds_its_own_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (local, remote) = (v4(stream.local_addr().unwrap()), v4(stream.peer_addr().unwrap()));
        let me = Some(std::process::id());
        assert_eq!(of(local, remote, &[None, Some(1), me]), Some(2));
        assert_eq!(of(local, remote, &[None, Some(u32::MAX)]), None);
        drop(stream);
    }
}
