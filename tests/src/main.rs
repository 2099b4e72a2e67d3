//! System tests and the attack suite: a program that xtask boots in the host's initramfs, and that init runs as its job.
//!
//! It reports verdicts on the console, and asks the outside (xtask, at QEMU's side) for what only that can do: search RAM,
//! read the trusted log, reset the machine. Attacks from the host's kernel go through `kmod/`, a test-only module. Unsafe
//! code lives in [`sys`] and [`syscall`] only.
#![deny(unsafe_code)]

mod attack;
mod child;
mod cpu_state;
mod dma;
mod health;
mod host;
mod host_shim;
mod interrupted;
mod knob;
mod matrix;
mod messages;
mod partition;
mod report;
mod reset;
mod secret;
#[allow(unsafe_code)]
mod sys;
#[allow(unsafe_code)]
mod syscall;
mod vcpus;
mod virtio;

use std::process::ExitCode;

use anyhow::{Result, bail, ensure};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("system-tests: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["attack"] => {
            ensure!(!attack::has_knobs()?, "this hypervisor has fault knobs: it is not the shipped one");
            attack::run(false, None)
        }
        ["attack-without", rest @ ..] => attack::run(true, rest.first().copied()),
        ["worlds"] => {
            ensure!(!attack::has_knobs()?, "this hypervisor has fault knobs: it is not the shipped one");
            attack::sel2::run(false)
        }
        ["worlds-without"] => attack::sel2::run(true),
        [suite @ ("reset" | "reset-knobs")] => reset::run(suite),
        ["vcpus"] => vcpus::run(),
        ["messages"] => messages::run(),
        ["reset-during"] => interrupted::run(),
        ["health"] => health::run(false),
        ["health-bare"] => health::run(true),
        ["matrix"] => matrix::run(),
        ["matrix-knobs"] => matrix::run_knobs(),
        ["virtio"] => virtio::run(),
        ["host-shim"] => host_shim::run(),
        ["rounds"] => host_shim::run_slow(),
        ["child", ..] => child::main(&arguments[1..]),
        _ => bail!(
            "usage: system-tests attack | attack-without [DEFENCE] | worlds | worlds-without | reset | reset-knobs | vcpus | messages | reset-during | matrix | matrix-knobs | health | health-bare | virtio | host-shim | rounds"
        ),
    }
}
