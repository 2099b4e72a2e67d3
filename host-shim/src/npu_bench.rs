//! `flexserve npu-bench`: a program of the host's that multiplies matrices on the NPU, alone or beside a partition that does too.
//!
//! It is the normal world's driver at work: the same driver crate as the partition's, over `/dev/flexserve-npu`.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use flexserve_engine::gguf::TensorType;
use flexserve_engine::{Activations, Multiplier};
use flexserve_npu_abi::{Job, Matrix, Rows};
use flexserve_npu_driver::{Broker, Layout, Lease, List, Mmio, NotLent, Ownership, PciTransport, Refusal};
use serde::Serialize;
use serde_json::Value;

use crate::dma::{self, HostHal, Memory};
use crate::error::{Error, Result};
use crate::npu::{HostNpu, State};
use crate::sys::Registers;

/// The product: Q8_0 weights of this shape with activations of so many tokens.
const ROWS: u32 = 1024;
const COLUMNS: u32 = 1024;
const TOKENS: u32 = 128;
/// Bytes of a row of Q8_0.
const ROW_BYTES: usize = COLUMNS as usize / 32 * 34;
/// Jobs of a list: between two lists the NPU may go.
const JOBS: usize = 8;
/// Lists between two looks at whether to stop.
const LISTS: usize = 8;
/// Between two looks at whether a list is done: the CPU is the NPU's model's as well.
const PAUSE: Duration = Duration::from_micros(500);
/// Between two signs of life.
const HEARTBEAT: Duration = Duration::from_secs(10);
const INPUT: usize = ROWS as usize * ROW_BYTES;
const OUTPUT: usize = INPUT + (TOKENS * COLUMNS * 4) as usize;

/// What came of it.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Work {
    /// Jobs done.
    pub jobs: u64,
    /// 10^9 multiplications and additions a second, of wall time.
    pub gops: f64,
    /// Times that the NPU was lost with a list in flight.
    pub losses: u64,
    /// Times that it was not to be had.
    pub refusals: u64,
}

/// The hypervisor, through the module.
struct HostBroker {
    npu: HostNpu,
    registers: Arc<Registers>,
    layout: Layout,
}

fn ownership(state: &State) -> Ownership {
    Ownership { held: state.held, wanted: state.wanted, generation: state.generation }
}

impl Broker for HostBroker {
    type Transport = PciTransport<HostMmio>;

    fn state(&mut self) -> Option<Ownership> {
        self.npu.state().ok().as_ref().map(ownership)
    }

    /// Waits until it has it.
    fn acquire(&mut self) -> std::result::Result<Ownership, NotLent> {
        self.npu.acquire().as_ref().map(ownership).map_err(|_| NotLent::Broken)
    }

    fn release(&mut self) {
        // Refused if it was lost meanwhile.
        let _ = self.npu.release();
    }

    fn transport(&mut self) -> Self::Transport {
        // The lease starts the device anew, and has let go of all queues before.
        dma::forget_queues();
        PciTransport::new(HostMmio(self.registers.clone()), self.layout)
    }
}

struct HostMmio(Arc<Registers>);

impl Mmio for HostMmio {
    fn read_u8(&self, offset: usize) -> u8 {
        self.0.load(offset, u8::MAX)
    }
    fn read_u16(&self, offset: usize) -> u16 {
        self.0.load(offset, u16::MAX)
    }
    fn read_u32(&self, offset: usize) -> u32 {
        self.0.load(offset, u32::MAX)
    }
    fn write_u8(&self, offset: usize, value: u8) {
        self.0.store(offset, value);
    }
    fn write_u16(&self, offset: usize, value: u16) {
        self.0.store(offset, value);
    }
    fn write_u32(&self, offset: usize, value: u32) {
        self.0.store(offset, value);
    }
}

/// The NPU with matrices in its memory.
pub struct Client {
    lease: Lease<HostHal, HostBroker>,
    tensors: Memory,
}

impl Client {
    /// Opens the device and fills the matrices with numbers that repeat.
    ///
    /// # Errors
    /// No NPU, or no memory.
    pub fn open() -> Result<Self> {
        let npu = HostNpu::open()?;
        let state = npu.state()?;
        dma::use_for_queues(npu.memory(256 << 10)?);
        let tensors = npu.memory(OUTPUT as u64 + u64::from(TOKENS * ROWS * 4))?;
        let mut row = vec![0; ROW_BYTES];
        for index in 0..ROWS as usize {
            for (number, block) in row.chunks_exact_mut(34).enumerate() {
                let (scale, elements) = block.split_at_mut(2);
                scale.copy_from_slice(&0x2000u16.to_le_bytes()); // 2^-7
                elements
                    .iter_mut()
                    .enumerate()
                    .for_each(|(i, byte)| *byte = (index * 7 + number * 3 + i) as u8);
            }
            tensors.write(index * ROW_BYTES, &row);
        }
        for token in 0..TOKENS {
            let values = (0..COLUMNS).flat_map(|column| (((token + column) % 13) as f32 - 6.0).to_le_bytes());
            let start = INPUT + (token * COLUMNS * 4) as usize;
            tensors.write(start, &values.collect::<Vec<u8>>());
        }
        let [common, isr, device, notify] = state.offsets;
        let layout = Layout { common, isr, device, notify, notify_multiplier: state.notify_multiplier };
        let registers = Arc::new(npu.registers()?);
        Ok(Client { lease: Lease::new(HostBroker { npu, registers, layout }), tensors })
    }

    fn job(&self) -> Job {
        let address = self.tensors.address();
        let matrix = Matrix {
            format: TensorType::Q8_0.number(),
            rows: ROWS,
            columns: COLUMNS,
            iova: address,
            stride: ROW_BYTES as u64,
        };
        let rows = |offset: usize, columns: u32| Rows {
            iova: address + offset as u64,
            stride: u64::from(columns) * 4,
        };
        Job::multiply(matrix, TOKENS, TensorType::F32.number(), rows(INPUT, COLUMNS), rows(OUTPUT, ROWS))
    }

    /// Multiplies until told to stop. A partition may take the NPU at any time, and gets it when it asks.
    ///
    /// # Errors
    /// The NPU breaks the rules, or fails a job.
    pub fn work(&mut self, stop: &AtomicBool) -> Result<Work> {
        let (start, before) = (Instant::now(), self.lease.stats());
        let list: List = core::iter::repeat_n(self.job(), JOBS).collect();
        while !stop.load(Ordering::Relaxed) {
            let mut make = |index| (index < LISTS).then(|| list.clone());
            let pause = &mut |_| {
                std::thread::sleep(PAUSE);
                true
            };
            match self.lease.run(&mut make, pause).1 {
                Ok(()) => {}
                Err(Refusal::NotNow) => std::thread::sleep(Duration::from_millis(1)),
                Err(error) => return Err(Error::protocol(error.to_string())),
            }
        }
        let (seconds, after) = (start.elapsed().as_secs_f64(), self.lease.stats());
        self.lease.give_back();
        let jobs = after.jobs - before.jobs;
        let operations = 2.0 * f64::from(ROWS) * f64::from(COLUMNS) * f64::from(TOKENS);
        Ok(Work {
            jobs,
            gops: jobs as f64 * operations / seconds / 1e9,
            losses: after.losses - before.losses,
            refusals: after.refusals - before.refusals,
        })
    }

    /// Whether the last products are, to the bit, what the engine computes on the CPU. Looks at a few rows.
    ///
    /// # Errors
    /// They are not.
    pub fn verify(&self) -> Result<()> {
        const CHECKED: usize = 8;
        let tokens = TOKENS as usize;
        let no_memory = |_| Error::protocol("no memory to check the products");
        let elements = (TOKENS * COLUMNS) as usize;
        let mut multiplier = Multiplier::new(elements, COLUMNS as usize, tokens, false).map_err(no_memory)?;
        let mut input = vec![0; COLUMNS as usize * 4];
        multiplier.begin(TensorType::Q8_0, COLUMNS as usize, tokens);
        for token in 0..tokens {
            self.tensors.read(INPUT + token * input.len(), &mut input);
            multiplier.set(token, Activations::F32(&input));
        }
        let mut row = vec![0; ROW_BYTES];
        for index in (0..ROWS as usize).step_by(ROWS as usize / CHECKED) {
            self.tensors.read(index * ROW_BYTES, &mut row);
            let mut products = vec![0.0; tokens];
            multiplier.multiply(&row, &mut products);
            for (token, expected) in products.iter().enumerate() {
                let mut found = [0; 4];
                self.tensors.read(OUTPUT + (token * ROWS as usize + index) * 4, &mut found);
                if found != expected.to_le_bytes() {
                    return Err(Error::protocol(format!("product {index} of token {token} is wrong")));
                }
            }
        }
        Ok(())
    }
}

/// What a run in a partition reports.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Answer {
    prompt_tokens: u64,
    prefill_tokens_per_s: f64,
    tokens_per_s: f64,
    npu_jobs: u64,
}

/// What partition and host have of the NPU, each alone and both at once; and the partition without it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Shared {
    /// The partition on its CPUs.
    cpu: Vec<Answer>,
    /// The partition with the NPU to itself.
    npu: Vec<Answer>,
    /// The host with the NPU to itself.
    host: Vec<Work>,
    /// Both: the partition.
    npu_shared: Vec<Answer>,
    /// Both: the host, meanwhile.
    host_shared: Vec<Work>,
}

/// Runs `flexserve run` with these arguments and takes its report.
fn answer(arguments: &[String], npu: bool) -> Result<Answer> {
    let program = std::env::current_exe().map_err(|error| Error::protocol(error.to_string()))?;
    let mut command = Command::new(program);
    command.arg("run").args(arguments).arg("--json").stdin(Stdio::null());
    if !npu {
        command.arg("--no-npu");
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|error| Error::protocol(error.to_string()))?;
    let (ended, end) = std::sync::mpsc::channel::<()>();
    let output = std::thread::scope(|scope| {
        // On CPUs that are emulated an answer takes a while.
        scope.spawn(move || {
            let start = Instant::now();
            while end.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
                eprintln!("npu-bench: answering for {} s", start.elapsed().as_secs());
            }
        });
        let output = child.wait_with_output();
        drop(ended);
        output
    });
    let output = output.map_err(|error| Error::protocol(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let report = text.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok());
    let report = report.filter(|report| report["ok"] == true).ok_or_else(|| {
        Error::protocol(format!("the run beside failed: {}", String::from_utf8_lossy(&output.stderr)))
    })?;
    let number = |name: &str| report[name].as_f64().unwrap_or(0.0);
    Ok(Answer {
        prompt_tokens: report["prompt_tokens"].as_u64().unwrap_or(0),
        prefill_tokens_per_s: number("prefill_tokens_per_s"),
        tokens_per_s: number("tokens_per_s"),
        npu_jobs: report["npu_jobs"].as_u64().unwrap_or(0),
    })
}

/// Works until `beside` is done.
fn work_beside<T>(client: &mut Client, beside: impl FnOnce() -> T + Send) -> Result<(T, Work)>
where
    T: Send,
{
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let result = beside();
            stop.store(true, Ordering::Relaxed);
            result
        });
        let work = client.work(&stop);
        // A worker that failed early still waits for the other.
        let result = other.join().map_err(|_| Error::protocol("a thread panicked"))?;
        Ok((result, work?))
    })
}

/// Works for so long.
///
/// # Errors
/// As [`Client::work`].
pub fn alone(client: &mut Client, seconds: u64) -> Result<Work> {
    let ((), work) = work_beside(client, || std::thread::sleep(Duration::from_secs(seconds)))?;
    client.verify()?;
    Ok(work)
}

/// Lets a partition run with these arguments of `flexserve run`, in turn without the NPU, with it, and with the host using it too.
///
/// # Errors
/// A run fails, or as [`Client::work`].
pub fn shared(client: &mut Client, arguments: &[String], rounds: usize) -> Result<Shared> {
    let mut shared = Shared::default();
    for round in 1..=rounds {
        eprintln!("npu-bench: round {round} of {rounds}");
        shared.cpu.push(answer(arguments, false)?);
        shared.npu.push(answer(arguments, true)?);
        shared.host.push(alone(client, 5)?);
        let (answer, work) = work_beside(client, || answer(arguments, true))?;
        shared.npu_shared.push(answer?);
        shared.host_shared.push(work);
        client.verify()?;
    }
    Ok(shared)
}
