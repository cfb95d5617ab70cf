//! Which cases of the conformance suite can fail: by which defects each was seen to.

use crate::tap::{Case, Verdict};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// A case of a boot without a defect.
struct Sound {
    name: String,
    passed: bool,
}

/// Cases, and the defects that they noticed.
#[derive(Default)]
pub struct Coverage {
    /// What each boot told without a defect, in its order.
    boots: BTreeMap<String, Vec<Sound>>,
    /// Names of defects, by case.
    seen: BTreeMap<String, BTreeSet<String>>,
}

impl Coverage {
    /// Notes all cases of a boot without a defect.
    pub fn sound(&mut self, boot: String, cases: &[Case]) {
        let sound = |case: &Case| Sound { name: case.name.clone(), passed: case.verdict == Verdict::Passed };
        self.boots.insert(boot, cases.iter().map(sound).collect());
    }

    /// Notes what a boot told with a defect, of the cases whose names contain one of the words. Answers the cases that failed: those
    /// that say so, and the one in which the boot ended. Those behind it say nothing.
    pub fn broken(&mut self, boot: &str, defect: &str, words: &[String], cases: &[Case]) -> Vec<String> {
        let mut failed: Vec<String> = cases.iter().filter(|c| c.failed()).map(|c| c.name.clone()).collect();
        if !cases.is_empty() {
            let planned = self.boots.get(boot).into_iter().flatten();
            let mut planned =
                planned.filter(|case| words.iter().any(|w| w == "all" || case.name.contains(w)));
            failed.extend(planned.nth(cases.len()).map(|case| case.name.clone()));
        }
        for case in &failed {
            self.seen.entry(case.clone()).or_default().insert(defect.to_owned());
        }
        failed
    }

    /// Names of the cases that pass in some boot without a defect.
    fn passing(&self) -> BTreeSet<&str> {
        let passed = self.boots.values().flatten().filter(|case| case.passed);
        passed.map(|case| &*case.name).collect()
    }

    /// A table: group, cases, how many of them were seen to fail.
    pub fn table(&self) -> String {
        let mut groups = BTreeMap::<&str, (usize, usize)>::new();
        let cases = self.passing();
        for case in &cases {
            let group = case.split(':').next().unwrap_or_default();
            let (all, seen) = groups.entry(group).or_default();
            *all += 1;
            *seen += usize::from(self.seen.contains_key(*case));
        }
        let mut text = "| group | cases | seen to fail |\n|---|---|---|\n".to_owned();
        for (group, (all, seen)) in &groups {
            text += &format!("| `{group}` | {all} | {seen} |\n");
        }
        let seen: usize = groups.values().map(|(_, seen)| seen).sum();
        format!("{text}{seen} of {} cases seen to fail\n", cases.len())
    }

    /// Cases that were never seen to fail, a line each.
    pub fn never(&self) -> String {
        let never = self.passing().into_iter().filter(|case| !self.seen.contains_key(*case));
        never.map(|case| format!("never seen to fail: {case}\n")).collect()
    }

    /// Each case and the defects that it noticed.
    pub fn json(&self) -> Value {
        let none = BTreeSet::new();
        self.passing().into_iter().map(|case| (case, json!(self.seen.get(case).unwrap_or(&none)))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(number: u32, name: &str, verdict: Verdict) -> Case {
        Case { number, name: name.to_owned(), rule: "r".to_owned(), verdict }
    }

    fn coverage() -> Coverage {
        let mut coverage = Coverage::default();
        let skipped = Verdict::Skipped("none".to_owned());
        let cases =
            [case(1, "a: x", Verdict::Passed), case(2, "a: y", skipped), case(3, "b: z", Verdict::Passed)];
        coverage.sound("boot".to_owned(), &cases);
        coverage
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn a_case_that_says_so_has_failed() {
        let mut coverage = coverage();
        let told = [case(1, "b: z", Verdict::Failed("w".to_owned()))];
        assert_eq!(coverage.broken("boot", "d", &words(&["b:"]), &told), ["b: z"]);
        assert!(
            coverage.table().ends_with("| `b` | 1 | 1 |\n1 of 2 cases seen to fail\n"),
            "{}",
            coverage.table()
        );
        assert_eq!(coverage.never(), "never seen to fail: a: x\n");
        assert_eq!(coverage.json(), json!({"a: x": [], "b: z": ["d"]}));
    }

    #[test]
    fn of_a_boot_that_ends_early_the_case_in_which_it_ended_has_failed() {
        let mut coverage = coverage();
        let told = [case(1, "a: x", Verdict::Passed)];
        assert_eq!(coverage.broken("boot", "d", &words(&["all"]), &told), ["a: y"]);
        assert_eq!(coverage.broken("boot", "d", &words(&["b:"]), &told), [""; 0], "all were told");
        assert_eq!(coverage.broken("boot", "d", &words(&["all"]), &[]), [""; 0], "no case was begun");
    }
}
