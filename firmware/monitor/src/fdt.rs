//! Adds PSCI to a device tree: QEMU leaves it out where firmware of the machine's own is to bring it. The format is that of the
//! devicetree specification 0.4, chapter 5.

const MAGIC: usize = 0xd00d_feed;
const BEGIN_NODE: usize = 1;
const END_NODE: usize = 2;
const PROPERTY: usize = 3;
const NOP: usize = 4;
const END: usize = 9;
/// Bytes of the header of version 17.
const HEADER_SIZE: usize = 40;
/// Names of the properties that are added, and where each lies among them.
const STRINGS: &[u8] = b"enable-method\0compatible\0method\0";
const ENABLE_METHOD: usize = 0;
const COMPATIBLE: usize = 14;
const METHOD: usize = 25;

/// Copies the tree at the start of `tree` to `out`, with a node `/psci` and with PSCI as the way to turn on each CPU. None if the
/// tree is malformed, or `out` too small.
pub fn add_psci(tree: &[u8], out: &mut [u8]) -> Option<()> {
    let (magic, structure, strings) = (word(tree, 0)?, word(tree, 8)?, word(tree, 12)?);
    let (reservations, strings_size) = (word(tree, 16)?, word(tree, 32)?);
    let mut to = Writer { out, at: HEADER_SIZE };
    to.put(tree.get(reservations..structure).filter(|_| magic == MAGIC)?)?;
    let new_structure = to.at;
    copy_structure(tree.get(structure..)?, strings_size, &mut to)?;
    let new_strings = to.at;
    to.put(tree.get(strings..)?.get(..strings_size)?)?;
    to.put(STRINGS)?;
    let size = to.at;
    to.at = 0;
    to.words(&[MAGIC, size, new_structure, new_strings, HEADER_SIZE])?;
    to.put(tree.get(20..32)?)?;
    to.words(&[strings_size + STRINGS.len(), new_strings - new_structure])
}

fn copy_structure(from: &[u8], strings_size: usize, to: &mut Writer<'_>) -> Option<()> {
    let (mut at, mut depth) = (0_usize, 0_usize);
    loop {
        let rest = from.get(at..)?;
        let token = word(rest, 0)?;
        let name = rest.get(4..)?;
        let size = match token {
            BEGIN_NODE => name.iter().position(|byte| *byte == 0)? + 5,
            PROPERTY => word(rest, 4)?.checked_add(12)?,
            END_NODE | NOP | END => 4,
            _ => return None,
        };
        let size = size.checked_next_multiple_of(4)?;
        if token == END_NODE && depth == 1 {
            to.words(&[BEGIN_NODE])?;
            to.put(b"psci\0\0\0\0")?;
            to.property(strings_size + COMPATIBLE, b"arm,psci-1.0\0arm,psci-0.2\0")?;
            to.property(strings_size + METHOD, b"smc\0")?;
            to.words(&[END_NODE])?;
        }
        to.put(rest.get(..size)?)?;
        at += size;
        match token {
            BEGIN_NODE => {
                if depth == 2 && name.starts_with(b"cpu@") {
                    to.property(strings_size + ENABLE_METHOD, b"psci\0")?;
                }
                depth += 1;
            }
            END_NODE => depth = depth.checked_sub(1)?,
            END => return (depth == 0).then_some(()),
            _ => {}
        }
    }
}

struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        self.out.get_mut(self.at..)?.get_mut(..bytes.len())?.copy_from_slice(bytes);
        self.at += bytes.len();
        Some(())
    }

    fn words(&mut self, values: &[usize]) -> Option<()> {
        values.iter().try_for_each(|value| self.put(&u32::try_from(*value).ok()?.to_be_bytes()))
    }

    fn property(&mut self, name: usize, value: &[u8]) -> Option<()> {
        self.words(&[PROPERTY, value.len(), name])?;
        self.put(value)?;
        self.put([0; 3].get(..self.at.wrapping_neg() & 3)?)
    }
}

/// The big-endian word at `offset`.
fn word(bytes: &[u8], offset: usize) -> Option<usize> {
    Some(u32::from_be_bytes(*bytes.get(offset..)?.first_chunk()?) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dtoolkit::fdt::Fdt;
    use dtoolkit::{Node, Property};

    /// A tree of a root with a property, two CPUs and their map.
    fn tree() -> Vec<u8> {
        let mut structure = Vec::new();
        let begin = |structure: &mut Vec<u8>, name: &[u8]| {
            structure.extend((BEGIN_NODE as u32).to_be_bytes());
            structure.extend(name);
            structure.resize((structure.len() + 1).next_multiple_of(4), 0);
        };
        let end = |structure: &mut Vec<u8>| structure.extend((END_NODE as u32).to_be_bytes());
        begin(&mut structure, b"");
        structure.extend((PROPERTY as u32).to_be_bytes());
        structure.extend([0, 0, 0, 5, 0, 0, 0, 0]);
        structure.extend(b"virt\0\0\0\0");
        begin(&mut structure, b"cpus");
        for name in [&b"cpu@0"[..], b"cpu@1", b"cpu-map"] {
            begin(&mut structure, name);
            end(&mut structure);
        }
        end(&mut structure);
        end(&mut structure);
        structure.extend((END as u32).to_be_bytes());
        let mut tree = Vec::new();
        let strings = b"model\0";
        let offset = HEADER_SIZE + 16;
        let size = offset + structure.len() + strings.len();
        for value in [MAGIC, size, offset, offset + structure.len(), HEADER_SIZE, 17, 16, 0, strings.len()] {
            tree.extend((value as u32).to_be_bytes());
        }
        tree.extend((structure.len() as u32).to_be_bytes());
        tree.extend([0; 16]);
        tree.extend(structure);
        tree.extend(strings);
        tree
    }

    #[test]
    fn every_cpu_and_the_root_get_psci() {
        let mut out = [0; 1024];
        add_psci(&tree(), &mut out).unwrap();
        let fdt = Fdt::new(&out[..word(&out, 4).unwrap()]).unwrap();
        let text = |path: &str, name: &str| {
            let node = fdt.find_node(path)?;
            Some(node.property(name)?.value_as::<&str>().ok()?.to_owned())
        };
        assert_eq!(text("/", "model").as_deref(), Some("virt"));
        assert_eq!(text("/cpus/cpu@0", "enable-method").as_deref(), Some("psci"));
        assert_eq!(text("/cpus/cpu@1", "enable-method").as_deref(), Some("psci"));
        assert_eq!(text("/cpus/cpu-map", "enable-method"), None);
        assert_eq!(text("/psci", "method").as_deref(), Some("smc"));
        assert!(fdt.find_node("/psci").unwrap().property("compatible").is_some());
    }

    #[test]
    fn malformed_trees_and_small_buffers_are_refused() {
        let good = tree();
        let mut out = [0; 1024];
        add_psci(&good, &mut out).unwrap();
        let size = word(&out, 4).unwrap();
        for room in 0..size {
            assert_eq!(add_psci(&good, &mut [0; 1024][..room]), None);
        }
        for length in 0..good.len() {
            assert_eq!(add_psci(&good[..length], &mut [0; 1024]), None);
        }
        // Every byte wrong in turn: whatever comes of it, no panic.
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                let _ = add_psci(&bad, &mut [0; 1024]);
            }
        }
    }
}
