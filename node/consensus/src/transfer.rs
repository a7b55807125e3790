//! Artifacts between nodes, as streams on the request connection.

use crate::error::{Error, Result};
use crate::node::Node;
use crate::types::NodeId;
use bytes::Bytes;
use cairn_proto::peer::v1::{BlobFrame, BlobHeader, GetBlobRequest, blob_frame::Part};
use futures::StreamExt;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Frames waiting for who reads them.
const FRAMES_MAX: usize = 8;

pub(crate) async fn put_blob(
    node: &Node,
    to: NodeId,
    root: [u8; 32],
    size: u64,
    data: mpsc::Receiver<Result<Bytes, Error>>,
) -> Result<u64> {
    node.check_running()?;
    let peer = node.peers.get(to);
    let mut client = peer.requests().await?;
    let header = BlobHeader { envelope: Some(peer.envelope()), root: Bytes::copy_from_slice(&root), size };
    // A stream that ends early is refused by the receiver; the reason stays here.
    let failed = Arc::new(Mutex::new(None));
    let reason = failed.clone();
    let pieces = ReceiverStream::new(data).scan((), move |(), piece| {
        let frame = match piece {
            Ok(piece) => Some(BlobFrame { part: Some(Part::Data(piece)) }),
            Err(error) => {
                *reason.lock() = Some(error);
                None
            }
        };
        std::future::ready(frame)
    });
    let first = futures::stream::iter([BlobFrame { part: Some(Part::Header(header)) }]);
    let stored = client.put_blob(first.chain(pieces)).await;
    if let Some(error) = failed.lock().take() {
        return Err(error);
    }
    stored.map(|reply| reply.into_inner().bytes_stored).map_err(|status| Error::of_status(&status))
}

pub(crate) async fn get_blob(
    node: &Node,
    from: NodeId,
    root: [u8; 32],
) -> Result<(u64, mpsc::Receiver<Result<Bytes, Error>>)> {
    node.check_running()?;
    let peer = node.peers.get(from);
    let mut client = peer.requests().await?;
    let request = GetBlobRequest { envelope: Some(peer.envelope()), root: Bytes::copy_from_slice(&root) };
    let mut frames = client.get_blob(request).await.map_err(|status| Error::of_status(&status))?.into_inner();
    let first = frames.message().await.map_err(|status| Error::of_status(&status))?;
    let Some(Part::Header(header)) = first.and_then(|frame| frame.part) else {
        return Err(Error::Internal(format!("node {from} sent an artifact without its header")));
    };
    let (pieces, data) = mpsc::channel(FRAMES_MAX);
    tokio::spawn(async move {
        let mut left = header.size;
        while left > 0 {
            let piece = match frames.message().await {
                Ok(Some(BlobFrame { part: Some(Part::Data(piece)) })) if piece.len() as u64 <= left => Ok(piece),
                Ok(Some(_)) => Err(Error::Internal(format!("node {from} sent an artifact out of order"))),
                Ok(None) => Err(Error::Unavailable(format!("node {from} ended an artifact too early"))),
                Err(status) => Err(Error::of_status(&status)),
            };
            left -= piece.as_ref().map_or(0, |piece| piece.len() as u64);
            let failed = piece.is_err();
            if pieces.send(piece).await.is_err() || failed {
                return;
            }
        }
    });
    Ok((header.size, data))
}
