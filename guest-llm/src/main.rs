//! The inference partition: loads the model that the host gave, and answers requests until the host ends the session.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(target_os = "none", no_main)]

#[cfg(target_os = "none")]
mod image {
    extern crate alloc;

    use alloc::boxed::Box;
    use flexserve_engine::{Offload, Parallel};
    use guest_abi::session::EXIT_NO_MEMORY;
    use guest_abi::virtio::{SLOT_STREAM, STREAM_PORT};
    use guest_llm::layout::VCPU_COUNT;
    use guest_llm::memory::{Host, SharedPool};
    use guest_llm::npu::device::{Broker, Npu, Partition};
    use guest_llm::serve::{End, LEAST_HEAP, Platform, serve};
    use guest_llm::virtio::frames::Frames;
    use guest_llm::virtio::stream::Stream;
    use guest_llm::{arch, ffa, memory, vcpu};

    guest_llm::partition!(*b"guest-llm\0\0\0\0\0\0\0", main, vcpu::serve);

    /// The hypervisor and the allocator, and the NPU if there is one.
    struct Hypervisor {
        npu: Option<&'static Npu>,
    }

    impl Platform for Hypervisor {
        fn kick(&self) {
            ffa::give_way();
        }

        fn wait(&self) {
            vcpu::wait_for_message();
        }

        fn ticks(&self) -> u64 {
            arch::ticks()
        }

        fn heap_used(&self) -> usize {
            memory::heap_used()
        }

        fn heap_free(&self) -> usize {
            memory::heap_free()
        }

        fn grow(&self) {
            memory::grow();
        }

        fn parallel(&self) -> &'static dyn Parallel {
            &vcpu::POOL
        }

        fn offload(&self) -> Option<&'static dyn Offload> {
            self.npu.map(|npu| npu as &dyn Offload)
        }

        fn use_offload(&self, wanted: bool) {
            if let Some(npu) = self.npu {
                npu.enable(wanted);
                if !wanted {
                    npu.report();
                }
            }
        }

        fn threads(&self) -> usize {
            VCPU_COUNT
        }

        fn log(&self, line: core::fmt::Arguments<'_>) {
            ffa::log_line(line);
        }
    }

    fn main(_: u64, _: u64) -> ! {
        let start = arch::ticks();
        let taken = ffa::identify().and_then(|_| Ok((memory::take()?, memory::take_virtio()?)));
        let Ok((memory, Some(virtio))) = taken else { ffa::exit(End::NO_SESSION) };
        let Some(slot) = virtio.devices.get(SLOT_STREAM) else { ffa::exit(End::NO_SESSION) };
        ffa::log("started\n");
        memory.heap.start_allocator();
        // Not even an error could be sent with less.
        if memory::heap_free() < LEAST_HEAP {
            ffa::exit(EXIT_NO_MEMORY);
        }
        vcpu::start_others();
        let npu = Broker::find().map(|broker| &*Box::leak(Box::new(Npu::new(broker, Partition))));
        let end = match Stream::<SharedPool, Host>::connect(slot, STREAM_PORT, Host) {
            Ok(stream) => serve(Frames::new(stream), memory.model, start, &Hypervisor { npu }),
            Err(fault) => fault.into(),
        };
        ffa::exit(end.exit_code())
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("guest-llm: an image for aarch64-unknown-none; `cargo xtask build` makes it");
}
