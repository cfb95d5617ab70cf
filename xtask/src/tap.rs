//! What the conformance suite says on the normal world's UART: the Test Anything Protocol, one line a case.

use serde_json::{Value, json};
use std::fmt;

/// How a case went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The rule holds.
    Passed,
    /// It does not: what was seen.
    Failed(String),
    /// It could not be looked at: what is missing.
    Skipped(String),
}

/// One case's line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Its number in this boot.
    pub number: u32,
    /// `group: what must hold`.
    pub name: String,
    /// Where that is written.
    pub rule: String,
    /// How it went.
    pub verdict: Verdict,
}

/// A line of the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// So many cases follow.
    Plan(u32),
    /// One of them.
    Case(Case),
}

impl Line {
    /// Reads a line. `None` if it is something else.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(count) = text.strip_prefix("1..") {
            return count.parse().ok().map(Self::Plan);
        }
        let (well, rest) = match text.strip_prefix("not ok ") {
            Some(rest) => (false, rest),
            None => (true, text.strip_prefix("ok ")?),
        };
        let (number, rest) = rest.split_once(" - ")?;
        let (name, rest) = rest.split_once(" # ")?;
        let (verdict, rule) = match (well, rest.strip_prefix("SKIP ")) {
            (true, Some(rest)) => {
                let (why, rule) = rest.rsplit_once(" # ")?;
                (Verdict::Skipped(why.to_owned()), rule)
            }
            (true, None) => (Verdict::Passed, rest),
            (false, _) => {
                let (rule, what) = rest.split_once(" # ")?;
                (Verdict::Failed(what.to_owned()), rule)
            }
        };
        let number = number.parse().ok()?;
        Some(Self::Case(Case { number, name: name.to_owned(), rule: rule.to_owned(), verdict }))
    }
}

impl Case {
    /// Whether the rule does not hold.
    pub fn failed(&self) -> bool {
        matches!(self.verdict, Verdict::Failed(_))
    }

    /// The case's entry in a report.
    pub fn json(&self, boot: &str) -> Value {
        let (result, detail) = match &self.verdict {
            Verdict::Passed => ("pass", None),
            Verdict::Failed(what) => ("fail", Some(what)),
            Verdict::Skipped(why) => ("skip", Some(why)),
        };
        json!({
            "boot": boot,
            "number": self.number,
            "name": self.name,
            "rule": self.rule,
            "result": result,
            "detail": detail,
        })
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, name, rule, verdict } = self;
        match verdict {
            Verdict::Passed => write!(f, "ok {number} - {name} # {rule}"),
            Verdict::Failed(what) => write!(f, "not ok {number} - {name} # {rule} # {what}"),
            Verdict::Skipped(why) => write!(f, "ok {number} - {name} # SKIP {why} # {rule}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(text: &str) -> Case {
        match Line::parse(text) {
            Some(Line::Case(case)) => case,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn lines_are_read_with_their_rule_and_reason() {
        assert_eq!(Line::parse("1..200"), Some(Line::Plan(200)));
        let passed = case("ok 12 - smccc: an unknown call answers -1 # DEN0028 5.2");
        assert_eq!((passed.number, &*passed.name), (12, "smccc: an unknown call answers -1"));
        assert_eq!((&*passed.rule, &passed.verdict), ("DEN0028 5.2", &Verdict::Passed));
        let failed = case("not ok 3 - psci: x # DEN0022 5.3 # it answers # -1");
        assert_eq!(
            (&*failed.rule, failed.verdict),
            ("DEN0022 5.3", Verdict::Failed("it answers # -1".to_owned()))
        );
        let skipped = case("ok 4 - realm: y # SKIP no Realm world # DESIGN rule 2");
        assert_eq!(skipped.rule, "DESIGN rule 2");
        assert_eq!(skipped.verdict, Verdict::Skipped("no Realm world".to_owned()));
    }

    #[test]
    fn a_case_is_written_as_it_was_read() {
        for text in [
            "ok 12 - a: x # DEN0028 5.2",
            "not ok 3 - b: y # DEN0022 5.3 # -1",
            "ok 4 - c: z # SKIP no z # rule 2",
        ] {
            assert_eq!(case(text).to_string(), text);
        }
    }

    #[test]
    fn firmware_text_is_no_line_of_the_protocol() {
        for text in
            ["NOTICE:  BL31: ok", "TAP version 14", "ok", "ok 1", "ok x - y # z", "1..", "ok 1 - name"]
        {
            assert_eq!(Line::parse(text), None, "{text}");
        }
    }
}
