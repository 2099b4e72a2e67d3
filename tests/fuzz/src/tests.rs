//! Each harness over its committed inputs and over seeded noise.

use std::path::Path;

type Harness = fn(&[u8]);

const HARNESSES: [(&str, Harness); 8] = [
    ("hypervisor", crate::hypervisor),
    ("image", crate::image),
    ("model", crate::model),
    ("npu", crate::npu),
    ("schema", crate::schema),
    ("session", crate::session),
    ("template", crate::template),
    ("tokenizer", crate::tokenizer),
];

/// xorshift64*.
fn noise(seed: &mut u64) -> u8 {
    *seed ^= *seed >> 12;
    *seed ^= *seed << 25;
    *seed ^= *seed >> 27;
    (seed.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 56) as u8
}

#[test]
fn committed_inputs_break_nothing() {
    for (name, harness) in HARNESSES {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("inputs").join(name);
        let mut count = 0;
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            eprintln!("{}", path.display());
            harness(&std::fs::read(path).unwrap());
            count += 1;
        }
        assert!(count > 0, "{name} has no inputs");
    }
}

#[test]
fn noise_breaks_nothing() {
    for (name, harness) in HARNESSES {
        let mut seed = 0x9E37_79B9_7F4A_7C15;
        for length in (0..40).map(|i| i * 37) {
            let input: Vec<u8> = (0..length).map(|_| noise(&mut seed)).collect();
            eprintln!("{name}: {length} bytes");
            harness(&input);
        }
    }
}
