//! The command queue (section 3.5, 4.8, 7.1). One issuer, which the caller serializes.

use super::registers::*;
use super::{Error, Io, PATIENCE};

/// Entries, as a power of two: 4 KiB.
pub(super) const LOG2SIZE: u32 = 8;
/// Index and wrap bit.
const POINTER: u32 = (2 << LOG2SIZE) - 1;
const FULL: u32 = 1 << LOG2SIZE;

pub(super) struct CommandQueue {
    base: u64,
    prod: u32,
    cons: u32,
}

impl CommandQueue {
    /// Programs an empty queue; CR0.CMDQEN is off and acknowledged.
    pub fn start(io: &mut impl Io, base: u64) -> Self {
        io.write64(CMDQ_BASE, base | BASE_ALLOCATE | u64::from(LOG2SIZE));
        io.write(CMDQ_PROD, 0);
        io.write(CMDQ_CONS, 0);
        Self { base, prod: 0, cons: 0 }
    }

    fn write(&self, io: &mut impl Io, index: u32, command: [u64; 2]) {
        let entry = self.base + 16 * u64::from(index & (FULL - 1));
        io.store(entry, command[0]);
        io.store(entry + 8, command[1]);
    }

    /// Queues a command; the SMMU may not see it before [`Self::sync`].
    pub fn put(&mut self, io: &mut impl Io, command: [u64; 2]) -> Result<(), Error> {
        if self.prod ^ self.cons == FULL {
            self.drain(io)?;
        }
        self.write(io, self.prod, command);
        self.prod = (self.prod + 1) & POINTER;
        Ok(())
    }

    /// Queues CMD_SYNC and waits until it is consumed: all commands are complete, and so are the transactions that used
    /// what they invalidated.
    pub fn sync(&mut self, io: &mut impl Io) -> Result<(), Error> {
        self.put(io, SYNC_COMMAND)?;
        self.drain(io)
    }

    /// Waits until the queue is empty. A command that the SMMU refuses is replaced by CMD_SYNC (section 7.1), so that
    /// the queue goes on for later callers; this one gets an error.
    pub fn drain(&mut self, io: &mut impl Io) -> Result<(), Error> {
        io.write(CMDQ_PROD, self.prod);
        let mut result = Ok(());
        for _ in 0..PATIENCE {
            let gerrorn = io.read(GERRORN);
            let failed = (io.read(GERROR) ^ gerrorn) & GERROR_CMDQ_ERR != 0;
            let cons = io.read(CMDQ_CONS);
            self.cons = cons & POINTER;
            if failed {
                // A fetch that aborted is tried again; everything else must not be.
                if cmdq_cons_error(cons) != CERROR_ABT {
                    self.write(io, self.cons, SYNC_COMMAND);
                    result = Err(Error::CommandFailed);
                }
                io.write(GERRORN, gerrorn ^ GERROR_CMDQ_ERR);
            } else if self.cons == self.prod {
                return result;
            }
        }
        Err(Error::CommandsStuck)
    }
}
