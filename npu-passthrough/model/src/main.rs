//! `flexserve-npu`: the device model, for a QEMU to connect to.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use flexserve_npu_model::Options;
use flexserve_npu_model::throttle::Throttle;

/// A model of the NPU, as a vhost-user device.
///
/// QEMU: -chardev socket,id=npu,path=SOCKET -device vhost-user-gpio-pci,chardev=npu,iommu_platform=on,ats=off with
/// shared memory (memory-backend-memfd,share=on) and an IOMMU.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Where to listen.
    #[arg(long)]
    socket: PathBuf,
    /// Computes no faster than so many 10^12 operations a second.
    #[arg(long)]
    tops: Option<f64>,
    /// Reads and writes no faster than so many 10^9 bytes a second.
    #[arg(long)]
    gbps: Option<f64>,
    /// Computes by the definition, without vector instructions.
    #[arg(long)]
    portable: bool,
    /// Waits for another QEMU when one is gone, instead of ending.
    #[arg(long)]
    keep: bool,
    /// Tells what happens.
    #[arg(long)]
    verbose: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let options = Options {
        portable: arguments.portable,
        throttle: Throttle { tops: arguments.tops, gbps: arguments.gbps },
        verbose: arguments.verbose,
    };
    let path = &arguments.socket;
    // What an earlier run left; anything that is not a socket makes `bind` fail.
    if std::fs::metadata(path).is_ok_and(|file| std::os::unix::fs::FileTypeExt::is_socket(&file.file_type()))
    {
        std::fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?;
    loop {
        let (stream, _) = listener.accept().context("cannot accept a connection")?;
        match flexserve_npu_model::serve(stream, &options) {
            Err(error) if arguments.keep => eprintln!("npu: the connection failed: {error}"),
            result if !arguments.keep => return result.context("the connection failed"),
            _ => {}
        }
    }
}
