//! What follows from all rules together: which are possible, and which exclude each other.

use alloc::vec::Vec;

use super::ALTERNATIVES_MAX;
use super::json::error;
use super::rule::{Grammar, IMPOSSIBLE, NESTING_MAX, Property, Rule, RuleId, part};
use super::schema::{PARTS_MAX, push};
use crate::budget::Budget;
use crate::{Error, Result};

impl Grammar {
    /// Lists for each rule what it may be, through choices among choices.
    pub(super) fn flatten(&mut self, budget: &mut Budget) -> Result<()> {
        let grammar = self;
        let count = grammar.rules.len();
        let mut seen: Vec<RuleId> = budget.filled(0, count)?;
        let mut pending: Vec<RuleId> = Vec::new();
        grammar.starts = budget.reserve(count)?;
        // A rule's number plus one marks what was seen from it.
        for (rule, mark) in (0..count as RuleId).zip(1..) {
            let start = grammar.alternatives.len();
            push(&mut pending, rule, PARTS_MAX, "alternatives of the schema")?;
            while let Some(rule) = pending.pop() {
                let Some(seen) = seen.get_mut(usize::from(rule)).filter(|seen| **seen != mark) else {
                    continue;
                };
                *seen = mark;
                if let Some(Rule::Choice(links)) = grammar.rules.get(usize::from(rule)) {
                    for link in part(&grammar.links, links).iter().rev() {
                        push(&mut pending, *link, PARTS_MAX, "alternatives of the schema")?;
                    }
                } else {
                    push(&mut grammar.alternatives, rule, PARTS_MAX, "alternatives of the schema")?;
                }
            }
            let found = grammar.alternatives.len() - start;
            if found > ALTERNATIVES_MAX {
                let (count, limit) = (found as u64, ALTERNATIVES_MAX as u64);
                return Err(Error::TooMany { what: "alternatives for one value", count, limit });
            }
            grammar.starts.push(start as u32..grammar.alternatives.len() as u32);
        }
        Ok(())
    }

    /// Finds the least fixed point: at first nothing is possible.
    pub(super) fn find_needs(&mut self, budget: &mut Budget) -> Result<()> {
        let grammar = self;
        grammar.needs = budget.filled(IMPOSSIBLE, grammar.rules.len())?;
        // Two rounds settle one more level: a choice may come after the container that it is in.
        for _ in 0..2 * u16::from(NESTING_MAX) + 3 {
            let mut changed = false;
            for (index, rule) in grammar.rules.iter().enumerate() {
                let inside = |rule: RuleId| match grammar.need(rule) {
                    need if need < NESTING_MAX => need + 1,
                    _ => IMPOSSIBLE,
                };
                let need = match rule {
                    Rule::Never => IMPOSSIBLE,
                    // Through all links at once, whatever their order.
                    Rule::Choice(_) => {
                        let alternatives = grammar.alternatives(index as RuleId).iter();
                        alternatives.map(|rule| grammar.need(*rule)).min().unwrap_or(IMPOSSIBLE)
                    }
                    Rule::Array { item, min, .. } if *min > 0 => inside(*item),
                    Rule::Object(properties) => {
                        let required = part(&grammar.properties, properties).iter().filter(|p| p.required);
                        required.map(|property| inside(property.value)).max().unwrap_or(1)
                    }
                    Rule::Array { .. } | Rule::Map { .. } => 1,
                    Rule::Literals(_) | Rule::String { .. } | Rule::Integer { .. } | Rule::Number => 0,
                };
                if let Some(place) = grammar.needs.get_mut(index)
                    && *place != need
                {
                    *place = need;
                    changed = true;
                }
            }
            if !changed {
                break;
            }
        }
        Ok(())
    }

    /// Refuses branches of `oneOf` that one value might satisfy together.
    pub(super) fn check_exclusive(&self, rule: RuleId, offset: usize) -> Result<()> {
        let grammar = self;
        let Rule::Choice(links) = grammar.rule(rule) else { return Ok(()) };
        let branches = part(&grammar.links, links);
        for (index, first) in branches.iter().enumerate() {
            for second in branches.iter().skip(index + 1) {
                let firsts = grammar.alternatives(*first).iter();
                let overlap = firsts
                    .flat_map(|a| grammar.alternatives(*second).iter().map(move |b| (*a, *b)))
                    .any(|(a, b)| grammar.may_overlap(a, b, true));
                if overlap {
                    return Err(error(offset, "oneOf", "has branches that may overlap; use anyOf"));
                }
            }
        }
        Ok(())
    }

    /// Tells whether one value might satisfy both rules, which are no choices; `deep` looks at members.
    fn may_overlap(&self, a: RuleId, b: RuleId, deep: bool) -> bool {
        use Rule::*;
        let is_implied = |rule: RuleId| self.implied.get(usize::from(rule)) == Some(&true);
        match (self.rule(a), self.rule(b)) {
            _ if is_implied(a) || is_implied(b) => true,
            (Never, _) | (_, Never) => false,
            (Literals(a), Literals(b)) => {
                a.clone().any(|a| b.clone().any(|b| equal(self.literal(a), self.literal(b))))
            }
            (Literals(all), other) | (other, Literals(all)) => all.clone().any(|literal| {
                let first = self.literal(literal).first().copied().unwrap_or_default();
                match other {
                    String { .. } => first == b'"',
                    Integer { .. } | Number => first == b'-' || first.is_ascii_digit(),
                    Array { .. } => first == b'[',
                    _ => first == b'{',
                }
            }),
            (String { .. }, String { .. }) | (Array { .. }, Array { .. }) => true,
            (Integer { .. } | Number, Integer { .. } | Number) => true,
            (Object(a), Object(b)) if deep => {
                let required =
                    |range| part(&self.properties, range).iter().filter(|property| property.required);
                // A member that both must have, of values that are never the same.
                let tells_apart = |a: &Property, b: &Property| {
                    part(&self.bytes, &a.key) == part(&self.bytes, &b.key)
                        && !self.alternatives(a.value).iter().any(|a| {
                            self.alternatives(b.value).iter().any(|b| self.may_overlap(*a, *b, false))
                        })
                };
                !required(a).any(|a| required(b).any(|b| tells_apart(a, b)))
            }
            (Object(_) | Map { .. }, Object(_) | Map { .. }) => true,
            _ => false,
        }
    }
}

/// Tells whether two texts stand for the same value; of numbers with different texts that is assumed, and of containers.
fn equal(a: &[u8], b: &[u8]) -> bool {
    let kind = |text: &[u8]| match text.first().copied().unwrap_or_default() {
        b'-' | b'0'..=b'9' => b'0',
        first => first,
    };
    match (kind(a), kind(b)) {
        (first, second) if first != second => false,
        (b'0', _) => !(is_integer(a) && is_integer(b)) || a == b,
        (b'[' | b'{', _) => true,
        _ => a == b,
    }
}

fn is_integer(text: &[u8]) -> bool {
    text != b"-0" && text.iter().all(|byte| byte.is_ascii_digit() || *byte == b'-')
}
