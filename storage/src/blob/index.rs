//! Where every chunk is, in memory. Rebuilt at open from the packs' index files.

use super::Hash;
use smallvec::SmallVec;
use std::collections::HashMap;

/// Place of one stored copy of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    pub pack: u32,
    pub len: u32,
    /// Of the chunk's record in the pack.
    pub offset: u64,
}

/// Chunk to its copies: nearly always one. Two writers of the same new bytes, or a repair, make more.
#[derive(Debug, Default)]
pub struct ChunkIndex(HashMap<Hash, SmallVec<[Location; 1]>>);

impl ChunkIndex {
    pub fn contains(&self, hash: &Hash) -> bool {
        self.0.contains_key(hash)
    }

    pub fn locations(&self, hash: &Hash) -> SmallVec<[Location; 1]> {
        self.0.get(hash).cloned().unwrap_or_default()
    }

    pub fn insert(&mut self, hash: Hash, location: Location) {
        let copies = self.0.entry(hash).or_default();
        if !copies.contains(&location) {
            copies.push(location);
        }
    }

    /// Forgets a copy found damaged, so that the next upload of these bytes stores them anew.
    pub fn forget(&mut self, hash: &Hash, location: Location) {
        if let Some(copies) = self.0.get_mut(hash) {
            copies.retain(|copy| *copy != location);
            if copies.is_empty() {
                self.0.remove(hash);
            }
        }
    }
}
