//! Bounds on a model, checked before memory is taken for what they bound.

/// Dimensions of a tensor: one generic instance of each burn call for every rank is compiled, so the number is fixed.
pub(crate) const RANK_MAX: usize = 6;

#[derive(Debug, Clone)]
pub struct Limits {
    /// Size of the artifact. ONNX itself ends at 2 GiB.
    pub model_bytes_max: usize,
    pub nodes_max: usize,
    pub initializers_max: usize,
    /// Messages and strings in the artifact. Each costs up to about 300 bytes once read, however small it was; a forest
    /// has two strings or
    /// so for each node.
    pub items_max: usize,
    /// Elements of any one tensor, stored or computed.
    pub elements_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            model_bytes_max: 1 << 30,
            nodes_max: 50_000,
            initializers_max: 50_000,
            items_max: 10_000_000,
            elements_max: 1 << 28,
        }
    }
}
