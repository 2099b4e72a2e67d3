//! `cargo xtask attack`: every attack with its defence on (blocked) and off (succeeds).
//!
//! The attacks are tests of six suites: for each kind of machine one boots the shipped hypervisor and one an image with fault
//! knobs, and two end the machine. The S-EL2 deployment has two more. `tests/attacks.toml` describes them.

use std::fs;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cli::{AttackArgs, DeploymentName};
use crate::failure::{Code, Failure};
use crate::paths::Paths;
use crate::setup;
use crate::test::suite::{self, Suite};
use crate::test::verdict::Verdicts;

/// The suites, in the order in which they run; those of worlds are the S-EL2 deployment's alone.
const SUITES: [&str; 8] = [
    "attack",
    "attack-dma",
    "worlds",
    "reset",
    "attack-without",
    "attack-dma-without",
    "worlds-without",
    "reset-knobs",
];

/// One attack as `tests/attacks.toml` describes it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Attack {
    /// Name.
    name: String,
    /// Invariant of the threat model.
    invariant: String,
    /// Fault knob of what blocks it.
    defence: String,
    /// What it tries.
    what: String,
}

impl Attack {
    /// The test that shows that it succeeds without its defence.
    fn without(&self) -> String {
        format!("{}/without", self.name)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Attacks {
    attack: Vec<Attack>,
}

/// What came of one attack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct AttackResult {
    name: String,
    invariant: String,
    /// Whether it was blocked.
    blocked: bool,
    /// Whether it succeeds without its defence; null: not tried.
    succeeds_without: Option<bool>,
    /// The defence.
    defence: String,
    /// Where there is a second one that cannot be turned off, there is no test without the first.
    #[serde(skip)]
    untried: bool,
}

/// The object of `--json`.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Report {
    attempts: usize,
    blocked: usize,
    attacks: Vec<AttackResult>,
}

/// Runs the attacks.
pub fn main(paths: &Paths, args: &AttackArgs) -> Result<()> {
    let mut attacks = selected(load(paths)?, args)?;
    let mut suites = Suite::load_all(paths)?;
    if args.deployment == DeploymentName::SEl2 {
        suites = suites.into_iter().filter_map(Suite::secure_as_el2).collect();
    }
    suites.retain(|suite| SUITES.contains(&suite.name.as_str()));
    // Some are of one deployment, or need what the emulator lacks at S-EL1.
    let exists = |name: &String| suites.iter().any(|suite| suite.tests.contains(name));
    attacks.retain(|attack| exists(&attack.name) && (args.without.is_none() || exists(&attack.without())));
    let tried: Vec<bool> = attacks.iter().map(|attack| exists(&attack.without())).collect();
    if attacks.is_empty() {
        let what = "this deployment has no such attack";
        return Err(Failure::usage(what, "name the other one with --deployment"));
    }
    let setup = setup::ensure(paths)?;
    let mut verdicts = Verdicts::printed(args.json);
    for name in SUITES {
        let Some(mut suite) = suites.iter().find(|suite| suite.name == name).cloned() else { continue };
        let wanted = |test: &String| {
            attacks
                .iter()
                .any(|attack| (args.without.is_none() && *test == attack.name) || *test == attack.without())
        };
        suite.tests.retain(wanted);
        suite::run(paths, &setup, &suite, "", &mut verdicts)?;
    }
    let mut report = report(&attacks, &verdicts, args.without.is_some());
    report.attacks.iter_mut().zip(tried).for_each(|(result, tried)| result.untried = !tried);
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report, &attacks);
    }
    judge(&report, args.without.is_some())
}

fn load(paths: &Paths) -> Result<Vec<Attack>> {
    let path = paths.at("tests/attacks.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let attacks: Attacks = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
    Ok(attacks.attack)
}

fn selected(mut attacks: Vec<Attack>, args: &AttackArgs) -> Result<Vec<Attack>> {
    let names = |pick: fn(&Attack) -> &str| {
        let mut names: Vec<&str> = attacks.iter().map(pick).collect();
        names.sort_unstable();
        names.dedup();
        format!("use one of {}", names.join(", "))
    };
    let no_name = names(|attack| &attack.name);
    let no_defence = names(|attack| &attack.defence);
    if let Some(name) = &args.name {
        attacks.retain(|attack| attack.name == *name);
        if attacks.is_empty() {
            return Err(Failure::usage(format!("there is no attack `{name}`"), no_name));
        }
    }
    if let Some(defence) = &args.without {
        attacks.retain(|attack| attack.defence == *defence);
        if attacks.is_empty() {
            let which = if args.name.is_some() { "this attack" } else { "any attack" };
            return Err(Failure::usage(format!("`{defence}` does not block {which}"), no_defence));
        }
    }
    Ok(attacks)
}

fn report(attacks: &[Attack], verdicts: &Verdicts, without: bool) -> Report {
    let passed = |name: &str| SUITES.iter().find_map(|suite| verdicts.passed(suite, name));
    let attacks: Vec<AttackResult> = attacks
        .iter()
        .map(|attack| {
            let succeeds_without = passed(&attack.without());
            let blocked = match without {
                // With the defence left out on purpose it counts as blocked when it did not succeed.
                true => succeeds_without == Some(false),
                false => passed(&attack.name) == Some(true),
            };
            AttackResult {
                name: attack.name.clone(),
                invariant: attack.invariant.clone(),
                blocked,
                succeeds_without,
                defence: attack.defence.clone(),
                untried: false,
            }
        })
        .collect();
    Report {
        attempts: attacks.len(),
        blocked: attacks.iter().filter(|attack| attack.blocked).count(),
        attacks,
    }
}

fn print(report: &Report, attacks: &[Attack]) {
    println!();
    for (result, attack) in report.attacks.iter().zip(attacks) {
        println!(
            "{:<11} {:<28} {:<4} {}; {} {}",
            if result.blocked { "blocked" } else { "NOT BLOCKED" },
            result.name,
            result.invariant,
            attack.what,
            match result.succeeds_without {
                Some(true) => "succeeds without",
                _ if result.untried => "here not only stopped by",
                _ => "not shown to succeed without",
            },
            result.defence,
        );
    }
    println!("{} attempts, {} blocked", report.attempts, report.blocked);
}

fn judge(report: &Report, without: bool) -> Result<()> {
    let failure = |what: String| {
        Err(Failure::new(Code::Failed, what, "the hypervisor or the suite", "read the verdicts above"))
    };
    let silent = report
        .attacks
        .iter()
        .filter(|attack| !attack.untried && attack.succeeds_without != Some(true))
        .count();
    if !without && report.blocked != report.attempts {
        return failure(format!(
            "{} of {} attacks were not blocked",
            report.attempts - report.blocked,
            report.attempts
        ));
    }
    if silent > 0 {
        return failure(format!("{silent} attacks do not succeed without their defence: they prove nothing"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::verdict::Outcome;

    #[test]
    fn every_attack_is_a_test_with_and_without_its_defence() {
        let paths = Paths::discover().unwrap();
        let suites = Suite::load_all(&paths).unwrap();
        let attacks = load(&paths).unwrap();
        let is_attack =
            |test: &String| attacks.iter().any(|attack| *test == attack.name || *test == attack.without());
        // Those of worlds have tests that are none.
        let worlds = |suite: &&Suite| suite.name.starts_with("s-el2-worlds");
        let tests: Vec<&String> = suites
            .iter()
            .filter(|suite| SUITES.contains(&suite.name.as_str()))
            .flat_map(|suite| &suite.tests)
            .chain(suites.iter().filter(worlds).flat_map(|suite| &suite.tests).filter(|test| is_attack(test)))
            .collect();
        assert!(attacks.len() >= 15);
        for attack in &attacks {
            assert!(tests.contains(&&attack.name) && tests.contains(&&attack.without()), "{}", attack.name);
            assert!(!attack.what.is_empty() && attack.invariant.starts_with('I'));
        }
        assert_eq!(tests.len(), 2 * attacks.len());
    }

    #[test]
    fn names_and_defences_select() {
        let attacks = || load(&Paths::discover().unwrap()).unwrap();
        let args = |name: Option<&str>, without: Option<&str>| AttackArgs {
            name: name.map(str::to_owned),
            without: without.map(str::to_owned),
            ..AttackArgs::default()
        };
        assert_eq!(selected(attacks(), &args(Some("give-twice"), None)).unwrap().len(), 1);
        assert!(selected(attacks(), &args(None, Some("SkipHostUnmap"))).unwrap().len() > 3);
        assert!(selected(attacks(), &args(Some("no"), None)).is_err());
        assert!(selected(attacks(), &args(Some("give-twice"), Some("SkipHostUnmap"))).is_err());
    }

    #[test]
    fn reports_count_what_was_blocked() {
        let attacks: Vec<Attack> = load(&Paths::discover().unwrap()).unwrap().into_iter().take(2).collect();
        let mut verdicts = Verdicts::printed(true);
        verdicts.add("attack", &attacks[0].name, Outcome::Passed, 0.0);
        verdicts.add("attack-without", &attacks[0].without(), Outcome::Passed, 0.0);
        verdicts.add("attack", &attacks[1].name, Outcome::Failed(String::new()), 0.0);
        let found = report(&attacks, &verdicts, false);
        assert_eq!((found.attempts, found.blocked), (2, 1));
        assert_eq!(found.attacks[0].succeeds_without, Some(true));
        assert_eq!(found.attacks[1].succeeds_without, None);
        assert!(judge(&found, false).is_err());
        let found = report(&attacks[..1], &verdicts, true);
        assert!(!found.attacks[0].blocked && judge(&found, true).is_ok());
        let json = serde_json::to_value(&found).unwrap();
        for key in ["name", "invariant", "blocked", "succeeds_without"] {
            assert!(json["attacks"][0].get(key).is_some(), "{key}");
        }
    }
}
