//! FF-A messages, notifications and logs between the host and real partitions.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use flexserve::error::status_name;
use flexserve::image::Image;
use guest_abi::session::probe;
use hyp_abi::PAGE_SIZE;
use hyp_abi::ffa::{self, MessageHeader};
use hyp_abi::manifest::layout;
use serde_json::json;
use zerocopy::{FromBytes, IntoBytes};

use crate::child::{VMM_LOGS, Vmm};
use crate::host::{Host, load_product_module};
use crate::partition::{Answer, PROBE_PATH, Partition};
use crate::report::{self, ask};
use crate::secret::Secret;

/// A partition's buffers: the first pages of its heap.
pub const TX: u64 = layout::HEAP;
/// As [`TX`].
pub const RX: u64 = layout::HEAP + PAGE_SIZE;
/// Bytes of a message's header.
const HEADER: usize = size_of::<MessageHeader>();

/// Header of a message of `size` bytes right behind it.
pub fn header(sender: u16, receiver: u16, size: u32) -> MessageHeader {
    let route = u32::from(sender) << 16 | u32::from(receiver);
    MessageHeader { offset: HEADER as u32, size, route, ..MessageHeader::default() }
}

impl Partition<'_> {
    /// Has the probe make an FF-A call with x0-x5: its error code, and the results as [`probe::FFA_CALL`] packs them.
    pub fn ffa(&mut self, function: u32, arguments: [u64; 5]) -> Result<(i32, [u64; 4])> {
        let [a, b, c, d, e] = arguments;
        match self.act_with(probe::FFA_CALL, [function.into(), a, b, c], [d, e].as_bytes())? {
            Answer::Report(report) => Ok((report.status, report.values)),
            other => bail!("the probe answers {other:x?}"),
        }
    }

    /// As [`Self::ffa`], of a call that succeeds.
    pub fn ffa_ok(&mut self, function: u32, arguments: [u64; 5]) -> Result<[u64; 4]> {
        let (status, values) = self.ffa(function, arguments)?;
        ensure!(status == 0, "{function:#x} {arguments:x?}: {}", status_name(status));
        Ok(values)
    }

    /// Maps its buffers.
    pub fn map_buffers(&mut self) -> Result<()> {
        self.ffa_ok(ffa::RXTX_MAP_64, [TX, RX, 1, 0, 0]).map(drop)
    }

    /// Writes a message to its TX.
    pub fn write_message(&mut self, header: MessageHeader, payload: &[u8; 8]) -> Result<()> {
        let bytes = [header.as_bytes(), payload].concat();
        for (place, word) in (TX..).step_by(8).zip(bytes.chunks_exact(8)) {
            let word = u64::from_le_bytes(word.try_into().context("eight bytes")?);
            self.act(probe::WRITE, [place, word, 0, 0])?.values()?;
        }
        Ok(())
    }

    /// Sends a message; its error code.
    pub fn send_message(&mut self, header: MessageHeader, payload: &[u8; 8]) -> Result<i32> {
        self.write_message(header, payload)?;
        Ok(self.ffa(ffa::MSG_SEND2, [0; 5])?.0)
    }

    /// What lies in its RX: the header, and eight bytes.
    pub fn message(&mut self) -> Result<(MessageHeader, [u8; 8])> {
        let mut bytes = Vec::new();
        for place in (RX..).step_by(8).take(HEADER / 8 + 1) {
            bytes.extend(self.act(probe::READ, [place, 0, 0, 0])?.values()?[0].to_le_bytes());
        }
        let (header, payload) = MessageHeader::read_from_prefix(&bytes).ok().context("a short message")?;
        Ok((header, payload.try_into().context("eight bytes")?))
    }
}

/// The error code of the host's call.
pub fn code(regs: &[u64; 18]) -> i32 {
    if regs[0] as u32 == ffa::ERROR { regs[2] as i32 } else { 0 }
}

/// Has the host send a message; its error code.
pub fn host_sends(host: &Host, header: MessageHeader, payload: &[u8; 8]) -> Result<i32> {
    host.write_tx(&[header.as_bytes(), payload].concat());
    Ok(code(&host.ffa(ffa::MSG_SEND2, [0; 3])?))
}

fn ok(regs: [u64; 18]) -> Result<[u64; 18]> {
    ensure!(code(&regs) == 0, "the host's call: {}", status_name(code(&regs)));
    Ok(regs)
}

type Test = fn(&Host, &Image) -> Result<String>;

/// What needs the product's module runs last, when the host is no longer ours.
const LAST: &str = "flexserve-logs";

const TESTS: [(&str, Test); 5] = [
    ("discovery", discovery),
    ("indirect-messages", indirect_messages),
    ("direct-requests", direct_requests),
    ("notifications", notifications),
    ("logs", logs),
];

/// Runs the wanted tests.
pub fn run() -> Result<()> {
    let wanted = report::wanted_tests()?;
    let wants = |name: &str| wanted.iter().any(|wanted| wanted == name);
    let say = |name: &str, result: Result<String>| match result {
        Ok(detail) => report::verdict(name, true, &detail),
        Err(error) => report::verdict(name, false, &format!("{error:#}")),
    };
    let host = Host::new()?;
    let image = Image::load(PROBE_PATH.as_ref())?;
    for (name, test) in TESTS.into_iter().filter(|(name, _)| wants(name)) {
        let result = test(&host, &image);
        let cleared = host.destroy_all().and_then(|()| host.release_all());
        say(name, result.and_then(|detail| cleared.map(|()| detail)))?;
    }
    drop(host);
    if wants(LAST) { say(LAST, flexserve_logs()) } else { Ok(()) }
}

/// `flexserve logs` shows what the partition of another process logged.
fn flexserve_logs() -> Result<String> {
    load_product_module()?;
    let mut vmm = Vmm::start(&Secret::new()?)?;
    vmm.wait_until_filled()?;
    let logs = |id: &str| Command::new("/bin/flexserve").args(["logs", id]).output().context("flexserve");
    let first = format!("{:#06x}", ffa::PARTITION_ID_BASE);
    let shown = logs(&first)?;
    let expected = [VMM_LOGS, &b"\n"[..]].concat();
    ensure!(shown.status.success() && shown.stdout == expected, "it prints {shown:?}");
    let nobody = logs("0x8011")?;
    ensure!(!nobody.status.success() && nobody.stdout.is_empty(), "of nobody it prints {nobody:?}");
    vmm.kill()?;
    Ok("the line of a running partition, and an error for one that is not there".into())
}

/// Both sides find each other, and a partition nobody else.
fn discovery(host: &Host, image: &Image) -> Result<String> {
    let mut partition = Partition::load(host, image, None)?;
    let other = Partition::load(host, image, None)?;
    let regs = ok(host.call(&[ffa::PARTITION_INFO_GET_REGS.into()])?)?;
    let ids = [regs[3], regs[6], regs[9]].map(|word| word as u16);
    ensure!(ids == [ffa::SERVICE_ID, partition.id(), other.id()], "the host finds {ids:x?}");
    let sri = ok(host.ffa(ffa::FEATURES, [ffa::FEATURE_SRI.into(), 0, 0])?)?[2];
    let npi = partition.ffa_ok(ffa::FEATURES, [ffa::FEATURE_NPI.into(), 0, 0, 0, 0])?[1];
    ensure!((sri, npi) == (8, 8), "SRI {sri}, NPI {npi}");
    partition.map_buffers()?;
    let count = partition.ffa_ok(ffa::PARTITION_INFO_GET, [0; 5])?[1] as u32;
    let itself = partition.act(probe::READ, [RX + 24, 0, 0, 0])?.values()?[0] as u16;
    ensure!((count, itself) == (2, partition.id()), "a partition finds {count}, {itself:#x}");
    Ok(format!("the host finds {ids:x?}, a partition the service and itself"))
}

/// Messages to a partition, from it, and between two.
fn indirect_messages(host: &Host, image: &Image) -> Result<String> {
    let mut first = Partition::load(host, image, None)?;
    let mut second = Partition::load(host, image, None)?;
    first.map_buffers()?;
    second.map_buffers()?;
    let (one, two) = (first.id(), second.id());
    let sent = header(0, one, 8);
    ensure!(host_sends(host, sent, b"to first")? == 0, "the host's message is refused");
    ensure!(host_sends(host, sent, b"too soon")? == ffa::error::BUSY, "a second one is not");
    ensure!(first.message()? == (sent, *b"to first"), "it reads {:x?}", first.message()?);
    first.ffa_ok(ffa::RX_RELEASE, [0; 5])?;

    let deaf = first.send_message(header(one, 0, 8), b"the host")?;
    ensure!(deaf == ffa::error::DENIED, "a host that does not listen gets a message: {deaf}");
    ok(host.ffa(ffa::NOTIFICATION_BITMAP_CREATE, [0, 2, 0])?)?;
    ensure!(first.send_message(header(one, 0, 8), b"the host")? == 0, "its message is refused");
    ok(host.ffa(ffa::NOTIFICATION_BITMAP_DESTROY, [0; 3])?)?;
    let bytes = host.take_rx(HEADER + 8)?;
    ensure!(bytes[HEADER..] == *b"the host", "the host reads {bytes:x?}");

    ensure!(first.send_message(header(one, two, 8), b"a friend")? == 0, "their message is refused");
    ensure!(second.message()? == (header(one, two, 8), *b"a friend"), "it reads {:x?}", second.message()?);
    Ok("from the host, to the host, and from one partition to another".into())
}

/// Direct requests of each kind, also interrupted ones.
fn direct_requests(host: &Host, image: &Image) -> Result<String> {
    let partition = Partition::load(host, image, None)?;
    let id = u64::from(partition.id());
    // It waits once it has nothing to do.
    while !matches!(partition.enter()?, crate::partition::Exit::Waiting) {}
    let mut interrupted = 0;
    let mut request = |function: u32, response: u32, first: usize| -> Result<()> {
        let mut regs: [u64; 18] = core::array::from_fn(|n| 0x1234_5678_0000 + n as u64);
        regs[..4].copy_from_slice(&[function.into(), id, 0, if first == 3 { 0x77 } else { 0 }]);
        let mask = if function == ffa::MSG_SEND_DIRECT_REQ_32 { u64::from(u32::MAX) } else { u64::MAX };
        let last = if function == ffa::MSG_SEND_DIRECT_REQ2 { 18 } else { 8 };
        let mut answer = host.call(&regs)?;
        while [ffa::INTERRUPT, ffa::YIELD].contains(&(answer[0] as u32)) {
            interrupted += 1;
            answer = host.ffa(ffa::RUN, [id << 16, 0, 0])?;
        }
        ensure!(answer[..3] == [response.into(), id << 16, 0], "{function:#x} is answered {answer:x?}");
        for n in first..last {
            ensure!(answer[n] == !regs[n] & mask, "x{n} of {response:#x} is {:#x}", answer[n]);
        }
        Ok(())
    };
    for _ in 0..100 {
        request(ffa::MSG_SEND_DIRECT_REQ_32, ffa::MSG_SEND_DIRECT_RESP_32, 3)?;
        request(ffa::MSG_SEND_DIRECT_REQ_64, ffa::MSG_SEND_DIRECT_RESP_64, 3)?;
        request(ffa::MSG_SEND_DIRECT_REQ2, ffa::MSG_SEND_DIRECT_RESP2, 4)?;
    }
    Ok(format!("300 of three kinds, {interrupted} interruptions"))
}

/// Notifications in every direction, and whom the host is told to run.
fn notifications(host: &Host, image: &Image) -> Result<String> {
    let mut first = Partition::load(host, image, None)?;
    let mut second = Partition::load(host, image, None)?;
    let (one, two) = (u64::from(first.id()), u64::from(second.id()));
    let take = |partition: &mut Partition<'_>| -> Result<[u64; 3]> {
        let id = u64::from(partition.id());
        let [_, of_partitions, of_host, framework] =
            partition.ffa_ok(ffa::NOTIFICATION_GET, [id, 7, 0, 0, 0])?;
        Ok([of_partitions, of_host, framework])
    };
    ok(host.ffa(ffa::NOTIFICATION_BITMAP_CREATE, [0, 2, 0])?)?;
    ok(host.call(&[ffa::NOTIFICATION_BIND.into(), one << 16, 0, 2, 0])?)?;
    first.ffa_ok(ffa::NOTIFICATION_BIND, [one, 0, 0, 1 << 31, 0])?;
    second.ffa_ok(ffa::NOTIFICATION_BIND, [one << 16 | two, 0, 4, 0, 0])?;

    ok(host.call(&[ffa::NOTIFICATION_SET.into(), one, 0, 0, 1 << 31])?)?;
    let info = ok(host.ffa(ffa::NOTIFICATION_INFO_GET_64, [0; 3])?)?;
    ensure!(info[2..4] == [1 << 7, one], "the host is to run {:x?}", &info[2..4]);
    let got = take(&mut first)?;
    ensure!(got == [0, 1 << 63, 0], "the first gets {got:x?}");

    first.ffa_ok(ffa::NOTIFICATION_SET, [one << 16 | two, 0, 4, 0, 0])?;
    first.ffa_ok(ffa::NOTIFICATION_SET, [one << 16, 0, 2, 0, 0])?;
    let info = ok(host.ffa(ffa::NOTIFICATION_INFO_GET_64, [0; 3])?)?;
    ensure!(info[2..4] == [2 << 7, two << 16], "the host is to run {:x?}", &info[2..4]);
    let got = ok(host.ffa(ffa::NOTIFICATION_GET, [0, 7, 0])?)?;
    ensure!(got[2..8] == [2, 0, 0, 0, 0, 0], "the host gets {:x?}", &got[2..8]);
    let got = take(&mut second)?;
    ensure!(got == [4, 0, 0], "the second gets {got:x?}");
    let got = take(&mut second)?;
    ensure!(got == [0; 3], "the second gets {got:x?} again");

    second.map_buffers()?;
    ensure!(host_sends(host, header(0, second.id(), 8), b"look now")? == 0, "a message is refused");
    let got = take(&mut second)?;
    ensure!(got == [0, 0, u64::from(ffa::RX_BUFFER_FULL)], "the second gets {got:x?}");
    ok(host.call(&[ffa::NOTIFICATION_UNBIND.into(), one << 16, 0, 2, 0])?)?;
    ok(host.ffa(ffa::NOTIFICATION_BITMAP_DESTROY, [0; 3])?)?;
    Ok("host to partition, partition to host and partition, and a message's".into())
}

/// What a partition logs is the host's to read, and stands in the trusted log.
fn logs(host: &Host, image: &Image) -> Result<String> {
    let secret = Secret::new()?;
    let mut partition = Partition::load(host, image, Some(&secret))?;
    let log = |partition: &mut Partition<'_>, text: &[u8; 16]| match partition.act_with(
        probe::LOG,
        [0; 4],
        text,
    )? {
        Answer::Report(report) if report.status == 0 => Ok(()),
        other => bail!("the probe answers {other:x?}"),
    };
    log(&mut partition, b"sixteen letters.")?;
    log(&mut partition, b"\x1b[2J\r\0and others")?;
    let text = host.log(partition.id())?;
    let expected = b"sixteen letters.\n?[2J??and others\n";
    ensure!(text == expected, "the host reads {:?}", String::from_utf8_lossy(&text));
    for line in ["sixteen letters.", "?[2J??and others"] {
        let text = format!("partition {:#06x} says: {line}", partition.id());
        let found = ask(json!({"ask": "log", "text": text}))?;
        ensure!(found["found"] == true, "the trusted log has no {text:?}");
    }
    let answer = host.call(&[ffa::CONSOLE_LOG_64.into(), 1, 65])?;
    ensure!(code(&answer) == ffa::error::NOT_SUPPORTED, "the host writes to the trusted log");
    Ok("the host reads it, the trusted log has it, without control characters".into())
}
