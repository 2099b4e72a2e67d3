//! The model of the NPU: a process beside QEMU, which connects to it.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::failure::Failure;
use crate::machine::Machine;
use crate::process;

/// What QEMU needs for it.
pub fn arguments(machine: &Machine) -> [String; 4] {
    let device = format!("vhost-user-gpio-pci,chardev=npu,iommu_platform=on,ats=off,{}", machine.npu_place);
    ["-chardev".into(), "socket,id=npu,path=npu.sock".into(), "-device".into(), device]
}

/// Until it listens; it does nothing before.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running model. Dropping it ends it.
pub struct Model(Child);

impl Model {
    /// Starts it; on return QEMU may connect.
    pub fn start(program: &Path, machine: &Machine, dir: &Path) -> Result<Self> {
        let socket = dir.join("npu.sock");
        // Of an earlier run; there may be none.
        let _ = std::fs::remove_file(&socket);
        let log = File::create(dir.join("npu.log")).context("cannot create npu.log")?;
        let mut command = process::command("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(["--socket", "npu.sock"]);
        command.args(&machine.npu_options);
        command.current_dir(dir).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().context("cannot start the model of the NPU")?;
        let mut model = Self(child);
        let start = Instant::now();
        while !socket.exists() {
            if model.0.try_wait()?.is_some() || start.elapsed() > PATIENCE {
                let reason = super::Vm::log_tail(dir, "npu.log", 1).join(" ");
                return Err(Failure::setup(
                    format!("the NPU's model does not start: {reason}"),
                    "read npu.log",
                ));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(model)
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // Both fail only when it has ended already, which it does with QEMU.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
