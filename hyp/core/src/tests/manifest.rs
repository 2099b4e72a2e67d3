//! Manifest validation: one broken rule at a time.

use super::*;
use hyp_abi::ffa::error::INVALID_PARAMETERS;

#[test]
fn every_rule_is_checked() {
    const HEADER: u64 = 16;
    type Breaker = fn(&mut Manifest);
    let cases: [(&str, u64, Breaker); 39] = [
        ("magic", HEADER, |m| m.magic[7] ^= 1),
        ("version", HEADER, |m| m.version = 2),
        ("no vCPU", HEADER, |m| m.vcpu_count = 0),
        ("too many vCPUs", HEADER, |m| m.vcpu_count = 9),
        ("no region", HEADER, |m| m.region_count = 0),
        ("too many regions", HEADER, |m| m.region_count = 17),
        ("absurdly many regions", HEADER, |m| m.region_count = u32::MAX),
        ("reserved word", HEADER, |m| m.reserved = 1),
        ("name with a line feed", HEADER, |m| m.name[3] = b'\n'),
        ("name with an escape", HEADER, |m| m.name[0] = 0x1b),
        ("name beyond ASCII", HEADER, |m| m.name[0] = 0xc3),
        ("name after its end", HEADER, |m| m.name[4] = 0),
        ("entry outside", HEADER, |m| m.entry = 0),
        ("entry past the region", HEADER, |m| m.entry = IMAGE + 64 * PAGE),
        ("entry in data", HEADER, |m| m.entry = DATA),
        ("entry not an instruction", HEADER, |m| m.entry += 2),
        ("region of kind none", 2, |m| m.regions[2].kind = 0),
        ("region of unknown kind", 2, |m| m.regions[2].kind = 6),
        ("unaligned region", 3, |m| m.regions[3].ipa += 8),
        ("empty region", 3, |m| m.regions[3].page_count = 0),
        ("region at the limit", 3, |m| m.regions[3].ipa = 1 << 40),
        ("region over the limit", 3, |m| m.regions[3].ipa = (1 << 40) - 2047 * PAGE),
        ("region far over the limit", 3, |m| m.regions[3].page_count = u64::MAX),
        ("region that wraps", 3, |m| m.regions[3].ipa = u64::MAX << 12),
        ("no access", 0, |m| m.regions[0].access = 0),
        ("unknown access", 0, |m| m.regions[0].access = 9),
        ("write only", 3, |m| m.regions[3].access = 2),
        ("write and execute", 1, |m| m.regions[1].access = 7),
        ("executable private memory", 3, |m| m.regions[3].access = 5),
        ("executable model", 0, |m| m.regions[0].access = 5),
        ("executable session", 4, |m| m.regions[4].access = 5),
        ("executable borrowed memory", 5, |m| m.regions[5].access = 5),
        ("image above the private half", 1, |m| m.regions[1].ipa = (1 << 32) - 63 * PAGE),
        ("private memory of zeros", 3, |m| m.regions[3].ipa = (1 << 32) - 2048 * PAGE),
        ("private memory to share", 4, |m| m.regions[4].ipa = 0),
        ("private memory to borrow", 5, |m| m.regions[5].ipa = (1 << 32) - PAGE),
        ("overlap at the start", 4, |m| m.regions[4].ipa = HEAP + 2047 * PAGE),
        ("overlap around", 3, |m| (m.regions[3].ipa, m.regions[3].page_count) = (1 << 32, 1 << 26)),
        ("unused region in use", 9, |m| m.regions[9].page_count = 1),
    ];
    let mut world = World::new();
    for (name, region, breaker) in cases {
        let mut broken = if region == 5 { borrowing() } else { manifest() };
        breaker(&mut broken);
        assert_eq!(world.create(&broken), (INVALID_PARAMETERS, [region, 0, 0, 0]), "{name}");
    }
    assert_eq!(world.create(&manifest()).0, 0);
}

#[test]
fn regions_may_touch_and_reach_the_limit() {
    let mut tight = manifest();
    tight.regions[3].ipa = SESSION - 2048 * PAGE;
    tight.regions[0].ipa = (1 << 39) - 64 * PAGE;
    tight.regions[1].ipa = (1 << 32) - 64 * PAGE;
    tight.entry = tight.regions[1].ipa;
    tight.vcpu_count = 8;
    tight.name = *b"sixteen-letters!";
    assert_eq!(World::new().create(&tight).0, 0);
}

#[test]
fn the_size_is_exact() {
    let mut world = World::new();
    world.tx(manifest().as_bytes());
    for size in [0, 431, 433, 4096, u64::MAX] {
        assert_eq!(world.request(op::CREATE, &[size]), (INVALID_PARAMETERS, [0; 4]));
    }
    assert_eq!(world.request(op::CREATE, &[432]).0, 0);
}
