//! What a run says about itself: `--json`, and whether it went well.

use crate::tap::{Case, Line};
use flexserve_client::job::{Attack, Done};
use serde_json::{Value, json};

/// All that one run told.
#[derive(Debug, Default)]
pub struct Report {
    /// The answer.
    pub text: String,
    /// The figures, once the answer is complete.
    pub done: Option<Done>,
    /// Attacks in their order.
    pub attacks: Vec<Attack>,
    /// Faults of partitions as the SPMC logged them, in their order.
    pub partition_faults: Vec<Fault>,
    /// System tests: name and what went wrong.
    pub tests: Vec<(String, Option<String>)>,
    /// Figures that the payload measured, by name.
    pub figures: Vec<(String, u64)>,
    /// Cases of the conformance suite, and how many it meant to run.
    pub cases: Vec<Case>,
    /// See `cases`.
    pub planned: u32,
    /// What the payload could not go on without.
    pub error: Option<String>,
    /// The first panic of a secure world.
    pub panic: Option<String>,
}

/// A partition's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Exception syndrome.
    pub esr: u64,
    /// Fault address.
    pub far: u64,
}

impl Fault {
    /// Reads `partition 0x.... aborted: esr=0x................ far=0x................ elr=0x................`.
    pub fn parse(line: &str) -> Option<Self> {
        let number = |name: &str| {
            let (_, rest) = line.split_once(name)?;
            let digits = rest.strip_prefix("=0x")?;
            let end = digits.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(digits.len());
            u64::from_str_radix(&digits[..end], 16).ok()
        };
        if !line.contains("aborted") {
            return None;
        }
        Some(Self { esr: number("esr")?, far: number("far")? })
    }
}

/// Whether a partition's access faulted, as opposed to an interface that refused.
fn is_partition_fault(attack: &Attack) -> bool {
    let by_access = ["read ", "write ", "execute "].iter().any(|verb| attack.name.starts_with(verb));
    attack.world == "S-EL0" && attack.faulted && by_access
}

impl Report {
    /// Takes a line of the normal world's UART, if it is one of the conformance suite's.
    pub fn tap(&mut self, text: &str) {
        match Line::parse(text) {
            Some(Line::Plan(count)) => self.planned += count,
            Some(Line::Case(case)) => self.cases.push(case),
            None => {}
        }
    }

    /// Cases of the conformance suite that were planned and not told.
    pub fn untold(&self) -> Option<String> {
        let told = self.cases.len();
        let behind = self.cases.last().map_or("the start", |case| &case.name);
        (told < self.planned as usize)
            .then(|| format!("{told} of {} cases told; nothing after {behind:?}", self.planned))
    }

    /// Gives the attacks from S-EL0 the syndrome that the SPMC logged, in the order in which both came. Attacks that an
    /// interface refused, instead of a fault, logged none.
    fn attacks_with_syndromes(&self) -> Vec<Attack> {
        let mut attacks = self.attacks.clone();
        for (attack, fault) in
            attacks.iter_mut().filter(|a| is_partition_fault(a)).zip(&self.partition_faults)
        {
            (attack.esr, attack.far) = (fault.esr, fault.far);
        }
        attacks
    }

    /// What is wrong with the run; empty if it went well.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        faults.extend(self.panic.as_ref().map(|p| format!("a secure world panicked: {p}")));
        faults.extend(self.error.clone());
        if let Some(done) = &self.done {
            if done.granules_nonzero_after_recall != 0 {
                let count = done.granules_nonzero_after_recall;
                faults.push(format!("{count} granules were not zero when they came back"));
            }
            if done.granules_recalled != done.granules_lent {
                let (lent, recalled) = (done.granules_lent, done.granules_recalled);
                faults.push(format!("{lent} granules were lent, but {recalled} recalled"));
            }
        }
        let claimed = self.attacks.iter().filter(|a| is_partition_fault(a)).count();
        let logged = self.partition_faults.len();
        if claimed > logged {
            faults.push(format!(
                "{claimed} accesses from S-EL0 are said to have faulted, the SPMC logged {logged}"
            ));
        }
        for attack in self.attacks.iter().filter(|a| !a.faulted) {
            faults.push(format!("{} succeeded to {} on core {}", attack.world, attack.name, attack.core));
        }
        faults
    }

    /// The object that `--json` writes.
    pub fn json(&self) -> Value {
        let done = self.done.clone().unwrap_or_default();
        // The first token is not part of the decode time.
        let decoded = done.output_tokens.saturating_sub(1);
        let tokens_per_s =
            if done.decode_ns == 0 { 0.0 } else { decoded as f64 * 1e9 / done.decode_ns as f64 };
        let attacks: Vec<Value> = self
            .attacks_with_syndromes()
            .iter()
            .map(|a| {
                json!({
                    "name": a.name,
                    "world": a.world,
                    "core": a.core,
                    "esr": format!("{:#x}", a.esr),
                    "far": format!("{:#x}", a.far),
                    "faulted": a.faulted,
                })
            })
            .collect();
        json!({
            "prompt_tokens": done.prompt_tokens,
            "output_tokens": done.output_tokens,
            "text": self.text,
            "finish": done.finish,
            "ttft_ms": done.ttft_ns as f64 / 1e6,
            "tokens_per_s": tokens_per_s,
            "granules_lent": done.granules_lent,
            "granules_recalled": done.granules_recalled,
            "granules_nonzero_after_recall": done.granules_nonzero_after_recall,
            "preemptions": done.preemptions,
            "lent_cores": done.lent_cores,
            "el3": done.el3.iter().map(|(k, v)| (k.clone(), json!(v))).collect::<serde_json::Map<_, _>>(),
            "logits_sha256": done.logits_sha256,
            "attacks": attacks,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attack(name: &str, world: &str, faulted: bool) -> Attack {
        Attack { name: name.to_owned(), world: world.to_owned(), faulted, ..Attack::default() }
    }

    #[test]
    fn partition_faults_are_read_from_the_log() {
        let line =
            "partition 0x8002 aborted: esr=0x0000000092000028 far=0x0000000042000000 elr=0x000000000e904100";
        assert_eq!(Fault::parse(line), Some(Fault { esr: 0x9200_0028, far: 0x4200_0000 }));
        assert_eq!(Fault::parse("partition 0x8002 started"), None);
        assert_eq!(Fault::parse("aborted: esr=0x far=1"), None);
    }

    #[test]
    fn syndromes_go_to_the_faults_of_partitions_in_order() {
        let report = Report {
            attacks: vec![
                attack("read lent granule", "NS-EL2", true),
                attack("read lent granule", "S-EL0", true),
                attack("retrieve a handle of another", "S-EL0", true),
                attack("write lent granule", "S-EL0", true),
            ],
            partition_faults: vec![Fault { esr: 1, far: 2 }, Fault { esr: 3, far: 4 }],
            ..Report::default()
        };
        let esr: Vec<u64> = report.attacks_with_syndromes().iter().map(|a| a.esr).collect();
        assert_eq!(esr, [0, 1, 0, 3]);
        assert_eq!(report.json()["attacks"][3]["far"], "0x4");
    }

    #[test]
    fn a_run_is_good_only_if_nothing_leaked() {
        let done = Done { granules_lent: 5, granules_recalled: 5, ..Done::default() };
        let mut report = Report { done: Some(done), ..Report::default() };
        assert!(report.faults().is_empty());
        report.done.as_mut().unwrap().granules_nonzero_after_recall = 1;
        assert_eq!(report.faults().len(), 1);
        report.done.as_mut().unwrap().granules_recalled = 4;
        report.attacks.push(attack("read lent granule", "NS-EL2", false));
        report.panic = Some("panic at x".to_owned());
        report.error = Some("e".to_owned());
        assert_eq!(report.faults().len(), 5);
        report.attacks.push(attack("read lent granule", "S-EL0", true));
        assert_eq!(report.faults().len(), 6, "a fault that the SPMC did not log");
    }

    #[test]
    fn speed_counts_the_tokens_after_the_first() {
        let done =
            Done { output_tokens: 11, decode_ns: 2_000_000_000, ttft_ns: 1_500_000, ..Done::default() };
        let json = Report { done: Some(done), ..Report::default() }.json();
        assert_eq!(json["tokens_per_s"], json!(5.0));
        assert_eq!(json["ttft_ms"], json!(1.5));
    }
}
