//! What a schema becomes: rules, each of which says what one kind of value looks like.

use alloc::vec::Vec;
use core::ops::Range;

/// A rule's number.
pub type RuleId = u16;

/// The most arrays and objects inside each other.
pub const NESTING_MAX: u8 = 32;
/// What [`Grammar::need`] says of a rule that no text satisfies.
pub const IMPOSSIBLE: u8 = u8::MAX;
/// Stands for no limit in [`Rule::String`] and [`Rule::Array`].
pub const UNLIMITED: u32 = u32::MAX;

/// One kind of value.
#[derive(Clone, Debug)]
pub enum Rule {
    /// No value at all.
    Never,
    /// One of other rules, a range of [`Grammar::links`].
    Choice(Range<u32>),
    /// One of these texts, a range of [`Grammar::literals`]: sorted, no two equal.
    Literals(Range<u32>),
    /// A string of so many characters.
    String { min: u32, max: u32 },
    /// A number without fraction and exponent.
    Integer { min: i64, max: i64 },
    /// Any number.
    Number,
    /// So many items.
    Array { item: RuleId, min: u32, max: u32 },
    /// These members, a range of [`Grammar::properties`], in this order.
    Object(Range<u32>),
    /// Members of any names.
    Map { value: RuleId },
}

/// A member that an object may or must have.
#[derive(Clone, Debug)]
pub struct Property {
    /// Its name as a string, and the colon; a range of [`Grammar::bytes`].
    pub key: Range<u32>,
    pub value: RuleId,
    pub required: bool,
}

/// A compiled schema: which texts are valid. See [`crate::grammar`].
#[derive(Debug)]
pub struct Grammar {
    pub(super) rules: Vec<Rule>,
    pub(super) links: Vec<RuleId>,
    pub(super) properties: Vec<Property>,
    /// Ranges of `bytes`.
    pub(super) literals: Vec<Range<u32>>,
    pub(super) bytes: Vec<u8>,
    /// For each rule the rules that a value of it may be, no choices among them: ranges of `alternatives`.
    pub(super) starts: Vec<Range<u32>>,
    pub(super) alternatives: Vec<RuleId>,
    /// For each rule how many arrays and objects inside each other the flattest value of it has.
    pub(super) needs: Vec<u8>,
    /// For each rule whether its schema names no type, so that values of others satisfy the schema too, though never the rule.
    pub(super) implied: Vec<bool>,
    pub(super) root: RuleId,
}

/// The elements of `all` in `range`.
pub fn part<'a, T>(all: &'a [T], range: &Range<u32>) -> &'a [T] {
    all.get(range.start as usize..range.end as usize).unwrap_or_default()
}

impl Grammar {
    pub(super) fn rule(&self, rule: RuleId) -> &Rule {
        self.rules.get(usize::from(rule)).unwrap_or(&Rule::Never)
    }

    /// The rules that a value of `rule` may be, no choices among them.
    pub(super) fn alternatives(&self, rule: RuleId) -> &[RuleId] {
        self.starts.get(usize::from(rule)).map_or(&[], |range| part(&self.alternatives, range))
    }

    pub(super) fn need(&self, rule: RuleId) -> u8 {
        self.needs.get(usize::from(rule)).copied().unwrap_or(IMPOSSIBLE)
    }

    /// The text of a literal.
    pub(super) fn literal(&self, index: u32) -> &[u8] {
        self.literals.get(index as usize).map_or(&[], |range| part(&self.bytes, range))
    }
}
