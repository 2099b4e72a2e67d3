//! A block device over a file (Virtio 1.2, 5.2).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU32, Ordering};

use guest_abi::virtio::{CONFIG_SIZE, ID_BLOCK};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_queue::{DescriptorChain, Queue, QueueT, Reader, Writer};

use super::{Device, Memory, broken};
use crate::error::Result;

/// Bytes of a block.
pub const BLOCK: u64 = 512;
/// Bytes moved at a time.
const STEP: usize = 64 * 1024;

/// Makes a file of this size, of zeros, that nobody else can open and that is gone when it is closed.
///
/// # Errors
/// The operating system's.
pub fn scratch(size: u64) -> io::Result<File> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("flexserve-scratch-{}-{number}", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    file.set_len(size)?;
    Ok(file)
}

/// The device.
#[derive(Debug)]
pub struct Block {
    file: File,
    size: u64,
    read_only: bool,
}

impl Block {
    /// A device of the file's size now, rounded up to whole blocks; what lies behind the file's end reads as zeros.
    ///
    /// # Errors
    /// The file's.
    pub fn new(file: File, read_only: bool) -> io::Result<Self> {
        let size = file.metadata()?.len().next_multiple_of(BLOCK);
        Ok(Block { file, size, read_only })
    }

    /// Answers one request; returns the bytes written to the partition.
    fn answer(&self, chain: DescriptorChain<&Memory>, memory: &Memory) -> io::Result<u32> {
        let invalid = |error: virtio_queue::Error| io::Error::other(error.to_string());
        let mut reader: Reader<'_, ()> = chain.clone().reader(memory).map_err(invalid)?;
        let mut writer: Writer<'_, ()> = chain.writer(memory).map_err(invalid)?;
        let mut header = [0; 16];
        reader.read_exact(&mut header)?;
        let [kind, sector] = [0, 8].map(|at| {
            header
                .get(at..)
                .and_then(|bytes| bytes.first_chunk())
                .map_or(0, |bytes| u64::from_le_bytes(*bytes))
        });
        // The last byte is the status.
        let room = writer.available_bytes().checked_sub(1).ok_or(io::ErrorKind::InvalidData)?;
        let mut status_writer = writer.split_at(room).map_err(invalid)?;
        let done = match kind as u32 {
            VIRTIO_BLK_T_IN => self.read(sector, room as u64, &mut writer),
            VIRTIO_BLK_T_OUT => self.write(sector, &mut reader),
            VIRTIO_BLK_T_FLUSH => self.file.sync_data(),
            _ => Err(io::ErrorKind::Unsupported.into()),
        };
        let status = match done {
            Ok(()) => VIRTIO_BLK_S_OK,
            Err(error) if error.kind() == io::ErrorKind::Unsupported => VIRTIO_BLK_S_UNSUPP,
            Err(_) => VIRTIO_BLK_S_IOERR,
        };
        status_writer.write_all(&[status as u8])?;
        Ok((writer.bytes_written() + status_writer.bytes_written()) as u32)
    }

    /// The place in the file, if the request is whole blocks inside the device.
    fn place(&self, sector: u64, length: u64) -> io::Result<u64> {
        let place = sector.checked_mul(BLOCK).filter(|_| length.is_multiple_of(BLOCK));
        let place = place.filter(|place| place.checked_add(length).is_some_and(|end| end <= self.size));
        place.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    fn read(&self, sector: u64, length: u64, writer: &mut Writer<'_, ()>) -> io::Result<()> {
        let start = self.place(sector, length)?;
        let mut buffer = vec![0; STEP.min(length as usize)];
        let mut done = 0;
        while done < length {
            let count = (length - done).min(STEP as u64) as usize;
            let Some(part) = buffer.get_mut(..count) else { break };
            part.fill(0);
            let mut filled = 0;
            while let Some(rest) = part.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                match self.file.read_at(rest, start + done + filled as u64)? {
                    0 => break,
                    more => filled += more,
                }
            }
            writer.write_all(part)?;
            done += count as u64;
        }
        Ok(())
    }

    fn write(&self, sector: u64, reader: &mut Reader<'_, ()>) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let length = reader.available_bytes() as u64;
        let start = self.place(sector, length)?;
        let mut buffer = vec![0; STEP.min(length as usize)];
        let mut done = 0;
        while done < length {
            let count = (length - done).min(STEP as u64) as usize;
            let Some(part) = buffer.get_mut(..count) else { break };
            reader.read_exact(part)?;
            self.file.write_all_at(part, start + done)?;
            done += count as u64;
        }
        Ok(())
    }
}

impl Device for Block {
    fn id(&self) -> u32 {
        ID_BLOCK
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_BLK_F_FLUSH | u64::from(self.read_only) << VIRTIO_BLK_F_RO
    }

    fn config(&self) -> [u8; CONFIG_SIZE] {
        let mut config = [0; CONFIG_SIZE];
        let capacity = (self.size / BLOCK).to_le_bytes();
        config.iter_mut().zip(capacity).for_each(|(to, from)| *to = from);
        config
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[16]
    }

    fn reset(&mut self) {}

    fn serve(&mut self, queues: &mut [Queue], memory: &Memory) -> Result<bool> {
        let Some(queue) = queues.first_mut() else { return Ok(false) };
        let mut moved = false;
        // No more than the queue holds, so that a driver that adds without end is left for the other devices.
        for _ in 0..queue.size() {
            let Some(chain) = queue.pop_descriptor_chain(memory) else { break };
            let head = chain.head_index();
            let written = self.answer(chain, memory).map_err(broken)?;
            queue.add_used(memory, head, written).map_err(broken)?;
            moved = true;
        }
        Ok(moved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_files_are_empty_and_have_no_name() {
        let files = [scratch(1000).unwrap(), scratch(1000).unwrap()];
        files[0].write_all_at(b"here", 996).unwrap();
        let mut byte = [1];
        files[1].read_exact_at(&mut byte, 999).unwrap();
        assert_eq!((byte, files[1].metadata().unwrap().len()), ([0], 1000));
        use std::os::unix::fs::MetadataExt;
        assert!(files.iter().all(|file| file.metadata().unwrap().nlink() == 0));
    }
}
