//! A host kernel of our own making: raw calls of the hypervisor, and pages whose physical addresses are known.
//!
//! It takes the place of flexserve.ko, whose mailbox it needs; the two are never loaded at once.

use std::ffi::CString;
use std::fs::File;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result, anyhow, bail, ensure};
use flexserve::error::status_name;
use hyp_abi::ffa::{self, error};
use hyp_abi::service::{PageRange, op};
use hyp_abi::stats::{PartitionStats, SystemStats};
use hyp_abi::{PAGE_SIZE, service};
use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};
use zerocopy::{FromBytes, IntoBytes};

use crate::sys::{AttackModule, Conduit, Window};

/// Where init finds modules; flexserve.ko is loaded from there.
const PRODUCT_MODULE: &str = "/lib/modules/flexserve.ko";
/// Not loaded by init.
const ATTACK_MODULE: &str = "/usr/lib/flexserve/flexserve_attack.ko";
/// The most pages of one allocation.
const MAX_BLOCK: u64 = 1024;

/// Loads a module; one that is loaded already is fine.
fn load(path: &str) -> Result<()> {
    let file = File::open(path).with_context(|| path.to_owned())?;
    match finit_module(&file, &CString::default(), ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(anyhow!("{path}: {error}")),
    }
}

/// Loads the product's module.
pub fn load_product_module() -> Result<()> {
    load(PRODUCT_MODULE)
}

/// Unloads the product's module, if it is loaded.
pub fn unload_product_module() -> Result<()> {
    match delete_module(c"flexserve", DeleteModuleFlags::O_NONBLOCK) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(anyhow!("flexserve.ko cannot be unloaded: {error}")),
    }
}

/// Loads the attack module and opens it.
pub fn open_attack_module() -> Result<AttackModule> {
    if !Path::new(crate::sys::ATTACK_DEVICE).exists() {
        load(ATTACK_MODULE)?;
    }
    AttackModule::open()
}

/// An answer of the vendor service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// 0 or an FF-A error.
    pub status: i32,
    /// x4-x7.
    pub out: [u64; 4],
}

impl Reply {
    /// The results, if it succeeded.
    pub fn ok(self, what: &str) -> Result<[u64; 4]> {
        match self.status {
            0 => Ok(self.out),
            status => bail!("{what}: {} ({:#x})", status_name(status), self.out[0]),
        }
    }

    /// As it is printed.
    pub fn shown(&self) -> String {
        if self.status == 0 { "accepted".into() } else { status_name(self.status) }
    }
}

/// Registers of a message to the service.
pub fn message(operation: u64, arguments: [u64; 4]) -> [u64; 18] {
    let mut regs = [0; 18];
    regs[0] = ffa::MSG_SEND_DIRECT_REQ_64.into();
    regs[1] = u64::from(ffa::HOST_ID) << 16 | u64::from(ffa::SERVICE_ID);
    regs[3] = operation;
    regs[4..8].copy_from_slice(&arguments);
    regs
}

/// The service's answer in registers.
pub fn reply(regs: &[u64; 18]) -> Reply {
    let out = [regs[4], regs[5], regs[6], regs[7]];
    match regs[0] as u32 {
        ffa::MSG_SEND_DIRECT_RESP_64 => Reply { status: regs[3] as i32, out },
        ffa::ERROR => Reply { status: regs[2] as i32, out },
        _ => Reply { status: error::NOT_SUPPORTED, out },
    }
}

/// Sends a message without a list.
pub fn call_service(module: &AttackModule, operation: u64, arguments: [u64; 4]) -> Result<Reply> {
    let regs = module.call(Conduit::Smc, message(operation, arguments)).context("the attack module")?;
    Ok(reply(&regs))
}

/// The host, with the mailbox mapped. One per machine.
#[derive(Debug)]
pub struct Host {
    /// The module.
    pub module: AttackModule,
    mailbox: Window,
    mailbox_address: u64,
    /// Whether this process mapped the mailbox.
    is_owner: bool,
    /// A list in TX, and a result in RX, belong to one call at a time.
    calls: Mutex<()>,
    /// Allocations that nobody freed yet.
    blocks: Mutex<Vec<(u64, u64)>>,
    /// Pages that partitions were given.
    given: Mutex<Vec<u64>>,
}

impl Host {
    /// Takes the mailbox.
    pub fn new() -> Result<Self> {
        unload_product_module()?;
        let module = open_attack_module()?;
        let mailbox_address = module.allocate(2).context("memory for the mailbox")?;
        let host = Self::with_mailbox(module, mailbox_address, true)?;
        host.restore_mailbox()?;
        Ok(host)
    }

    /// Uses the mailbox at an address, which another process mapped and does not use meanwhile.
    pub fn with_shared_mailbox(address: u64) -> Result<Self> {
        Self::with_mailbox(open_attack_module()?, address, false)
    }

    fn with_mailbox(module: AttackModule, mailbox_address: u64, is_owner: bool) -> Result<Self> {
        let mailbox = module.map(mailbox_address, 2)?;
        let (calls, blocks, given) = (Mutex::new(()), Mutex::default(), Mutex::default());
        Ok(Self { module, mailbox, mailbox_address, is_owner, calls, blocks, given })
    }

    /// Where the mailbox is.
    pub fn mailbox_address(&self) -> u64 {
        self.mailbox_address
    }

    /// Maps a mailbox; returns 0 or the FF-A error.
    pub fn rxtx_map(&self, tx: u64, rx: u64) -> Result<i32> {
        let regs = self.ffa(ffa::RXTX_MAP_64, [tx, rx, 1])?;
        Ok(if regs[0] as u32 == ffa::SUCCESS_32 { 0 } else { regs[2] as i32 })
    }

    /// Maps the own mailbox, whatever was mapped before.
    pub fn restore_mailbox(&self) -> Result<()> {
        self.ffa(ffa::RXTX_UNMAP, [0; 3])?;
        let answer = self.rxtx_map(self.mailbox_address, self.mailbox_address + PAGE_SIZE)?;
        ensure!(answer == 0, "RXTX_MAP: {}", status_name(answer));
        Ok(())
    }

    /// An FF-A call of few arguments.
    pub fn ffa(&self, function: u32, arguments: [u64; 3]) -> Result<[u64; 18]> {
        let mut regs = [0; 18];
        regs[0] = function.into();
        regs[1..4].copy_from_slice(&arguments);
        self.module.call(Conduit::Smc, regs).context("the attack module")
    }

    /// An FF-A call with any registers.
    pub fn call(&self, words: &[u64]) -> Result<[u64; 18]> {
        let mut regs = [0; 18];
        regs.iter_mut().zip(words).for_each(|(register, word)| *register = *word);
        self.module.call(Conduit::Smc, regs).context("the attack module")
    }

    /// Writes TX.
    pub fn write_tx(&self, bytes: &[u8]) {
        self.mailbox.write(0, bytes);
    }

    /// Reads RX and gives it back.
    pub fn take_rx(&self, size: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; size];
        self.mailbox.read(PAGE_SIZE as usize, &mut bytes);
        let answer = self.ffa(ffa::RX_RELEASE, [0; 3])?;
        ensure!(answer[0] as u32 == ffa::SUCCESS_32, "there is nothing in RX");
        Ok(bytes)
    }

    /// What a partition logged.
    pub fn log(&self, id: u16) -> Result<Vec<u8>> {
        let [length, ..] = call_service(&self.module, op::LOG, [id.into(), 0, 0, 0])?.ok("LOG")?;
        if length == 0 { Ok(Vec::new()) } else { self.take_rx(length as usize) }
    }

    /// A message of the vendor service without a list. Asked for table pages, it gives them and repeats.
    pub fn service(&self, operation: u64, arguments: [u64; 4]) -> Result<Reply> {
        self.service_with_list(operation, arguments, &[])
    }

    /// A message with a list of ranges in TX.
    pub fn service_with_list(
        &self,
        operation: u64,
        arguments: [u64; 4],
        list: &[PageRange],
    ) -> Result<Reply> {
        self.service_with_bytes(operation, arguments, list.as_bytes())
    }

    /// A message with anything in TX.
    pub fn service_with_bytes(&self, operation: u64, arguments: [u64; 4], bytes: &[u8]) -> Result<Reply> {
        let _calls = self.calls.lock().map_err(|_| anyhow!("a call panicked"))?;
        for _ in 0..64 {
            self.mailbox.write(0, bytes);
            let reply = call_service(&self.module, operation, arguments)?;
            if reply.status != error::NO_MEMORY {
                return Ok(reply);
            }
            let count = reply.out[0].max(1).next_power_of_two();
            let address = self.module.allocate(count).context("memory for page tables")?;
            self.mailbox.write(0, PageRange { base: address, page_count: count }.as_bytes());
            call_service(&self.module, op::TABLES_GIVE, [1, 0, 0, 0])?.ok("TABLES_GIVE")?;
        }
        bail!("the hypervisor asks for table pages without end")
    }

    /// One call, whatever it is, with something in TX.
    pub fn call_with_list(&self, conduit: Conduit, regs: [u64; 18], bytes: &[u8]) -> Result<[u64; 18]> {
        let _calls = self.calls.lock().map_err(|_| anyhow!("a call panicked"))?;
        self.mailbox.write(0, bytes);
        self.module.call(conduit, regs).context("the attack module")
    }

    fn result<T: FromBytes + IntoBytes>(&self, operation: u64, argument: u64) -> Result<T> {
        let _calls = self.calls.lock().map_err(|_| anyhow!("a call panicked"))?;
        call_service(&self.module, operation, [argument, 0, 0, 0])?.ok("a call with a result")?;
        let mut value = T::new_zeroed();
        self.mailbox.read(PAGE_SIZE as usize, value.as_mut_bytes());
        self.ffa(ffa::RX_RELEASE, [0; 3])?;
        Ok(value)
    }

    /// Statistics of the system.
    pub fn stats(&self) -> Result<SystemStats> {
        self.result(op::STATS, 0)
    }

    /// Statistics of a partition.
    pub fn partition_stats(&self, id: u16) -> Result<PartitionStats> {
        self.result(op::STATS, id.into())
    }

    /// Measures to the end.
    pub fn measure(&self, id: u16) -> Result<[u8; service::MEASUREMENT_SIZE]> {
        let _calls = self.calls.lock().map_err(|_| anyhow!("a call panicked"))?;
        while call_service(&self.module, op::MEASURE, [id.into(), 0, 0, 0])?.ok("MEASURE")?[0] != 0 {}
        let mut measurement = [0; service::MEASUREMENT_SIZE];
        self.mailbox.read(PAGE_SIZE as usize, &mut measurement);
        self.ffa(ffa::RX_RELEASE, [0; 3])?;
        Ok(measurement)
    }

    /// Allocates contiguous zeroed pages; returns their address. They stay until [`Self::release_all`].
    pub fn allocate(&self, count: u64) -> Result<u64> {
        ensure!(count > 0 && count <= MAX_BLOCK, "{count} pages at once");
        let count = count.next_power_of_two();
        let address = self.module.allocate(count).context("memory of the host")?;
        self.blocks.lock().map_err(|_| anyhow!("an allocation panicked"))?.push((address, count));
        Ok(address)
    }

    /// Destroys a partition, if there is one of that id.
    pub fn destroy(&self, id: u16) -> Result<()> {
        let mut found = false;
        loop {
            let reply = call_service(&self.module, op::DESTROY, [id.into(), 0, 0, 0])?;
            match reply.status {
                0 if reply.out[0] == 0 => return Ok(()),
                0 => {}
                error::BUSY => std::thread::yield_now(),
                error::INVALID_PARAMETERS if !found => return Ok(()),
                status => bail!("partition {id:#x} cannot be destroyed: {}", status_name(status)),
            }
            found = true;
        }
    }

    /// Destroys every partition, whoever made it.
    pub fn destroy_all(&self) -> Result<()> {
        (0..service::MAX_PARTITIONS as u16).try_for_each(|slot| self.destroy(ffa::PARTITION_ID_BASE + slot))
    }

    /// Frees all that [`Self::allocate`] gave. Every page must be this host's again.
    pub fn release_all(&self) -> Result<()> {
        for (address, count) in self.take_blocks()? {
            self.module.free(address, count).context("FREE")?;
        }
        Ok(())
    }

    /// Forgets all that [`Self::allocate`] gave: who knows whose the pages are.
    pub fn leak_all(&self) -> Result<()> {
        self.take_blocks().map(drop)
    }

    /// Notes that a partition was given pages.
    pub fn note_given(&self, range: &PageRange) -> Result<()> {
        let pages = (0..range.page_count).map(|page| range.base + page * PAGE_SIZE);
        self.given.lock().map_err(|_| anyhow!("a give panicked"))?.extend(pages);
        Ok(())
    }

    /// What was noted; the notes are gone then.
    pub fn take_given(&self) -> Result<Vec<u64>> {
        Ok(std::mem::take(&mut *self.given.lock().map_err(|_| anyhow!("a give panicked"))?))
    }

    fn take_blocks(&self) -> Result<Vec<(u64, u64)>> {
        let mut blocks = self.blocks.lock().map_err(|_| anyhow!("an allocation panicked"))?;
        Ok(std::mem::take(&mut blocks))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // If the hypervisor keeps the mailbox, so do we.
        if self.is_owner
            && self.ffa(ffa::RXTX_UNMAP, [0; 3]).is_ok_and(|regs| regs[0] as u32 == ffa::SUCCESS_32)
        {
            let _ = self.module.free(self.mailbox_address, 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_answers_are_laid_out_as_the_service_says() {
        let regs = message(op::GIVE, [1, 2, 3, 4]);
        assert_eq!(regs[..8], [0xC400_006F, 0x8001, 0, op::GIVE, 1, 2, 3, 4]);
        let mut answer = [0; 18];
        answer[..8].copy_from_slice(&[0xC400_0070, 0, 0, -6i64 as u64, 9, 0, 0, 0]);
        assert_eq!(reply(&answer), Reply { status: error::DENIED, out: [9, 0, 0, 0] });
        answer[..4].copy_from_slice(&[0x8400_0060, 0, 0xFFFF_FFFE, 0]);
        assert_eq!(reply(&answer).status, error::INVALID_PARAMETERS);
        answer[0] = u64::MAX;
        assert_eq!(reply(&answer).status, error::NOT_SUPPORTED);
    }
}
