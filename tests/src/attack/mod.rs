//! The attacks: each is carried out with all defences on, where it must be blocked, and, on an image with fault knobs,
//! without the one that blocks it, where it must succeed.
//!
//! An attack never asks which of the two is the case: it says what came of it, from what it got, what the partition finds
//! changed, and what the outside sees in RAM. `attacks.toml` describes each for people and for xtask.

mod cpu;
mod device;
mod dma;
mod gic;
mod give;
pub mod guest;
mod malformed;
mod memory;
mod memory_ffa;
mod messages;
mod npu;
mod pci;
mod secure_ram;
pub mod sel2;
mod smmu;
pub mod state;
mod vcpu;
mod virtio;
mod vmm;

use anyhow::{Context, Result, bail, ensure};
use flexserve::image::Image;
use hyp_abi::manifest::access;
use hyp_abi::{PAGE_SIZE, service::op};
use nix::sys::signal::Signal;

use crate::child::{self, End};
use crate::host::{Host, call_service, load_product_module, open_attack_module, unload_product_module};
use crate::knob::Knob;
use crate::partition::{PROBE_PATH, Partition};
use crate::report;
use crate::secret::Secret;

/// What came of an attack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was refused, and nothing changed.
    Blocked(String),
    /// It did what it was for.
    Succeeded(String),
}

/// How an attack drives the machine.
#[derive(Clone, Copy)]
pub enum Act {
    /// By raw calls; the mailbox is ours.
    Raw(fn(&Scene<'_>) -> Result<Outcome>),
    /// Through the product's module.
    Product(fn(&Secret) -> Result<Outcome>),
}

/// One attack.
pub struct Attack {
    /// Its name.
    pub name: &'static str,
    act: Act,
    /// What to leave out so that it succeeds: its defence first; the others would only stand behind it, or break down.
    pub without: &'static [Knob],
}

const fn raw(name: &'static str, act: fn(&Scene<'_>) -> Result<Outcome>, without: &'static [Knob]) -> Attack {
    Attack { name, act: Act::Raw(act), without }
}

use Knob::*;

/// All attacks, in the order in which they run: those that need the product's module last, since it takes the mailbox.
pub const ATTACKS: &[Attack] = &[
    raw("host-reads", memory::host_reads, &[SkipHostUnmap]),
    raw("host-writes", memory::host_writes, &[SkipHostUnmap]),
    raw("host-executes", memory::host_executes, &[SkipHostUnmap]),
    raw("process-maps", memory::process_maps, &[SkipHostUnmap]),
    raw("owner-died", memory::owner_died, &[SkipHostUnmap]),
    raw("secret-after-recall", memory::secret_after_recall, &[SkipScrubOnRecall]),
    raw("planted-contents", memory::planted_contents, &[SkipScrubOnGive]),
    raw("give-twice", give::twice, &[SkipOwnershipCheck]),
    raw("give-hypervisor", give::hypervisor, &[SkipOwnershipCheck, SkipScrubOnRecall, SkipClean]),
    raw("give-device", give::device, &[SkipOwnershipCheck, SkipScrubOnGive, SkipScrubOnRecall, SkipClean]),
    raw("give-unaligned", give::unaligned, &[RangeForm]),
    raw("give-wrapped", give::wrapped, &[RangeForm]),
    raw("give-overlapping", give::overlapping, &[SkipOverlapCheck]),
    raw("recall-in-use", give::recall_in_use, &[RecallState]),
    raw("change-after-measurement", give::change_after_measurement, &[ContentsAfterMeasure]),
    raw("mailbox-in-partition", give::mailbox_in_partition, &[RxtxOwnership]),
    raw("cpu-on-in-partition", cpu::cpu_on_in_partition, &[CpuOnEntry, SkipHostUnmap]),
    raw("unlisted-firmware-call", cpu::unlisted_firmware_call, &[SmcAllowList]),
    raw("malformed-calls", malformed::malformed_calls, &[RangeForm]),
    raw("partition-strays", guest::strays, &[PartitionAbort]),
    raw("partition-writes-read-only", guest::writes_read_only, &[RegionAccess]),
    raw("partition-hidden-registers", guest::hidden_registers, &[RegisterTraps]),
    raw("simd-leak", guest::simd_leak, &[SimdSwitch]),
    raw("partition-spins", guest::spins, &[InterruptRouting]),
    raw("dma-by-fw-cfg", device::dma_by_fw_cfg, &[DeviceAllowList]),
    raw("dma-by-virtio-mmio", device::dma_by_virtio_mmio, &[DeviceAllowList]),
    raw("smmu-registers", device::smmu_registers, &[DeviceAllowList]),
    raw("forged-trusted-log", device::forged_trusted_log, &[DeviceAllowList]),
    raw("mailbox-of-another", messages::mailbox_of_another, &[GuestMailbox]),
    raw("unbound-notification", messages::unbound_notification, &[NotificationBinding]),
    raw("forged-sender", messages::forged_sender, &[SenderId]),
    raw("overwritten-message", messages::overwritten_message, &[RxOwnership]),
    raw("forged-log-line", messages::forged_log_line, &[LogCharacters]),
    raw("vcpu-entered-twice", vcpu::entered_twice, &[VcpuInside]),
    raw("vcpu-not-in-manifest", vcpu::not_in_manifest, &[VcpuCount]),
    raw("partition-sends-sgis", vcpu::sends_sgis, &[InterruptRouting]),
    raw("partition-smc-storm", guest::smc_storm, &[InterruptRouting]),
    raw("give-recall-race", give::race, &[SkipScrubOnRecall]),
    raw("pauth-keys-leak", state::pauth_leak, &[PauthSwitch]),
    raw("breakpoint-leak", state::debug_leak, &[DebugOff]),
    raw("counter-leak", state::counter_leak, &[CountersStop]),
    raw("hidden-feature", state::hidden_feature, &[HiddenFeatures]),
    raw("vectors-leak", state::vectors_leak, &[SimdSwitch]),
    raw("virtio-reads-private", virtio::reads_private, &[SkipHostUnmap]),
    raw("virtio-writes-private", virtio::writes_private, &[SkipHostUnmap]),
    raw("ffa-share-foreign", memory_ffa::share_foreign, &[SkipSendOwnershipCheck]),
    raw("ffa-fragment-foreign", memory_ffa::fragment_foreign, &[SkipSendOwnershipCheck]),
    raw("ffa-lend-mailbox", memory_ffa::lend_mailbox, &[SkipSendPinCheck]),
    raw("ffa-reclaim-borrowed", memory_ffa::reclaim_borrowed, &[SkipBorrowedCheck]),
    raw("ffa-secret-after-reclaim", memory_ffa::secret_after_reclaim, &[SkipScrubOnReclaim]),
    raw("ffa-lender-reads", memory_ffa::lender_reads, &[SkipLendUnmap]),
    raw("ffa-use-after-relinquish", memory_ffa::use_after_relinquish, &[SkipRelinquishUnmap]),
    raw("ffa-handle-guessing", memory_ffa::handle_guessing, &[HandleReceiver]),
    raw("ffa-descriptor-overflow", memory_ffa::descriptor_overflow, &[DescriptorBounds]),
    raw("dma-reads", dma::edu_reads, &[SkipHostUnmap]),
    raw("dma-writes", dma::edu_writes, &[SkipHostUnmap]),
    raw("dma-reads-stale", dma::edu_reads_stale, &[SmmuInvalidate]),
    raw("dma-writes-stale", dma::edu_writes_stale, &[SmmuInvalidate]),
    raw("dma-by-virtio", dma::entropy_writes, &[SkipHostUnmap]),
    raw("dma-reads-devices", dma::edu_reads_devices, &[StreamRoot]),
    raw("dma-writes-devices", dma::edu_writes_devices, &[StreamRoot]),
    raw("smmu-bypass", smmu::bypass, &[DeviceAllowList]),
    raw("smmu-stream-table", smmu::stream_table, &[DeviceAllowList]),
    raw("lpi-tables", gic::lpi_tables, &[GicrTables]),
    raw("bar-over-npu", pci::bar_over_npu, &[BarMove]),
    raw("bus-number-of-npu", pci::bus_number, &[BusNumbers]),
    raw("npu-configuration", pci::npu_configuration, &[NpuConfig]),
    raw("msi-doorbell", pci::msi, &[Msi]),
    raw("npu-reads", npu::host_job_reads, &[SkipHostUnmap]),
    raw("npu-writes", npu::host_job_writes, &[SkipHostUnmap]),
    raw("npu-registers-read", npu::registers_read, &[SkipWindowUnmap]),
    raw("npu-registers-written", npu::registers_written, &[SkipWindowUnmap]),
    raw("npu-job-across-give", npu::job_across_give, &[SmmuInvalidate]),
    raw("npu-job-survives", npu::job_survives, &[NpuReset]),
    raw("npu-stale-translations", npu::stale_translations, &[NpuInvalidate, NpuReset, SmmuInvalidate]),
    raw("npu-stream-stays", npu::stream_stays, &[NpuStream]),
    raw("npu-residue", npu::residue, &[NpuReset]),
    raw("npu-interrupt-leaks", npu::interrupt_leaks, &[NpuInterrupt]),
    raw("npu-guesses-addresses", npu::guesses_addresses, &[NpuStream]),
    raw("dma-event-flood", dma::event_flood, &[DmaReports]),
    raw("guard-imitated", sel2::guard_imitated, &[GuardName]),
    raw("tables-shared", sel2::tables_shared, &[SkipSendOwnershipCheck]),
    raw("private-memory", secure_ram::private_memory, &[PrivateMemory]),
    raw(
        "partition-in-secure-space",
        secure_ram::partition_in_secure_space,
        &[NormalSpace, SkipOwnershipCheck, SkipScrubOnRecall, SkipClean],
    ),
    Attack { name: "vmm-killed", act: Act::Product(vmm::killed), without: &[SkipScrubOnRecall] },
];

/// What an attack works on.
pub struct Scene<'h> {
    /// The host, ours.
    pub host: &'h Host,
    /// The probe.
    pub image: &'h Image,
    /// This attack's secret.
    pub secret: Secret,
    /// Whether a defence is left out; for what has to be arranged differently then, never for the verdict.
    pub is_without: bool,
}

impl<'h> Scene<'h> {
    /// A running probe with the secret in its heap, seen there from outside.
    pub fn partition(&self) -> Result<Partition<'h>> {
        let partition = Partition::load(self.host, self.image, Some(&self.secret))?;
        ensure!(self.secret.is_at(partition.heap_page()?)?, "the secret is not where it should be");
        Ok(partition)
    }

    /// A running probe without a secret.
    pub fn plain_partition(&self) -> Result<Partition<'h>> {
        Partition::load(self.host, self.image, None)
    }

    /// A place in the executable region that the image does not use.
    pub fn free_code_ipa(&self) -> Result<u64> {
        let is_executable = |bits: u32| bits & access::EXECUTE != 0;
        let region = self.image.regions().iter().find(|region| is_executable(region.access));
        let region = region.context("the probe has no code")?;
        Ok(region.ipa + (region.page_count - 1) * PAGE_SIZE)
    }

    /// Has a child try something that aborts when it is refused: none if it was, and the hypervisor counted it.
    pub fn aborts(&self, signal: Signal, attempt: impl FnOnce() -> Result<End>) -> Result<Option<Vec<u64>>> {
        let before = self.host.stats()?.blocked_accesses;
        let end = attempt()?;
        let counted = self.host.stats()?.blocked_accesses - before;
        match end {
            End::Values(values) => Ok(Some(values)),
            End::Killed(killer) if killer == signal && counted > 0 => Ok(None),
            other => bail!("a child ended by {other:?} after {counted} blocked accesses"),
        }
    }
}

/// Names of the knob's test.
pub fn without_name(name: &str) -> String {
    format!("{name}/without")
}

/// Runs the wanted attacks; each is a test. With `without`, leaving out their defences, or only that one.
pub fn run(without: bool, only: Option<&str>) -> Result<()> {
    if let Some(only) = only {
        ensure!(Knob::ALL.iter().any(|knob| knob.name() == only), "there is no defence {only}");
    }
    let wanted = report::wanted_tests()?;
    unload_product_module()?;
    let mut host = None;
    for attack in ATTACKS {
        let name = if without { without_name(attack.name) } else { attack.name.to_owned() };
        if !wanted.contains(&name) {
            continue;
        }
        let knobs: &[Knob] = if without { attack.without } else { &[] };
        let known = only.is_none_or(|only| knobs.iter().any(|knob| knob.name() == only));
        let result = match known {
            true => carry_out(attack, knobs, &mut host),
            false => Err(anyhow::anyhow!("this attack does not depend on {}", only.unwrap_or_default())),
        };
        let (ok, detail) = match (&result, without) {
            (Ok(Outcome::Blocked(how)), false) => (true, format!("blocked: {how}")),
            (Ok(Outcome::Succeeded(how)), true) => (true, format!("succeeded: {how}")),
            (Ok(Outcome::Blocked(how)), true) => (false, format!("blocked although nothing should: {how}")),
            (Ok(Outcome::Succeeded(how)), false) => (false, format!("NOT BLOCKED: {how}")),
            (Err(error), _) => (false, format!("{error:#}")),
        };
        report::verdict(&name, ok, &detail)?;
    }
    Ok(())
}

fn carry_out(attack: &Attack, knobs: &[Knob], host: &mut Option<Host>) -> Result<Outcome> {
    let secret = Secret::new()?;
    match attack.act {
        Act::Raw(act) => {
            unload_product_module()?;
            let host = match host {
                Some(host) => host,
                None => host.insert(Host::new()?),
            };
            let image = Image::load(PROBE_PATH.as_ref())?;
            let scene = Scene { host, image: &image, secret, is_without: !knobs.is_empty() };
            turn(host, knobs, true)?;
            let result = act(&scene);
            // Also after a failure, and still without the defences, which would not expect what was done.
            let cleared = clear_up(host, knobs.is_empty());
            turn(host, knobs, false)?;
            let outcome = result?;
            cleared?;
            Ok(outcome)
        }
        Act::Product(act) => {
            *host = None;
            load_product_module()?;
            let module = open_attack_module()?;
            knobs.iter().try_for_each(|knob| knob.turn(&module, true))?;
            let result = act(&secret);
            knobs.iter().try_for_each(|knob| knob.turn(&module, false))?;
            result
        }
    }
}

fn turn(host: &Host, knobs: &[Knob], leave_out: bool) -> Result<()> {
    knobs.iter().try_for_each(|knob| knob.turn(&host.module, leave_out))
}

/// Ends every partition. With all defences on, every page must have come back, and zero where it was given.
pub fn clear_up(host: &Host, defended: bool) -> Result<()> {
    host.restore_mailbox()?;
    host.destroy_all()?;
    let given = host.take_given()?;
    if !defended {
        return host.leak_all();
    }
    let stats = host.stats()?;
    ensure!(stats.partition_count == 0, "{} partitions are left", stats.partition_count);
    ensure!(
        stats.pages_given == stats.pages_recalled,
        "{} pages were given, {} came back",
        stats.pages_given,
        stats.pages_recalled
    );
    match child::not_zero(&given)? {
        End::Values(pages) if pages.is_empty() => {}
        other => bail!("pages that came back are not the host's, or not zero: {other:x?}"),
    }
    host.release_all()
}

/// Whether the hypervisor in this machine has fault knobs.
pub fn has_knobs() -> Result<bool> {
    let module = open_attack_module()?;
    let info = call_service(&module, op::INFO, [0; 4])?.ok("INFO")?;
    Ok(info[1] & hyp_abi::service::INFO_FAULT_KNOBS != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::collections::BTreeSet;

    #[derive(Deserialize)]
    struct File {
        attack: Vec<Entry>,
    }

    #[derive(Deserialize)]
    struct Entry {
        name: String,
        defence: String,
    }

    #[test]
    fn the_description_lists_every_attack_with_its_defence() {
        let file: File = toml::from_str(include_str!("../../attacks.toml")).unwrap();
        for attack in ATTACKS {
            let entry = file.attack.iter().find(|entry| entry.name == attack.name);
            let entry = entry.unwrap_or_else(|| panic!("{} is not described", attack.name));
            assert_eq!(entry.defence, attack.without[0].name(), "{}", attack.name);
        }
        let known: BTreeSet<_> =
            ATTACKS.iter().map(|attack| attack.name).chain(crate::reset::NAMES).collect();
        for entry in &file.attack {
            assert!(known.contains(entry.name.as_str()), "{} does not exist", entry.name);
        }
        assert_eq!(known.len(), file.attack.len(), "a name twice");
    }
}
