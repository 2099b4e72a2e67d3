//! JSON schema to rules.
//!
//! Each place of the schema that describes a value becomes a rule; places that are still to be compiled wait in a list, so that
//! neither nesting nor references recurse. What a keyword asks for that is not understood is refused, never left out: the text
//! would be valid by our rules only.

use alloc::vec::Vec;
use core::ops::Range;

use super::json::{Index, Json, Kind, error, write_string};
use super::rule::{Grammar, NESTING_MAX, Property, Rule, RuleId, UNLIMITED, part};
use super::{ALTERNATIVES_MAX, SCHEMA_BYTES_MAX};
use crate::budget::Budget;
use crate::{Error, Result};

/// The most rules.
const RULES_MAX: usize = 8192;
/// The most links, alternatives and properties, each.
pub(super) const PARTS_MAX: usize = 1 << 16;
/// The largest integer unless the schema says otherwise: 16 digits.
const INTEGER_MAX: i64 = 9_999_999_999_999_999;
/// What a bound of an integer may be.
const BOUND_MAX: i64 = 1_000_000_000_000_000_000;

/// Keywords that say nothing about which values are valid, and those that only hold what references lead to.
const ANNOTATIONS: [&str; 15] = [
    "title",
    "description",
    "default",
    "examples",
    "$schema",
    "$id",
    "$comment",
    "$defs",
    "definitions",
    "deprecated",
    "readOnly",
    "writeOnly",
    "format",
    "contentEncoding",
    "contentMediaType",
];
/// Keywords that are understood wherever a type is described; each concerns values of its type only.
const TYPE_KEYWORDS: [&str; 13] = [
    "type",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
];
/// Keywords that stand alone, apart from annotations (and `type` beside the first two).
const ALONE: [&str; 6] = ["enum", "const", "anyOf", "oneOf", "allOf", "$ref"];
/// Known, and not supported.
const REFUSED: [&str; 19] = [
    "pattern",
    "multipleOf",
    "uniqueItems",
    "contains",
    "minContains",
    "maxContains",
    "prefixItems",
    "patternProperties",
    "propertyNames",
    "minProperties",
    "maxProperties",
    "dependentRequired",
    "dependentSchemas",
    "if",
    "then",
    "else",
    "not",
    "unevaluatedItems",
    "unevaluatedProperties",
];

struct Compiler<'t> {
    json: Json<'t>,
    grammar: Grammar,
    /// The rule of each value of the schema that has one.
    rule_of: Vec<Option<RuleId>>,
    /// Places to compile, and their rules.
    waiting: Vec<(Index, RuleId)>,
    /// Choices whose branches must not overlap, and where that is said.
    exclusive: Vec<(RuleId, usize)>,
    any: Option<RuleId>,
    /// Rules whose type is not said.
    implied: Vec<RuleId>,
    budget: Budget,
}

/// Types in the order in which a value without `type` is tried.
const TYPES: [&str; 7] = ["object", "array", "string", "integer", "number", "boolean", "null"];

/// Appends to a list that has at most `max` items.
pub(super) fn push<T>(list: &mut Vec<T>, item: T, max: usize, what: &'static str) -> Result<()> {
    if list.len() >= max {
        return Err(Error::TooMany { what, count: list.len() as u64 + 1, limit: max as u64 });
    }
    list.try_reserve(1).map_err(|_| Error::OutOfMemory { bytes: size_of::<T>() })?;
    list.push(item);
    Ok(())
}

/// Compiles `text`; `memory` bounds what reading it takes.
pub fn compile(text: &str, memory: usize) -> Result<Grammar> {
    if text.len() > SCHEMA_BYTES_MAX {
        let (count, limit) = (text.len() as u64, SCHEMA_BYTES_MAX as u64);
        return Err(Error::TooMany { what: "bytes of schema", count, limit });
    }
    let mut budget = Budget::new(memory);
    let json = Json::parse(text, &mut budget)?;
    let grammar = Grammar {
        rules: Vec::new(),
        links: Vec::new(),
        properties: Vec::new(),
        literals: Vec::new(),
        bytes: Vec::new(),
        starts: Vec::new(),
        alternatives: Vec::new(),
        needs: Vec::new(),
        implied: Vec::new(),
        root: 0,
    };
    let rule_of = budget.filled(None, text.len() / 2 + 1)?;
    let (waiting, exclusive) = (Vec::new(), Vec::new());
    let mut compiler =
        Compiler { json, grammar, rule_of, waiting, exclusive, any: None, implied: Vec::new(), budget };
    compiler.root()?;
    while let Some((index, rule)) = compiler.waiting.pop() {
        let compiled = compiler.schema(index)?;
        compiler.set(rule, compiled);
    }
    compiler.finish()?;
    Ok(compiler.grammar)
}

impl Compiler<'_> {
    fn root(&mut self) -> Result<()> {
        // As in llama.cpp, a schema without demands asks for an object.
        let is_empty = self.json.kind(0) == Some(&Kind::Object) && self.json.children(0).next().is_none();
        self.grammar.root = if is_empty {
            let value = self.any()?;
            self.add(Rule::Map { value })?
        } else {
            self.rule_for(0)?
        };
        Ok(())
    }

    fn add(&mut self, rule: Rule) -> Result<RuleId> {
        push(&mut self.grammar.rules, rule, RULES_MAX, "rules of the schema")?;
        Ok((self.grammar.rules.len() - 1) as RuleId)
    }

    fn set(&mut self, rule: RuleId, compiled: Rule) {
        if let Some(place) = self.grammar.rules.get_mut(usize::from(rule)) {
            *place = compiled;
        }
    }

    /// The rule of a place in the schema, which is compiled later if it was not yet.
    fn rule_for(&mut self, index: Index) -> Result<RuleId> {
        if let Some(rule) = self.rule_of.get(index).copied().flatten() {
            return Ok(rule);
        }
        let rule = self.add(Rule::Never)?;
        if let Some(place) = self.rule_of.get_mut(index) {
            *place = Some(rule);
        }
        push(&mut self.waiting, (index, rule), RULES_MAX, "rules of the schema")?;
        Ok(rule)
    }

    /// The rule of any value.
    fn any(&mut self) -> Result<RuleId> {
        if let Some(any) = self.any {
            return Ok(any);
        }
        let any = self.add(Rule::Never)?;
        self.any = Some(any);
        let mut rules = [any; 5];
        let words = self.literals(&[b"true", b"false", b"null"])?;
        let kinds = [
            Rule::Map { value: any },
            Rule::Array { item: any, min: 0, max: UNLIMITED },
            Rule::String { min: 0, max: UNLIMITED },
            Rule::Number,
            words,
        ];
        for (rule, kind) in rules.iter_mut().zip(kinds) {
            *rule = self.add(kind)?;
        }
        let choice = self.choice(&rules)?;
        self.set(any, choice);
        Ok(any)
    }

    fn choice(&mut self, rules: &[RuleId]) -> Result<Rule> {
        let start = self.grammar.links.len() as u32;
        for rule in rules {
            push(&mut self.grammar.links, *rule, PARTS_MAX, "alternatives of the schema")?;
        }
        Ok(Rule::Choice(start..self.grammar.links.len() as u32))
    }

    fn append(&mut self, write: impl FnOnce(&Json<'_>, &mut Vec<u8>) -> Result<()>) -> Result<Range<u32>> {
        let start = self.grammar.bytes.len() as u32;
        write(&self.json, &mut self.grammar.bytes)?;
        Ok(start..self.grammar.bytes.len() as u32)
    }

    fn literals(&mut self, texts: &[&[u8]]) -> Result<Rule> {
        let start = self.grammar.literals.len();
        for text in texts {
            let range = self.append(|_, out| {
                out.try_reserve(text.len()).map_err(|_| Error::OutOfMemory { bytes: text.len() })?;
                out.extend_from_slice(text);
                Ok(())
            })?;
            push(&mut self.grammar.literals, range, PARTS_MAX, "values of the schema")?;
        }
        self.sorted_literals(start)
    }

    /// Makes a rule of the literals from `start` on.
    fn sorted_literals(&mut self, start: usize) -> Result<Rule> {
        let bytes = &self.grammar.bytes;
        let literals = self.grammar.literals.get_mut(start..).unwrap_or_default();
        literals.sort_unstable_by(|a, b| part(bytes, a).cmp(part(bytes, b)));
        let mut kept = start;
        for index in start..self.grammar.literals.len() {
            let [last, this] = [kept.wrapping_sub(1), index].map(|index| self.grammar.literals.get(index));
            let is_new = kept == start
                || last.map(|last| part(&self.grammar.bytes, last))
                    != this.map(|this| part(&self.grammar.bytes, this));
            if is_new {
                self.grammar.literals.swap(kept, index);
                kept += 1;
            }
        }
        self.grammar.literals.truncate(kept);
        Ok(if kept == start { Rule::Never } else { Rule::Literals(start as u32..kept as u32) })
    }

    /// Compiles one place.
    fn schema(&mut self, index: Index) -> Result<Rule> {
        let offset = self.json.offset(index);
        match self.json.kind(index) {
            Some(Kind::Bool(true)) => {
                let any = self.any()?;
                return self.choice(&[any]);
            }
            Some(Kind::Bool(false)) => return Ok(Rule::Never),
            Some(Kind::Object) => {}
            _ => return Err(error(offset, "a schema", "must be an object, true or false")),
        }
        let alone = self.check_keywords(index)?;
        let Some((keyword, value)) = alone else { return self.typed(index) };
        let at = self.json.offset(value);
        match keyword {
            "const" => self.constants(index, &[value]),
            "$ref" => {
                let target = self.resolve(value)?;
                let rule = self.rule_for(target)?;
                self.choice(&[rule])
            }
            "enum" => {
                if self.json.kind(value) != Some(&Kind::Array) {
                    return Err(error(at, "enum", "must be an array"));
                }
                let values: Vec<Index> = self.collect(value)?;
                self.constants(index, &values)
            }
            _ => {
                if self.json.kind(value) != Some(&Kind::Array) {
                    return Err(error(at, "this keyword", "must be an array of schemas"));
                }
                let branches = self.collect(value)?;
                if branches.is_empty() || keyword == "allOf" && branches.len() > 1 {
                    let fault =
                        if branches.is_empty() { "is empty" } else { "of several schemas is not supported" };
                    return Err(error(at, if keyword == "allOf" { "allOf" } else { "this keyword" }, fault));
                }
                let mut rules = self.budget.reserve(branches.len())?;
                for branch in branches {
                    rules.push(self.rule_for(branch)?);
                }
                let choice = self.choice(&rules)?;
                if keyword != "oneOf" || rules.len() < 2 {
                    return Ok(choice);
                }
                let rule = self.add(choice)?;
                push(&mut self.exclusive, (rule, at), RULES_MAX, "rules of the schema")?;
                self.choice(&[rule])
            }
        }
    }

    /// The children of a container.
    fn collect(&mut self, index: Index) -> Result<Vec<Index>> {
        let mut list = self.budget.reserve(self.json.children(index).count())?;
        list.extend(self.json.children(index));
        Ok(list)
    }

    /// Refuses keywords that are not understood, and those that do not go together. Returns the one that stands alone.
    fn check_keywords(&self, index: Index) -> Result<Option<(&'static str, Index)>> {
        let (mut alone, mut ty, mut other) = (None, None, None);
        for (name, value) in self.json.members(index) {
            let offset = self.json.offset(value);
            if let Some(keyword) = ALONE.iter().find(|keyword| **keyword == name) {
                if alone.is_some() {
                    return Err(error(offset, keyword, "beside another keyword is not supported"));
                }
                alone = Some((*keyword, value));
            } else if let Some(keyword) = REFUSED.iter().find(|keyword| **keyword == name) {
                return Err(error(offset, keyword, "is not supported"));
            } else if name == "type" {
                ty = Some(offset);
            } else if TYPE_KEYWORDS.contains(&name) {
                other = Some(offset);
            } else if !ANNOTATIONS.contains(&name) && !name.starts_with("x-") {
                return Err(error(offset, "the keyword before this", "is not known"));
            }
        }
        if let Some((keyword, _)) = alone {
            let may_have_type = matches!(keyword, "enum" | "const");
            if let Some(offset) = other.or(ty.filter(|_| !may_have_type)) {
                return Err(error(offset, keyword, "beside the keyword before this is not supported"));
            }
        }
        Ok(alone)
    }

    /// The place that a reference leads to.
    fn resolve(&self, reference: Index) -> Result<Index> {
        let offset = self.json.offset(reference);
        let text = self.json.string_at(reference).ok_or(error(offset, "$ref", "must be a string"))?;
        let path = text.strip_prefix('#').ok_or(error(offset, "$ref", "must begin with #"))?;
        let mut at = 0;
        for name in path.split('/').skip(1) {
            // Names with ~0, ~1 or %XX in them do not occur in practice.
            at = self.json.member(at, name).ok_or(error(offset, "$ref", "leads to nothing"))?;
        }
        if path.is_empty() || path.starts_with('/') {
            Ok(at)
        } else {
            Err(error(offset, "$ref", "is malformed"))
        }
    }

    /// Values that are spelled out, as far as they have the type asked for.
    fn constants(&mut self, schema: Index, values: &[Index]) -> Result<Rule> {
        let start = self.grammar.literals.len();
        let types = self.types(schema)?;
        for value in values {
            let matches = |ty: &&str| match self.json.kind(*value) {
                Some(Kind::Null) => *ty == "null",
                Some(Kind::Bool(_)) => *ty == "boolean",
                Some(Kind::String(_)) => *ty == "string",
                Some(Kind::Array) => *ty == "array",
                Some(Kind::Object) => *ty == "object",
                Some(Kind::Number(_)) => {
                    let text = self.json.number_at(*value).unwrap_or_default();
                    *ty == "number" || *ty == "integer" && !text.contains(['.', 'e', 'E'])
                }
                None => false,
            };
            if types.as_ref().is_none_or(|types| types.iter().any(matches)) {
                let range = self.append(|json, out| json.write(*value, out))?;
                push(&mut self.grammar.literals, range, PARTS_MAX, "values of the schema")?;
            }
        }
        self.sorted_literals(start)
    }

    /// The types that `type` names; none if it is absent.
    fn types(&self, schema: Index) -> Result<Option<Vec<&'static str>>> {
        let Some(value) = self.json.member(schema, "type") else { return Ok(None) };
        let known = |index: Index| {
            let name = self.json.string_at(index);
            let known = TYPES.iter().find(|ty| Some(**ty) == name).copied();
            known.ok_or(error(self.json.offset(index), "this type", "is not known"))
        };
        let mut types = Budget::new(usize::MAX).reserve(self.json.children(value).count().max(1))?;
        if self.json.kind(value) == Some(&Kind::Array) {
            for index in self.json.children(value) {
                types.push(known(index)?);
            }
        } else {
            types.push(known(value)?);
        }
        Ok(Some(types))
    }

    /// A schema that describes types.
    fn typed(&mut self, schema: Index) -> Result<Rule> {
        let has = |names: &[&str]| names.iter().any(|name| self.json.member(schema, name).is_some());
        // Without `type` keywords say nothing about values of other types, so those of one type may be asked for.
        let implied = if has(&["properties", "required", "additionalProperties"]) {
            Some("object")
        } else if has(&["items", "minItems", "maxItems"]) {
            Some("array")
        } else if has(&["minLength", "maxLength"]) {
            Some("string")
        } else if has(&["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]) {
            Some("integer")
        } else {
            None
        };
        let types = match (self.types(schema)?, implied) {
            (Some(types), _) => types,
            (None, Some(ty)) => {
                if let Some(rule) = self.rule_of.get(schema).copied().flatten() {
                    push(&mut self.implied, rule, RULES_MAX, "rules of the schema")?;
                }
                Vec::from([ty])
            }
            (None, None) => {
                let any = self.any()?;
                return self.choice(&[any]);
            }
        };
        if let [ty] = types[..] {
            return self.of_type(schema, ty);
        }
        let mut rules = self.budget.reserve(types.len())?;
        for ty in types {
            let rule = self.of_type(schema, ty)?;
            rules.push(self.add(rule)?);
        }
        self.choice(&rules)
    }

    fn of_type(&mut self, schema: Index, ty: &str) -> Result<Rule> {
        Ok(match ty {
            "object" => self.object(schema)?,
            "array" => {
                let item = match self.json.member(schema, "items") {
                    Some(items) => self.rule_for(items)?,
                    None => self.any()?,
                };
                let (min, max) = self.counts(schema, "minItems", "maxItems")?;
                if min > max { Rule::Never } else { Rule::Array { item, min, max } }
            }
            "string" => {
                let (min, max) = self.counts(schema, "minLength", "maxLength")?;
                if min > max { Rule::Never } else { Rule::String { min, max } }
            }
            "integer" => {
                let [min, max] = self.bounds(schema)?;
                if min > max { Rule::Never } else { Rule::Integer { min, max } }
            }
            "number" => {
                let bounds = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"];
                if let Some(bound) = bounds.iter().find_map(|name| self.json.member(schema, name)) {
                    let offset = self.json.offset(bound);
                    return Err(error(offset, "a bound", "is supported for integers only"));
                }
                Rule::Number
            }
            "boolean" => self.literals(&[b"false", b"true"])?,
            _ => self.literals(&[b"null"])?,
        })
    }

    fn counts(&self, schema: Index, min: &str, max: &str) -> Result<(u32, u32)> {
        let count = |name, default| match self.json.member(schema, name) {
            None => Ok(default),
            Some(index) => {
                let text = self.json.number_at(index);
                let value = text.and_then(|text| text.parse().ok()).filter(|value| *value < UNLIMITED);
                value.ok_or(error(self.json.offset(index), "this count", "is not a whole number in range"))
            }
        };
        Ok((count(min, 0)?, count(max, UNLIMITED)?))
    }

    fn bounds(&self, schema: Index) -> Result<[i64; 2]> {
        let bound = |name| match self.json.member(schema, name) {
            None => Ok(None),
            Some(index) => {
                let value: Option<i64> = self.json.number_at(index).and_then(|text| text.parse().ok());
                let value = value.filter(|value| (-BOUND_MAX..=BOUND_MAX).contains(value));
                let fault = "is not a whole number in range";
                value.map(Some).ok_or(error(self.json.offset(index), "this bound", fault))
            }
        };
        let above = bound("exclusiveMinimum")?.map(|value| value + 1);
        let below = bound("exclusiveMaximum")?.map(|value| value - 1);
        let min = bound("minimum")?.max(above);
        let max = [bound("maximum")?, below].into_iter().flatten().min();
        // A bound beyond the default moves the other end along.
        let default_max = INTEGER_MAX.max(min.unwrap_or(0).saturating_add(INTEGER_MAX));
        let default_min = (-INTEGER_MAX).min(max.unwrap_or(0).saturating_sub(INTEGER_MAX));
        Ok([min.unwrap_or(default_min), max.unwrap_or(default_max)])
    }

    fn object(&mut self, schema: Index) -> Result<Rule> {
        let object = |this: &Self, name: &'static str| {
            let value = this.json.member(schema, name);
            match value.filter(|value| this.json.kind(*value) != Some(&Kind::Object)) {
                Some(value) if name == "properties" => {
                    Err(error(this.json.offset(value), "properties", "must be an object"))
                }
                _ => Ok(value),
            }
        };
        let properties = object(self, "properties")?;
        let additional = self.json.member(schema, "additionalProperties");
        let required = self.json.member(schema, "required");
        let named = properties.map_or(0, |properties| self.json.children(properties).count() / 2);
        let mut missing = Vec::new();
        if let Some(required) = required {
            if self.json.kind(required) != Some(&Kind::Array) {
                return Err(error(self.json.offset(required), "required", "must be an array"));
            }
            for name in self.collect(required)? {
                let text = self.json.string_at(name);
                let text =
                    text.ok_or(error(self.json.offset(name), "a required name", "must be a string"))?;
                let is_named = properties.is_some_and(|all| self.json.member(all, text).is_some());
                let is_second = missing.iter().any(|other| self.json.string_at(*other) == Some(text));
                if !is_named && !is_second {
                    push(&mut missing, name, PARTS_MAX, "properties of the schema")?;
                }
            }
        }
        if named == 0 && missing.is_empty() {
            let is_closed = additional.is_some_and(|value| self.json.kind(value) == Some(&Kind::Bool(false)));
            // `properties` without any, and nothing else said, is any object.
            if is_closed {
                let start = self.grammar.properties.len() as u32;
                return Ok(Rule::Object(start..start));
            }
            let value = match additional {
                Some(additional) => self.rule_for(additional)?,
                None => self.any()?,
            };
            return Ok(Rule::Map { value });
        }
        // Members that are not named are never written; that satisfies whatever is said about them, unless they are required.
        let start = self.grammar.properties.len();
        for name in properties.map_or(Ok(Vec::new()), |properties| self.collect(properties))?.chunks_exact(2)
        {
            let [name, schema] = *name else { continue };
            let is_required = required.is_some_and(|required| {
                self.json
                    .children(required)
                    .any(|other| self.json.string_at(other) == self.json.string_at(name))
            });
            let value = self.rule_for(schema)?;
            self.property(name, value, is_required)?;
        }
        for name in missing {
            let value = match additional {
                Some(additional) => self.rule_for(additional)?,
                None => self.any()?,
            };
            self.property(name, value, true)?;
        }
        let end = self.grammar.properties.len();
        let all = self.grammar.properties.get(start..end).unwrap_or_default();
        let longest = all.split(|property| property.required).map(<[Property]>::len).max().unwrap_or(0);
        if longest >= ALTERNATIVES_MAX {
            let (count, limit) = (longest as u64, ALTERNATIVES_MAX as u64 - 1);
            return Err(Error::TooMany { what: "optional properties in a row", count, limit });
        }
        Ok(Rule::Object(start as u32..end as u32))
    }

    fn property(&mut self, name: Index, value: RuleId, required: bool) -> Result<()> {
        let key = self.append(|json, out| {
            write_string(json.string_at(name).unwrap_or_default(), out)?;
            out.try_reserve(1).map_err(|_| Error::OutOfMemory { bytes: 1 })?;
            out.push(b':');
            Ok(())
        })?;
        let property = Property { key, value, required };
        push(&mut self.grammar.properties, property, PARTS_MAX, "properties of the schema")
    }

    /// Resolves choices, and finds out what each rule needs.
    fn finish(&mut self) -> Result<()> {
        self.grammar.flatten(&mut self.budget)?;
        self.grammar.find_needs(&mut self.budget)?;
        let grammar = &self.grammar;
        if grammar.need(grammar.root) > NESTING_MAX {
            return Err(error(0, "the schema", "has no valid value that is nested within the limit"));
        }
        let mut implied = self.budget.filled(false, grammar.rules.len())?;
        for rule in &self.implied {
            if let Some(implied) = implied.get_mut(usize::from(*rule)) {
                *implied = true;
            }
        }
        self.grammar.implied = implied;
        let grammar = &self.grammar;
        for (rule, offset) in &self.exclusive {
            grammar.check_exclusive(*rule, *offset)?;
        }
        Ok(())
    }
}
