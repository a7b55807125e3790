//! Model files up and down.

use crate::artifacts;
use crate::error::{Error, Result};
use crate::node::Node;
use crate::predict::{hex, unhex};
use cairn_consensus::Error as PeerError;
use cairn_proto::api::v1 as api;
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Pieces a slow disk may lag behind the network.
const PIECES_AHEAD: usize = 8;

#[derive(Debug, Clone)]
pub struct Artifacts {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl api::artifacts_server::Artifacts for Artifacts {
    async fn upload(&self, request: Request<Streaming<api::UploadRequest>>) -> Result<Response<api::Artifact>, Status> {
        let mut stream = request.into_inner();
        let first = stream.next().await.transpose()?.and_then(|message| message.part);
        let Some(api::upload_request::Part::Header(header)) = first else {
            return Err(Error::invalid("an upload begins with its header").into());
        };
        let expected = match header.expected_root.as_str() {
            "" => None,
            root => Some(unhex(root)?),
        };
        let size = (header.size > 0).then_some(header.size);
        let (pieces, received) = mpsc::channel(PIECES_AHEAD);
        let forward = async move {
            while let Some(message) = stream.next().await {
                let piece = match message.map(|message| message.part) {
                    Ok(Some(api::upload_request::Part::Chunk(bytes))) => Ok(bytes),
                    Ok(_) => Err(PeerError::InvalidArgument("after the header an upload is chunks only".into())),
                    Err(status) => Err(PeerError::Unavailable(format!("the upload broke off: {}", status.message()))),
                };
                let broken = piece.is_err();
                if pieces.send(piece).await.is_err() || broken {
                    return;
                }
            }
        };
        let (stored, ()) =
            futures::join!(artifacts::store(&self.node, received, expected, size, Duration::ZERO), forward);
        let info = stored?;
        Ok(Response::new(api::Artifact {
            root: hex(&info.root),
            size: info.size,
            sha256: hex(&info.sha256),
            bytes_stored: info.bytes_stored,
        }))
    }

    type DownloadStream = super::wire::Replies<api::DownloadReply>;

    async fn download(&self, request: Request<api::DownloadRequest>) -> Result<Response<Self::DownloadStream>, Status> {
        let ask = request.into_inner();
        let root = unhex(&ask.root)?;
        artifacts::fetch(&self.node, root).await?;
        let pieces = artifacts::read(Arc::clone(&self.node.blobs), root, ask.offset);
        let replies = ReceiverStream::new(pieces).map(|piece| match piece {
            Ok(chunk) => Ok(api::DownloadReply { chunk }),
            Err(error) => Err(Error::from(error).into()),
        });
        Ok(Response::new(replies.boxed()))
    }
}
