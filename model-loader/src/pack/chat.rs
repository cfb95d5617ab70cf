//! Recognises the family of a GGUF's chat template and takes its strings out of it.
//!
//! Templates are programs in a language of their own; the partition runs none. Three families cover Llama-type models.

use flexserve_container::{ChatKind, wire};

use super::sections::Sections;

/// The strings around messages, as the container has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    kind: ChatKind,
    system_in_user: bool,
    default_system: String,
    system: [&'static str; 2],
    user: [&'static str; 2],
    assistant: [&'static str; 2],
}

impl Template {
    /// The prompt is the text.
    const NONE: Self = Self {
        kind: ChatKind::None,
        system_in_user: false,
        default_system: String::new(),
        system: ["", ""],
        user: ["", ""],
        assistant: ["", ""],
    };

    /// Recognises a template. One that is not known counts as none.
    #[must_use]
    pub fn recognise(template: Option<&str>) -> Self {
        let Some(template) = template else { return Self::NONE };
        if template.contains("<|im_start|>") {
            Self {
                kind: ChatKind::ChatMl,
                default_system: chatml_default_system(template).unwrap_or_default(),
                system: ["<|im_start|>system\n", "<|im_end|>\n"],
                user: ["<|im_start|>user\n", "<|im_end|>\n"],
                assistant: ["<|im_start|>assistant\n", "<|im_end|>\n"],
                ..Self::NONE
            }
        } else if template.contains("<|start_header_id|>") && template.contains("<|eot_id|>") {
            Self {
                kind: ChatKind::Llama3,
                system: ["<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"],
                user: ["<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"],
                assistant: ["<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"],
                ..Self::NONE
            }
        } else if template.contains("[INST]") {
            Self {
                kind: ChatKind::Llama2,
                system_in_user: true,
                system: ["[INST] <<SYS>>\n", "\n<</SYS>>\n\n"],
                user: ["[INST] ", " [/INST]"],
                assistant: ["", " </s>"],
                ..Self::NONE
            }
        } else {
            Self::NONE
        }
    }

    /// Stores it.
    #[must_use]
    pub fn write(&self, sections: &mut Sections) -> wire::Chat {
        let mut pair = |strings: [&str; 2]| strings.map(|text| sections.add(text));
        let (system, user, assistant) = (pair(self.system), pair(self.user), pair(self.assistant));
        wire::Chat {
            kind: (self.kind as u32).into(),
            flags: if self.system_in_user { wire::SYSTEM_IN_USER } else { 0 }.into(),
            default_system: sections.add(self.default_system.as_str()),
            system,
            user,
            assistant,
        }
    }
}

/// The text between the opening of a system message and its end, if the template spells one out.
fn chatml_default_system(template: &str) -> Option<String> {
    const OPEN: [&str; 2] = ["<|im_start|>system\n", "<|im_start|>system\\n"];
    let start = OPEN.iter().find_map(|open| Some(template.find(open)? + open.len()))?;
    let text = &template[start..];
    let text = &text[..text.find("<|im_end|>")?];
    // A quote ends the literal: what follows is an expression such as the system message that was given.
    (!text.contains(['\'', '{'])).then(|| text.replace("\\n", "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognises_chatml_and_its_default_system_message() {
        let template =
            "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}";
        let found = Template::recognise(Some(template));
        assert_eq!(found.kind, ChatKind::ChatMl);
        assert_eq!(found.default_system, "Be brief.");
    }

    #[test]
    fn a_system_message_that_is_an_expression_is_no_default() {
        let template = "{{ '<|im_start|>system\\n' + message['content'] + '<|im_end|>\\n' }}";
        assert_eq!(Template::recognise(Some(template)).default_system, "");
    }

    #[test]
    fn recognises_the_llama_families_and_nothing_else() {
        let kind = |template| Template::recognise(template).kind;
        assert_eq!(kind(Some("{{ bos_token + '[INST] ' }}")), ChatKind::Llama2);
        assert_eq!(kind(Some("<|start_header_id|>{{ role }}<|end_header_id|>…<|eot_id|>")), ChatKind::Llama3);
        assert_eq!(kind(Some("### Instruction:")), ChatKind::None);
        assert_eq!(kind(None), ChatKind::None);
    }
}
