//! What the device sees of memory.

/// A kind of access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// From memory.
    Read,
    /// To memory.
    Write,
}

/// Why something was not done to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An access was refused.
    Refused(Access, u64),
    /// The queue is being stopped.
    Stopped,
    /// The list was cancelled.
    Cancelled,
}

/// Memory by IOVA.
pub trait Dma {
    /// Fills `buffer`.
    ///
    /// # Errors
    /// [`Fault::Refused`] or [`Fault::Stopped`]. The buffer may be partly filled then.
    fn read(&self, iova: u64, buffer: &mut [u8]) -> Result<(), Fault>;

    /// Writes `bytes`.
    ///
    /// # Errors
    /// As [`Dma::read`].
    fn write(&self, iova: u64, bytes: &[u8]) -> Result<(), Fault>;
}

/// Reads an array.
///
/// # Errors
/// As [`Dma::read`].
pub fn read_array<const N: usize>(dma: &dyn Dma, iova: u64) -> Result<[u8; N], Fault> {
    let mut array = [0; N];
    dma.read(iova, &mut array)?;
    Ok(array)
}
