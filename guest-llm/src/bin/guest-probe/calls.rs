//! Seeded random SMCs.

use guest_llm::arch;
use hyp_abi::ffa;
use hyp_abi::manifest::layout;
use hyp_abi::service::op;

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Random(pub u64);

impl Random {
    /// Next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// A number that makes trouble more often than others.
    fn argument(&mut self) -> u64 {
        match self.below(10) {
            0 => 0,
            1 => self.below(64),
            2 => u64::MAX - self.below(4096),
            3 => u64::from(u32::MAX) + self.below(2),
            4 => layout::HEAP + self.below(1 << 20),
            5 => layout::IMAGE + self.below(1 << 24) / 4096 * 4096,
            6 => 0x4000_0000 + self.below(1 << 30) / 4096 * 4096,
            7 => arch::endpoint_id() << 16 | u64::from(ffa::SERVICE_ID),
            8 => 1 << self.below(64),
            _ => self.next(),
        }
    }

    fn call(&mut self) -> [u64; 18] {
        let mut x: [u64; 18] = core::array::from_fn(|_| self.argument());
        let width = self.below(2) << 30;
        x[0] = match self.below(4) {
            // Any function at all; half of them with rubbish above bit 31, which callees must ignore or refuse.
            0 => self.next() >> (32 * self.below(2)),
            // PSCI, TRNG, FF-A.
            1 => 0x8400_0000 | width | self.below(0x100),
            // Every service's fast and yielding calls.
            2 => self.below(2) << 31 | width | self.below(64) << 24 | self.below(0x20),
            _ => u64::from(ffa::MSG_SEND_DIRECT_REQ_64),
        };
        if x[0] == u64::from(ffa::MSG_SEND_DIRECT_REQ_64) {
            if self.below(8) != 0 {
                x[1] = arch::endpoint_id() << 16 | u64::from(ffa::SERVICE_ID);
                x[2] = 0;
            }
            x[3] = if self.below(4) == 0 { self.argument() } else { self.below(0x28) };
        }
        x
    }
}

/// Tells whether the call is one that a partition may make to its own harm: to end, to change its session, to turn vCPUs
/// on or off, or to sleep.
fn is_own_right(x: &[u64; 18]) -> bool {
    match x[0] as u32 {
        ffa::MSG_WAIT => true,
        // CPU_SUSPEND, CPU_OFF, CPU_ON, SYSTEM_OFF.
        0x8400_0001 | 0xC400_0001 | 0x8400_0002 | 0xC400_0003 | 0x8400_0008 => true,
        ffa::MSG_SEND_DIRECT_REQ_32 | ffa::MSG_SEND_DIRECT_REQ_64 => {
            matches!(x[3] & 0xFFFF_FFFF, op::EXIT | op::PANIC | op::SHARE | op::UNSHARE)
        }
        _ => false,
    }
}

/// Makes `count` calls; returns how many were unknown, refused and granted, and the last granted function.
pub fn random(seed: u64, count: u64) -> [u64; 4] {
    let mut random = Random(seed);
    let mut counts = [0; 4];
    let mut made = 0;
    while made < count {
        let mut x = random.call();
        if is_own_right(&x) {
            continue;
        }
        made += 1;
        let function = x[0];
        // SAFETY: calls that a partition may make to change its own memory are left out; that others change none is what
        // the act is about.
        unsafe { arch::smc(&mut x) };
        let status = match x[0] as u32 {
            ffa::ERROR => x[2] as i32,
            ffa::MSG_SEND_DIRECT_RESP_64 | ffa::MSG_SEND_DIRECT_RESP_32 => x[3] as i32,
            other => other as i32,
        };
        match status {
            ffa::error::NOT_SUPPORTED => counts[0] += 1,
            // FF-A function ids are negative too, but far from error codes.
            -255..=-2 => counts[1] += 1,
            _ => {
                counts[2] += 1;
                counts[3] = function;
            }
        }
    }
    counts
}

/// Makes an FF-A call: function, x1-x3; returns x0-x3.
pub fn ffa(args: [u64; 4]) -> [u64; 4] {
    let mut x = [0; 18];
    x[..4].copy_from_slice(&args);
    // SAFETY: who sends the command names no memory that the probe lives in.
    unsafe { arch::smc(&mut x) };
    [x[0], x[1], x[2], x[3]]
}
