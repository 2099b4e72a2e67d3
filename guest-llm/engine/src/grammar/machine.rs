//! All ways in which a text can be understood, byte by byte.
//!
//! A way is a place in a rule, and a stack of the arrays and objects around it. The ways after a text are a set: a range of a
//! list, in which the sets of ever longer texts follow each other, so that the last can be taken back. Every way can be
//! completed to a valid value: none is begun that would nest too deep.

use alloc::vec::Vec;
use core::ops::Range;

use super::ALTERNATIVES_MAX;
use super::rule::{Grammar, NESTING_MAX, Property, Rule, RuleId, UNLIMITED, part};
use super::scalar::{integer, number, string};
use super::stack::{EMPTY, StackId, Stacks};
use crate::Result;
use crate::budget::Budget;

/// The most ways after a text; what comes on top is left out, and those that stay are valid all the same.
const WAYS_MAX: usize = ALTERNATIVES_MAX;
/// The most ways in the list.
const LIST_MAX: usize = 64 * WAYS_MAX;

/// States of arrays and objects.
mod container {
    /// What begins it.
    pub const OPEN: u16 = 0;
    /// What ends it, since it is empty so far.
    pub const EMPTY: u16 = 1;
    /// What comes after a value: a comma, or the end.
    pub const AFTER: u16 = 2;
    /// In a name; the byte to come is number `b`.
    pub const NAME: u16 = 3;
    /// After a name of any text.
    pub const COLON: u16 = 4;
    /// In a name of any text, with the string's state added.
    pub const ANY_NAME: u16 = 16;
}

/// One way to understand a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// The rule of the value that the next byte belongs to; [`DONE`] after the end of the text.
    pub rule: RuleId,
    /// Where in it, as each kind of rule defines.
    pub(super) state: u16,
    /// Literals: those that are left; strings, arrays: a count; objects: the member; numbers: digits.
    pub(super) a: u32,
    pub(super) b: u32,
    /// What is around it.
    pub stack: StackId,
}

/// The rule of a way that has come to the end of the text.
pub const DONE: RuleId = RuleId::MAX;

/// A set of ways: a range of the list.
pub type Set = Range<usize>;

/// The list of ways, and their stacks.
#[derive(Debug)]
pub struct Machine<'g> {
    grammar: &'g Grammar,
    ways: Vec<Way>,
    stacks: Stacks,
}

impl<'g> Machine<'g> {
    /// Allocates for all that there may be. The first set is that of the empty text.
    pub fn new(grammar: &'g Grammar, budget: &mut Budget) -> Result<(Self, Set)> {
        let ways = budget.reserve(LIST_MAX)?;
        let mut machine = Machine { grammar, ways, stacks: Stacks::new(budget)? };
        machine.begin(grammar.root, EMPTY, 0);
        let first = 0..machine.ways.len();
        Ok((machine, first))
    }

    /// The ways in `set`.
    pub fn ways(&self, set: &Set) -> &[Way] {
        self.ways.get(set.clone()).unwrap_or_default()
    }

    /// Where the lists stand, for [`Machine::truncate`].
    pub fn mark(&self) -> (usize, usize) {
        (self.ways.len(), self.stacks.mark())
    }

    /// Takes back the sets made since `mark`.
    pub fn truncate(&mut self, mark: (usize, usize)) {
        self.ways.truncate(mark.0);
        self.stacks.truncate(mark.1);
    }

    /// Drops all sets but `set`, which is the first then.
    pub fn keep(&mut self, set: Set) -> Set {
        let length = set.len();
        self.ways.drain(..set.start);
        self.ways.truncate(length);
        self.stacks.keep(&mut self.ways);
        0..length
    }

    /// Tells whether strings go on here that may have `length` more characters at least.
    pub fn is_in_string(&self, set: &Set, length: u32) -> bool {
        self.ways(set).iter().any(|way| match self.grammar.rule(way.rule) {
            Rule::String { max, .. } => {
                way.state == string::BODY && (*max == UNLIMITED || max.saturating_sub(way.a) >= length)
            }
            Rule::Map { .. } => way.state == container::ANY_NAME + string::BODY,
            _ => false,
        })
    }

    /// Makes the set of the text that is `byte` longer than that of `set`. It is empty if no valid text begins so.
    pub fn step(&mut self, set: &Set, byte: u8) -> Set {
        let start = self.ways.len();
        for index in set.clone() {
            if let Some(way) = self.ways.get(index).copied() {
                self.step_way(way, byte, start);
            }
        }
        start..self.ways.len()
    }

    /// Adds a way to the set that begins at `start`.
    fn add(&mut self, way: Way, start: usize) {
        let set = self.ways.get(start..).unwrap_or_default();
        if set.len() < WAYS_MAX && self.ways.len() < LIST_MAX && !set.contains(&way) {
            self.ways.push(way);
        }
    }

    /// Adds the ways to begin a value of `rule`.
    fn begin(&mut self, rule: RuleId, stack: StackId, start: usize) {
        let grammar = self.grammar;
        for &rule in grammar.alternatives(rule) {
            if !self.fits(grammar.need(rule), stack) {
                continue;
            }
            let (a, b) = match grammar.rule(rule) {
                Rule::Literals(literals) => (literals.start, literals.end),
                _ => (0, 0),
            };
            self.add(Way { rule, state: 0, a, b, stack }, start);
        }
    }

    fn fits(&self, need: u8, stack: StackId) -> bool {
        self.stacks.depth(stack).saturating_add(need) <= NESTING_MAX
    }

    /// Adds the way that goes on behind a value that is complete.
    fn complete(&mut self, stack: StackId, start: usize) {
        let way = match self.stacks.top(stack) {
            Some(frame) => {
                Way { rule: frame.rule, state: container::AFTER, a: frame.at, b: 0, stack: frame.below }
            }
            None => Way { rule: DONE, ..Way::default() },
        };
        self.add(way, start);
    }

    /// Adds the ways to begin a value inside the array or object of `rule`, where it is at `at`.
    fn begin_inside(&mut self, way: &Way, at: u32, value: RuleId, start: usize) {
        let need = self.grammar.need(value);
        if need < NESTING_MAX
            && self.fits(need + 1, way.stack)
            && let Some(stack) = self.stacks.push(way.rule, at, way.stack)
        {
            self.begin(value, stack, start);
        }
    }

    fn step_way(&mut self, way: Way, byte: u8, start: usize) {
        // The rule outlives the machine.
        let grammar = self.grammar;
        match grammar.rule(way.rule) {
            Rule::Never | Rule::Choice(_) => {}
            Rule::Literals(_) => self.step_literals(way, byte, start),
            Rule::String { min, max } => {
                let is_full = *max != UNLIMITED && way.a >= *max;
                if way.state == string::BODY && (is_full && byte != b'"' || way.a < *min && byte == b'"') {
                    return;
                }
                match string::step(way.state, byte) {
                    Some(string::Step::Inside(state)) => self.add(Way { state, ..way }, start),
                    Some(string::Step::Character) => {
                        // Beyond the least count only the most matters, if there is one.
                        let most = if *max == UNLIMITED { *min } else { *max };
                        let a = way.a.saturating_add(1).min(most);
                        self.add(Way { state: string::BODY, a, ..way }, start);
                    }
                    Some(string::Step::Closed) => self.complete(way.stack, start),
                    None => {}
                }
            }
            Rule::Number => {
                if let Some((state, a)) = number::step(way.state, way.a, byte) {
                    self.add(Way { state, a, ..way }, start);
                    if number::is_complete(state) {
                        self.complete(way.stack, start);
                    }
                }
            }
            Rule::Integer { min, max } => {
                let value = u64::from(way.a) | u64::from(way.b) << 32;
                if let Some((state, value)) = integer::step(way.state, value, byte, *min, *max) {
                    self.add(Way { state, a: value as u32, b: (value >> 32) as u32, ..way }, start);
                    if integer::is_complete(state, value, *min, *max) {
                        self.complete(way.stack, start);
                    }
                }
            }
            Rule::Array { item, min, max } => self.step_array(way, byte, (*item, *min, *max), start),
            Rule::Object(properties) => {
                self.step_object(way, byte, part(&grammar.properties, properties), start);
            }
            Rule::Map { value } => self.step_map(way, byte, *value, start),
        }
    }

    /// Literals `a..b` begin with the text so far; the next byte is number `state` in each.
    fn step_literals(&mut self, way: Way, byte: u8, start: usize) {
        let grammar = self.grammar;
        let at = usize::from(way.state);
        // They are sorted, and one that ends here comes first.
        let first_with = |bound: Option<u8>| {
            let (mut low, mut high) = (way.a, way.b);
            while low < high {
                let middle = low.midpoint(high);
                if grammar.literal(middle).get(at).copied() < bound {
                    low = middle + 1
                } else {
                    high = middle
                }
            }
            low
        };
        let first = first_with(Some(byte));
        let last = byte.checked_add(1).map_or(way.b, |next| first_with(Some(next)));
        if first >= last {
            return;
        }
        let Some(state) = way.state.checked_add(1) else { return };
        let ends = grammar.literal(first).len() == usize::from(state);
        if !ends || last - first > 1 {
            self.add(Way { state, a: first, b: last, ..way }, start);
        }
        if ends {
            self.complete(way.stack, start);
        }
    }

    /// `a` counts items.
    fn step_array(&mut self, way: Way, byte: u8, (item, min, max): (RuleId, u32, u32), start: usize) {
        let has_room = max == UNLIMITED || way.a < max;
        match (way.state, byte) {
            (container::OPEN, b'[') => {
                if min == 0 {
                    self.add(Way { state: container::EMPTY, ..way }, start);
                }
                if has_room {
                    self.begin_inside(&way, 1, item, start);
                }
            }
            (container::EMPTY, b']') => self.complete(way.stack, start),
            (container::AFTER, b']') if way.a >= min => self.complete(way.stack, start),
            (container::AFTER, b',') if has_room => {
                // As with strings.
                let most = if max == UNLIMITED { min.max(1) } else { max };
                self.begin_inside(&way, way.a.saturating_add(1).min(most), item, start);
            }
            _ => {}
        }
    }

    /// `a` is the member.
    fn step_object(&mut self, way: Way, byte: u8, properties: &[Property], start: usize) {
        let after = way.a as usize + 1;
        match (way.state, byte) {
            (container::OPEN, b'{') => {
                if properties.iter().all(|property| !property.required) {
                    self.add(Way { state: container::EMPTY, ..way }, start);
                }
                self.names(&way, properties, 0, start);
            }
            (container::EMPTY, b'}') => self.complete(way.stack, start),
            (container::AFTER, b'}') if properties.iter().skip(after).all(|property| !property.required) => {
                self.complete(way.stack, start);
            }
            (container::AFTER, b',') => self.names(&way, properties, after, start),
            (container::NAME, _) => {
                let Some(property) = properties.get(way.a as usize) else { return };
                let key = part(&self.grammar.bytes, &property.key);
                if key.get(way.b as usize) != Some(&byte) {
                    return;
                }
                if way.b as usize + 1 == key.len() {
                    self.begin_inside(&way, way.a, property.value, start);
                } else {
                    self.add(Way { b: way.b + 1, ..way }, start);
                }
            }
            _ => {}
        }
    }

    /// Adds the members that may come next, from number `first` on: up to one that must come.
    fn names(&mut self, way: &Way, properties: &[Property], first: usize, start: usize) {
        for (index, property) in (0..).zip(properties).skip(first) {
            let need = self.grammar.need(property.value);
            if need < NESTING_MAX && self.fits(need + 1, way.stack) {
                self.add(Way { state: container::NAME, a: index, b: 0, ..*way }, start);
            }
            if property.required {
                break;
            }
        }
    }

    fn step_map(&mut self, way: Way, byte: u8, value: RuleId, start: usize) {
        let has_values =
            self.grammar.need(value) < NESTING_MAX && self.fits(self.grammar.need(value) + 1, way.stack);
        match (way.state, byte) {
            (container::OPEN, b'{') => {
                self.add(Way { state: container::EMPTY, ..way }, start);
                if has_values {
                    self.add(Way { state: container::ANY_NAME, ..way }, start);
                }
            }
            (container::EMPTY | container::AFTER, b'}') => self.complete(way.stack, start),
            (container::AFTER, b',') if has_values => {
                self.add(Way { state: container::ANY_NAME, a: 0, ..way }, start);
            }
            (container::COLON, b':') => self.begin_inside(&way, 0, value, start),
            (state @ container::ANY_NAME.., _) => {
                let state = match string::step(state - container::ANY_NAME, byte) {
                    Some(string::Step::Inside(state)) => container::ANY_NAME + state,
                    Some(string::Step::Character) => container::ANY_NAME + string::BODY,
                    Some(string::Step::Closed) => container::COLON,
                    None => return,
                };
                self.add(Way { state, ..way }, start);
            }
            _ => {}
        }
    }
}
