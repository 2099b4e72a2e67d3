//! The probe: a hostile partition for the attack suite. It commits one act per frame, as
//! `guest_abi::session::probe` documents, and reports what came of it, if it still can.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(target_os = "none", no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod acts;
#[cfg(target_os = "none")]
mod alias;
#[cfg(target_os = "none")]
mod calls;
#[cfg(target_os = "none")]
mod crew;
#[cfg(target_os = "none")]
mod debug;
#[cfg(target_os = "none")]
mod pauth;
#[cfg(target_os = "none")]
mod preamble;
#[cfg(target_os = "none")]
mod registers;
#[cfg(target_os = "none")]
mod simd;
#[cfg(target_os = "none")]
mod virtio;

#[cfg(target_os = "none")]
mod image {
    use core::sync::atomic::Ordering;

    use guest_abi::session::probe::{self, Command, PATTERN_SIZE, Report};
    use guest_abi::session::{MAGIC, frame};
    use guest_llm::{ffa, memory};
    use zerocopy::{FromBytes, IntoBytes};

    use crate::acts::Probe;
    use crate::crew;

    guest_llm::partition!(*b"guest-probe\0\0\0\0\0", main, crew::serve);

    fn main(general: u64, simd: u64) -> ! {
        let taken = ffa::identify().and_then(|_| Ok((memory::take()?, memory::take_session()?)));
        let Ok((memory, session)) = taken else { ffa::exit(3) };
        session.magic.store(MAGIC, Ordering::Release);
        let send = |kind, payload: &[u8]| {
            while session.to_host.send(kind, payload, &[]) == Ok(false) {
                ffa::give_way();
            }
            ffa::give_way();
        };
        send(probe::LISTENING, &[]);

        let mut probe = Probe::new(memory.heap.into_words(), [general, simd]);
        let mut buffer = [0; size_of::<Command>() + PATTERN_SIZE];
        loop {
            match session.to_partition.receive(&mut buffer) {
                Ok(None) => ffa::wait_answering(|payload| payload.iter_mut().for_each(|word| *word = !*word)),
                Ok(Some((frame::SHUTDOWN, _))) => ffa::exit(0),
                Ok(Some((act, length))) => {
                    let mut report = Report { act, ..Report::default() };
                    let payload = buffer.get(..length).unwrap_or(&[]);
                    report.status = match Command::read_from_prefix(payload) {
                        Ok((command, pattern)) => {
                            probe.commit(act, command.args, pattern, &mut report.values)
                        }
                        Err(_) => hyp_abi::ffa::error::INVALID_PARAMETERS,
                    };
                    send(probe::RESULT, report.as_bytes());
                }
                Err(_) => ffa::exit(2),
            }
        }
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("guest-probe: an image for aarch64-unknown-none; `cargo xtask build` makes it");
}
