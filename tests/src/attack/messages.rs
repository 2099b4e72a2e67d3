//! Messages, notifications and logs: by whom they are not, where they must not go, and what they must not change.

use anyhow::{Result, bail, ensure};
use guest_abi::session::probe;
use hyp_abi::PAGE_SIZE;
use hyp_abi::ffa::{self, error};
use hyp_abi::manifest::layout;
use serde_json::json;

use super::{Outcome, Scene};
use crate::host::Host;
use crate::messages::{RX, TX, header, host_sends};
use crate::partition::{Answer, HEAP_PAGES, Partition};
use crate::report::ask;

/// A partition names another's page, the host's, the hypervisor's and shared ones as its buffers.
pub fn mailbox_of_another(scene: &Scene<'_>) -> Result<Outcome> {
    let mut victim = scene.partition()?;
    let mut thief = scene.plain_partition()?;
    let page = victim.heap_page()?;
    let map = |thief: &mut Partition<'_>, tx, rx| -> Result<i32> {
        Ok(thief.ffa(ffa::RXTX_MAP_64, [tx, rx, 1, 0, 0])?.0)
    };
    let own = scene.host.allocate(1)?;
    let mut places = 0;
    for place in [
        ("the host's page", own),
        ("the hypervisor", 0x4020_0000),
        ("a device", 0x0900_0000),
        ("its code", layout::IMAGE),
        ("its model", layout::MODEL),
        ("a page that it shares", layout::SESSION),
        ("behind its heap", layout::HEAP + HEAP_PAGES * PAGE_SIZE),
        ("beyond all addresses", 1 << 45),
    ] {
        if scene.is_without {
            break;
        }
        for (tx, rx) in [(TX, place.1), (place.1, RX)] {
            let status = map(&mut thief, tx, rx)?;
            ensure!(status == error::DENIED, "{} as a buffer: {status}", place.0);
            places += 1;
        }
    }
    let status = map(&mut thief, TX, page)?;
    if status == error::DENIED {
        ensure!(victim.damage(&scene.secret)? == 0, "the secret is damaged");
        return Ok(Outcome::Blocked(format!("{} pages are refused as buffers", places + 1)));
    }
    let sent = host_sends(scene.host, header(0, thief.id(), 8), b"overrun!")?;
    match (status, sent, victim.damage(&scene.secret)?) {
        (0, 0, 1..) => Ok(Outcome::Succeeded("a message lands in another partition's memory".into())),
        (status, sent, damage) => bail!("map {status}, send {sent}, {damage} copies damaged"),
    }
}

/// A partition, and the host, set notifications that the receiver did not let them set, under any id.
pub fn unbound_notification(scene: &Scene<'_>) -> Result<Outcome> {
    let mut victim = scene.plain_partition()?;
    let mut friend = scene.plain_partition()?;
    let mut stranger = scene.plain_partition()?;
    let (to, own) = (u64::from(victim.id()), u64::from(stranger.id()));
    let of_friend = u64::from(friend.id()) << 16 | to;
    victim.ffa_ok(ffa::NOTIFICATION_BIND, [of_friend, 0, 1, 0, 0])?;
    let as_itself = stranger.ffa(ffa::NOTIFICATION_SET, [own << 16 | to, 0, 1, 0, 0])?.0;
    let as_friend = stranger.ffa(ffa::NOTIFICATION_SET, [of_friend, 0, 1, 0, 0])?.0;
    let for_friend = stranger.ffa(ffa::NOTIFICATION_BIND, [own << 16 | to, 0, 2, 0, 0])?.0;
    let as_host = scene.host.call(&[ffa::NOTIFICATION_SET.into(), of_friend, 0, 1, 0])?;
    let got = victim.ffa_ok(ffa::NOTIFICATION_GET, [to, 7, 0, 0, 0])?;
    ensure!(for_friend == error::INVALID_PARAMETERS, "it binds for somebody else");
    match (as_itself, got[1]) {
        (error::DENIED, 0) => {
            ensure!(as_friend == error::INVALID_PARAMETERS, "as somebody else: {as_friend}");
            ensure!(as_host[0] as u32 == ffa::ERROR, "the host notifies as a partition");
            friend.ffa_ok(ffa::NOTIFICATION_SET, [of_friend, 0, 1, 0, 0])?;
            let got = victim.ffa_ok(ffa::NOTIFICATION_GET, [to, 7, 0, 0, 0])?;
            ensure!(got[1] == 1, "who may, cannot");
            Ok(Outcome::Blocked("refused under its own id, a friend's, and to the host".into()))
        }
        (0, 1) => Ok(Outcome::Succeeded("a stranger notifies in a friend's name".into())),
        (status, bits) => bail!("{status}, bits {bits:#x}"),
    }
}

/// The host and a partition send messages in another partition's name.
pub fn forged_sender(scene: &Scene<'_>) -> Result<Outcome> {
    let mut victim = scene.plain_partition()?;
    let friend = scene.plain_partition()?;
    let mut stranger = scene.plain_partition()?;
    victim.map_buffers()?;
    stranger.map_buffers()?;
    let forged = header(friend.id(), victim.id(), 8);
    let by_host = host_sends(scene.host, forged, b"trust me")?;
    if by_host == 0 {
        let (header, payload) = victim.message()?;
        ensure!((header.route, payload) == (forged.route, *b"trust me"), "it reads {header:x?}");
        return Ok(Outcome::Succeeded("the host's message comes from a partition".into()));
    }
    let by_partition = stranger.send_message(forged, b"trust me")?;
    let as_host = stranger.send_message(header(0, victim.id(), 8), b"trust me")?;
    for status in [by_host, by_partition, as_host] {
        ensure!(status == error::INVALID_PARAMETERS, "refused for the wrong reason: {status}");
    }
    for by in [friend.id(), victim.id()].map(u64::from) {
        let route = by << 16 | u64::from(victim.id());
        let answer = scene.host.call(&[ffa::MSG_SEND_DIRECT_REQ_64.into(), route])?;
        ensure!(answer[0] as u32 == ffa::ERROR, "the host asks in a partition's name");
    }
    ensure!(victim.message()?.0.size == 0, "something arrived");
    Ok(Outcome::Blocked("refused to the host and to a partition, as a partition and as the host".into()))
}

/// A message is overwritten while the partition reads it.
pub fn overwritten_message(scene: &Scene<'_>) -> Result<Outcome> {
    let mut victim = scene.plain_partition()?;
    victim.map_buffers()?;
    let sent = header(0, victim.id(), 8);
    ensure!(host_sends(scene.host, sent, b"checked.")? == 0, "the first message is refused");
    let again = host_sends(scene.host, sent, b"swapped.")?;
    match (again, &victim.message()?.1) {
        (error::BUSY, b"checked.") => {}
        (0, b"swapped.") => return Ok(Outcome::Succeeded("what it reads changes under its eyes".into())),
        (status, found) => bail!("{status}, it reads {found:x?}"),
    }
    // Nor does it share the buffer with the host by mistake.
    victim.ffa_ok(ffa::RXTX_UNMAP, [0; 5])?;
    let session = layout::SESSION + PAGE_SIZE;
    let shared = victim.ffa(ffa::RXTX_MAP_64, [TX, session, 1, 0, 0])?.0;
    ensure!(shared == error::DENIED, "a shared page becomes a buffer");
    Ok(Outcome::Blocked("BUSY until it releases the buffer".into()))
}

/// A partition writes escape sequences and another's lines into logs.
pub fn forged_log_line(scene: &Scene<'_>) -> Result<Outcome> {
    let mut partition = scene.plain_partition()?;
    let say = |partition: &mut Partition<'_>, text: &[u8; 16]| match partition.act_with(
        probe::LOG,
        [0; 4],
        text,
    )? {
        Answer::Report(report) if report.status == 0 => Ok(()),
        other => bail!("the probe answers {other:x?}"),
    };
    // Back to the start of the line, and over it.
    say(&mut partition, b"\rhyp: ERROR lie!")?;
    say(&mut partition, b"\nhyp: ERROR lie!")?;
    let text = log_of(scene.host, &partition)?;
    let raw = text.contains('\r');
    let in_trusted =
        |text: &str| Ok::<_, anyhow::Error>(ask(json!({"ask": "log", "text": text}))?["found"] == true);
    let forged = in_trusted("\rhyp: ERROR lie!")? || in_trusted("\nhyp: ERROR lie!")?;
    match (raw, forged) {
        (false, false) => {
            let named = format!("partition {:#06x} says: hyp: ERROR lie!", partition.id());
            ensure!(in_trusted(&named)?, "the line is not there under its name");
            Ok(Outcome::Blocked("every line bears the partition's id, control characters do not pass".into()))
        }
        (true, true) => Ok(Outcome::Succeeded("a partition writes a line of the hypervisor's".into())),
        other => bail!("{other:?}: {text:?}"),
    }
}

fn log_of(host: &Host, partition: &Partition<'_>) -> Result<String> {
    Ok(String::from_utf8_lossy(&host.log(partition.id())?).into_owned())
}
