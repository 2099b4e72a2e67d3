//! Every knob: with the protection the checks hold, without it they fail.

use super::*;

const IPA: u64 = 0x1_0000_0000;

/// What goes wrong, if anything, in a scenario that uses every protection.
fn scenario(knob: Knob, skip: bool) -> Result<(), String> {
    let mut w = World::booted(64);
    w.fm.set_knob(knob, skip);
    let page = RAM + PAGE_SIZE;
    let err = |result: Result<u64, Error>| result.err().ok_or("allowed");
    let broken = |w: &mut World| {
        w.m.quiesce();
        let violation = w.m.violations.first().cloned();
        violation.map_or(Ok(()), Err).and_then(|()| audit(&w.fm, &w.m))
    };
    match knob {
        Knob::SkipHostUnmap => {
            w.m.read(1, HOST_VMID, Ipa(page), true);
            w.give(0, &[range(page, 1)], IPA).unwrap();
            w.write_secrets();
            let all = w.m.write(1, HOST_VMID, Ipa(page), secret(slot(0)))
                && w.m.can_execute(1, HOST_VMID, Ipa(page));
            assert_eq!(all, skip, "with all rights");
            let seen = w.host_reads_secret([page]);
            // Destroy works all the same, and scrubs.
            assert_eq!(w.destroy(0, 512), Ok(0));
            assert!(!w.host_reads_secret([page]));
            if seen { Err("the host reads the secret".into()) } else { broken(&mut w) }
        }
        Knob::SkipTlbi => {
            // The block is split already, so that no break invalidates by the way.
            w.give(0, &[range(RAM, 1)], IPA).unwrap();
            w.m.read(1, HOST_VMID, Ipa(page), true);
            w.give(0, &[range(page, 1)], IPA + PAGE_SIZE).unwrap();
            w.write_secrets();
            if w.host_reads_secret([page]) { Err("the host reads the secret".into()) } else { broken(&mut w) }
        }
        Knob::SkipScrubOnGive => {
            w.m.write(0, HOST_VMID, Ipa(page), 5);
            w.give(0, &[range(page, 1)], IPA).unwrap();
            match w.m.read(0, slot(0).vmid(), Ipa(IPA), true) {
                Some(0) => broken(&mut w),
                word => Err(format!("the partition finds {word:?}")),
            }
        }
        Knob::SkipScrubOnRecall | Knob::SkipClean => {
            w.give(0, &[range(page, 1), range(RAM + MIB2, 512)], IPA).err();
            w.give(0, &[range(page, 1)], IPA).unwrap();
            w.give(0, &[range(RAM + MIB2, 512)], IPA + MIB2).unwrap();
            w.write_secrets();
            w.recall(0, IPA, 1).unwrap();
            let recalled = w.host_reads_secret([page]);
            w.destroy(0, 512).unwrap();
            let destroyed = w.host_reads_secret([RAM + MIB2, RAM + 2 * MIB2 - PAGE_SIZE]);
            assert_eq!((recalled, destroyed), (skip, skip));
            if recalled { Err("the host reads the secret".into()) } else { broken(&mut w) }
        }
        Knob::SkipOwnershipCheck => {
            w.give(0, &[range(page, 1)], IPA).unwrap();
            let refusals = [
                err(w.give(1, &[range(page, 1)], IPA)),
                err(w.give(1, &[range(HYP + PAGE_SIZE, 1)], IPA + PAGE_SIZE)),
                err(w.give(1, &[range(DEVICE, 1)], IPA + 2 * PAGE_SIZE)),
            ];
            assert!(refusals.iter().all(|refusal| refusal.is_err() == skip));
            broken(&mut w)
        }
        Knob::SkipOverlapCheck => {
            let _ = w.give(0, &[range(page, 2), range(page + PAGE_SIZE, 1)], IPA);
            broken(&mut w)
        }
        Knob::SkipPinCheck => {
            w.fm.host_pin(&w.m, Pa(page)).unwrap();
            let refusal = err(w.give(0, &[range(page, 1)], IPA));
            broken(&mut w)?;
            refusal.map(|_| ()).map_err(String::from)
        }
        Knob::SkipIpaCheck => {
            w.give(0, &[range(page, 1)], IPA).unwrap();
            let _ = w.give(0, &[range(RAM + MIB2, 1)], IPA);
            broken(&mut w)
        }
        Knob::SkipUnshareUnmap => {
            w.give(0, &[range(page, 1)], IPA).unwrap();
            w.share(0, IPA).unwrap();
            w.unshare(0, IPA).unwrap();
            w.write_secrets();
            if w.host_reads_secret([page]) { Err("the host reads the secret".into()) } else { broken(&mut w) }
        }
        Knob::SkipScrubAll => {
            w.give(0, &[range(page, 1)], IPA).unwrap();
            w.write_secrets();
            w.fm.scrub_all(&mut w.m);
            match w.m.memory_word(Pa(page)) {
                0 => broken(&mut w),
                word => Err(format!("{word:x} survives a reset")),
            }
        }
        Knob::SkipSendOwnershipCheck => {
            w.give(0, &[range(page, 1)], IPA).unwrap();
            w.write_secrets();
            let taken = w.host_send(&[range(page, 1)], LoanKind::Share).is_ok();
            let hypervisor = w.host_send(&[range(HYP + PAGE_SIZE, 1)], LoanKind::Share).is_ok();
            assert_eq!((taken, hypervisor), (skip, skip));
            if w.host_reads_secret([page]) { Err("the host reads the secret".into()) } else { broken(&mut w) }
        }
        Knob::SkipSendPinCheck => {
            w.fm.host_pin(&w.m, Pa(page)).unwrap();
            let sent = w.host_send(&[range(page, 1)], LoanKind::Lend);
            if sent.is_ok() { Err("a mailbox is lent".into()) } else { broken(&mut w) }
        }
        Knob::SkipLendUnmap => {
            let id = w.host_send(&[range(page, 1)], LoanKind::Lend).unwrap();
            w.retrieve(id, 0, IPA).unwrap();
            w.write_secrets();
            if w.host_reads_secret([page]) { Err("the host reads the secret".into()) } else { broken(&mut w) }
        }
        Knob::SkipRelinquishUnmap => {
            let id = w.host_send(&[range(page, 1)], LoanKind::Lend).unwrap();
            w.retrieve(id, 0, IPA).unwrap();
            w.relinquish(id, 0).unwrap();
            w.reclaim(id).unwrap();
            match w.m.write(1, slot(0).vmid(), Ipa(IPA), 5) {
                false => broken(&mut w),
                true => Err("the borrower still writes".into()),
            }
        }
        Knob::SkipBorrowedCheck => {
            let id = w.host_send(&[range(page, 1)], LoanKind::Lend).unwrap();
            w.retrieve(id, 0, IPA).unwrap();
            let refused = w.reclaim(id) == Err(Error::Borrowed);
            assert_eq!(refused, !skip);
            broken(&mut w)
        }
        Knob::SkipScrubOnReclaim => {
            let id = w.host_send(&[range(page, 1)], LoanKind::Lend).unwrap();
            w.retrieve(id, 0, IPA).unwrap();
            w.write_secrets();
            w.relinquish(id, 0).unwrap();
            w.reclaim(id).unwrap();
            if w.host_reads_secret([page]) { Err("the host reads the secret".into()) } else { broken(&mut w) }
        }
        Knob::SkipSendOverlapCheck => {
            let _ = w.host_send(&[range(page, 2), range(page + PAGE_SIZE, 1)], LoanKind::Share);
            broken(&mut w)
        }
        Knob::SkipWindowUnmap => {
            let window = range(200 << 30, 1);
            w.fm.boot_window(&mut w.m, window, [Pa(HYP + 0xf_0000), Pa(HYP + 0xf_1000)]).unwrap();
            w.fm.window_open(&mut w.m, Party::Host).unwrap();
            w.fm.window_close(&mut w.m, Party::Host).unwrap();
            match w.m.read(1, HOST_VMID, Ipa(200 << 30), true) {
                None => broken(&mut w),
                Some(_) => Err("the host still reaches the window".into()),
            }
        }
        Knob::SkipBreak => {
            w.give(0, &[range(page, 1)], IPA).unwrap();
            w.recall(0, IPA, 1).unwrap();
            broken(&mut w)
        }
    }
}

#[test]
fn each_knob_is_found() {
    for (number, knob) in Knob::ALL.into_iter().enumerate() {
        assert_eq!(knob as usize, number);
        assert_eq!(scenario(knob, false), Ok(()), "{knob:?} off");
        let found = scenario(knob, true);
        assert!(found.is_err(), "{knob:?} on: nothing found");
    }
}

#[test]
fn knobs_turn_back() {
    let mut w = World::booted(64);
    for knob in Knob::ALL {
        w.fm.set_knob(knob, true);
        assert_ne!(w.fm.knobs, 0);
        w.fm.set_knob(knob, false);
        assert_eq!(w.fm.knobs, 0);
    }
}
